"""The page in a real browser, started as a user starts it, with small models."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from headless import needs_browser, open_browser
from tiny import draw_image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    needs_browser,
]
pytest.importorskip("gradio")

APP = Path(__file__).parents[2] / "examples" / "space" / "app.py"
SECONDS = 90  # for anything to appear, on a busy machine
OWN = 41  # the picture that is uploaded, which the index holds too


@pytest.fixture(scope="module")
def address(folders, image_shards, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    options = {
        "zero_shot_model": folders["lit"],
        "mae_model": folders["mae"],
        "index_dataset": image_shards,
        "num_examples": 3,
        "cache_dir": folder / "cache",
    }
    flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    log = folder / "log.txt"
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(folder / "uploads"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONUNBUFFERED"] = "1"  # it says at once where it listens
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, APP, *flags], stdout=out, stderr=out, env=environment, cwd=folder)
    try:
        told = wait_until(lambda: process.poll() is not None or re.search(r"http://127\.0\.0\.1:\d+", log.read_text()))
        assert process.poll() is None, log.read_text()
        page = f"{told[0]}/"
        wait_until(lambda: process.poll() is not None or answers(page))
        assert process.poll() is None, log.read_text()
        yield page
        assert "Traceback" not in log.read_text()
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = open_browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def upload(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("upload") / "picture.png"
    file.write_bytes(draw_image(OWN))
    return file


@pytest.fixture(autouse=True)
def nothing_goes_wrong_and_nothing_is_asked_of_others(browser, address) -> Iterator[None]:
    yield
    # Gradio itself warns of a method that it has not implemented.
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    asked = [request["request"]["url"] for request in requests if request["documentURL"].startswith(address)]
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("broken") / "broken.png"
    file.write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    return file


def answers(page: str) -> bool:
    try:
        return urlopen(page, timeout=1).status == 200
    except (URLError, OSError):
        return False


def wait_until(found: Callable[[], Any]) -> Any:
    """What `found` gives as soon as it gives something."""
    end = time.monotonic() + SECONDS
    while not (result := found()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
    return result


def show(browser, address: str, tab: str = "Zero-shot", *, width: int = 1200, scheme: str = "light") -> None:
    """Opens the page afresh in a window of this width, at a tab."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(address)
    (button,) = wait_until(lambda: [part for part in visible(browser, "button[role=tab]") if part.text == tab])
    button.click()
    wait_until(lambda: visible(browser, "input[type=file]", shown=False))


def visible(browser, selector: str, *, shown: bool = True) -> list:
    """Elements of the open tab; a field for files is never displayed itself."""
    parts = browser.find_elements("css selector", selector)
    if shown:
        return [part for part in parts if part.is_displayed()]
    return [part for part in parts if browser.execute_script("return !!arguments[0].closest('.picture')", part)]


def give(browser, file: Path) -> None:
    """Uploads a file to the open tab."""
    (field,) = [
        part
        for part in visible(browser, "input[type=file]", shown=False)
        if browser.execute_script("return arguments[0].closest('.picture').checkVisibility()", part)
    ]
    field.send_keys(str(file))


def text_of(browser, selector: str) -> str:
    return "\n".join(part.text for part in visible(browser, selector))


def pictures(browser) -> list[str]:
    """Data of the pictures in the open tab's result."""
    return browser.execute_script(
        "return [...document.querySelectorAll('.result img')].filter((image) => image.checkVisibility())"
        ".map((image) => image.src)"
    )


def type_in(browser, selector: str, text: str) -> None:
    from selenium.webdriver.common.keys import Keys

    (field,) = visible(browser, selector)
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text)
    field.send_keys(Keys.TAB)


def test_labels_in_three_languages_get_bars(browser, address, upload):
    show(browser, address)
    type_in(browser, "#labels textarea", "red disc, blauer Balken, 青い棒")
    give(browser, upload)
    wait_until(lambda: len(visible(browser, ".bars li")) == 3)
    assert {part.text for part in visible(browser, ".bars .name")} == {"red disc", "blauer Balken", "青い棒"}
    shares = [float(part.text.split()[0]) for part in visible(browser, ".bars .share")]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert shares == sorted(shares, reverse=True)
    assert "3 new labels" in text_of(browser, "#zero-shot-result")
    (german,) = [part for part in visible(browser, ".languages button") if part.text == "Deutsch"]
    german.click()
    wait_until(lambda: "Schmetterling" in text_of(browser, ".bars"))


def test_what_a_label_says_is_never_html(browser, address, upload):
    show(browser, address)
    type_in(browser, "#labels textarea", "<b id=bold>{{x}} ${1+1}</b>, pizza")
    give(browser, upload)
    wait_until(lambda: "<b id=bold>{{x}} ${1+1}</b>" in text_of(browser, ".bars"))
    assert not browser.find_elements("css selector", "#bold")


def test_a_broken_file_and_missing_labels_are_answered_with_a_sentence(browser, address, broken, upload):
    show(browser, address)
    give(browser, broken)
    wait_until(lambda: "This file cannot be shown to the model" in text_of(browser, "#zero-shot-result"))
    show(browser, address)
    type_in(browser, "#labels textarea", " , ")
    give(browser, upload)
    wait_until(lambda: "Type at least one label" in text_of(browser, "#zero-shot-result"))


def test_the_slider_hides_more_of_the_same_picture(browser, address, upload):
    show(browser, address, "Reconstruct")
    give(browser, upload)
    original, masked, _ = wait_until(lambda: pictures(browser))
    assert "12 of 16 patches hidden (75 %)" in text_of(browser, "#reconstruction-result")
    type_in(browser, "#mask-ratio input[type=number]", "0.5")
    wait_until(lambda: "8 of 16 patches hidden (50 %)" in text_of(browser, "#reconstruction-result"))
    wait_until(lambda: pictures(browser)[1] != masked)
    assert pictures(browser)[0] == original
    masked = pictures(browser)[1]
    (another,) = [part for part in visible(browser, "button") if part.text == "New mask"]
    another.click()
    wait_until(lambda: pictures(browser)[1] != masked)
    assert "8 of 16 patches hidden (50 %)" in text_of(browser, "#reconstruction-result")


def test_a_picture_of_the_index_finds_itself_first(browser, address, upload):
    show(browser, address, "Neighbours")
    wait_until(lambda: "Among 96 pictures" in text_of(browser, "#index-status"))
    give(browser, upload)
    wait_until(lambda: len(visible(browser, ".found figure")) == 8)
    assert visible(browser, ".found figcaption")[0].text == f"1.000\n{OWN % 24}.png"


def test_an_example_is_answered_and_the_file_after_it_is_still_checked(browser, address, broken):
    show(browser, address)
    visible(browser, ".gallery-item")[0].click()
    wait_until(lambda: len(visible(browser, ".bars li")) == 6)
    visible(browser, ".picture button[aria-label='Remove Image']")[0].click()
    wait_until(lambda: "Choose a picture" in text_of(browser, "#zero-shot-result"))
    give(browser, broken)
    wait_until(lambda: "This file cannot be shown to the model" in text_of(browser, "#zero-shot-result"))


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1200, "light")])
def test_no_tab_scrolls_sideways_and_all_can_be_reached(browser, address, upload, width, scheme):
    for tab, result in (("Zero-shot", ".bars li"), ("Reconstruct", ".triptych img"), ("Neighbours", ".found img")):
        show(browser, address, tab, width=width, scheme=scheme)
        give(browser, upload)
        wait_until(lambda result=result: visible(browser, result))
        assert browser.execute_script("return document.documentElement.scrollWidth") == width, tab
        reach = browser.execute_script(
            "return Math.max(...[...document.querySelectorAll('.header *, .result *, button, input, textarea')]"
            ".filter((part) => part.checkVisibility()).map((part) => part.getBoundingClientRect().right))"
        )
        assert reach <= width, tab
