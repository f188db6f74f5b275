"""The page in a real browser, opened from disk: what only a browser can tell."""

import json
import re
from pathlib import Path

import pytest
from demo_runs import HOSTILE, make_demo_runs
from headless import needs_browser, open_browser

from maws_hf.reporting.demo_report import build_report

pytestmark = [
    pytest.mark.slow,
    needs_browser,
]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    return build_report(*make_demo_runs(folder), folder / "report.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = open_browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


def show(browser, page: Path, *, width: int = 1400, scheme: str = "light", script: bool = True) -> None:
    """Opens the page afresh in a window of this width."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
    browser.get(page.as_uri())


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, as WCAG 2.2 defines it."""
    parts = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


COLOURS = """
const behind = (element) => {
  for (; element; element = element.parentElement) {
    const colour = getComputedStyle(element).backgroundColor;
    if (!/, 0\\)$|transparent/.test(colour)) return colour;
  }
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const found = new Map();
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  const element = node.parentElement;
  if (!node.textContent.trim() || !element.checkVisibility() || element.closest("svg, script, .tip")) continue;
  const pair = [getComputedStyle(element).color, behind(element)];
  found.set(pair.join(), [...pair, node.textContent.trim().slice(0, 40)]);
}
return [...found.values()];
"""


def test_it_opens_without_errors_and_asks_for_nothing(browser, page):
    show(browser, page)
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    asked = [request["request"]["url"] for request in requests if request["documentURL"] == page.as_uri()]
    assert page.as_uri() in asked
    assert [url for url in asked if url != page.as_uri() and not url.startswith("data:")] == []


def test_every_picture_is_one(browser, page):
    show(browser, page)
    widths = browser.execute_script("return [...document.images].map((image) => image.naturalWidth)")
    assert len(widths) == 3 + 1 + 14
    assert min(widths) > 0


@pytest.mark.parametrize("width", [360, 1000, 1400])
def test_it_never_scrolls_sideways(browser, page, width):
    show(browser, page, width=width)
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    parts = "[...document.querySelectorAll('section, figure, .tile, pre')]"
    reach = browser.execute_script(f"return Math.max(...{parts}.map((part) => part.getBoundingClientRect().right))")
    assert reach <= width


@pytest.mark.parametrize("script", [True, False])
def test_headings_tables_and_curves_can_be_seen(browser, page, script):
    from selenium.webdriver.common.by import By

    show(browser, page, script=script)
    for selector, number in (("h1, h2", 7), ("table", 5), (".plot svg", 5), (".track", 14)):
        parts = browser.find_elements(By.CSS_SELECTOR, selector)
        assert len(parts) == number
        assert all(part.is_displayed() for part in parts)
    curve = browser.find_element(By.CSS_SELECTOR, "path.curve")
    assert curve.rect["width"] > 200
    assert curve.rect["height"] > 100
    assert HOSTILE in browser.find_element(By.TAG_NAME, "body").text


def test_a_heading_sorts_its_column_both_ways(browser, page):
    from selenium.webdriver.common.by import By

    show(browser, page)
    table = browser.find_element(By.CSS_SELECTOR, "#encoders table")
    last = table.find_elements(By.CSS_SELECTOR, "thead th")[-1]

    def encoders() -> list[str]:
        return [cell.text.rpartition("/")[2] for cell in table.find_elements(By.CSS_SELECTOR, "tbody th")]

    knn = table.find_elements(By.CSS_SELECTOR, "thead button")[3]
    browser.execute_script("arguments[0].click()", knn)
    assert encoders() == ["mae-wsp", "mae", "wsp"]
    browser.execute_script("arguments[0].click()", knn)
    assert encoders() == ["wsp", "mae", "mae-wsp"]
    browser.execute_script("arguments[0].click()", last.find_element(By.TAG_NAME, "button"))
    assert last.get_attribute("aria-sort") == "descending"
    assert encoders()[0] == "mae-wsp"  # 2.5e13 comes before 1.2e13


def test_a_curve_tells_its_points_to_mouse_and_keyboard(browser, page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(browser, page)
    plot = browser.find_element(By.CSS_SELECTOR, "#curves .plot")
    tip = plot.find_element(By.CLASS_NAME, "tip")
    assert not tip.is_displayed()
    browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", plot)
    ActionChains(browser).move_to_element(plot).perform()
    assert re.match(r"step (350|450) · ", tip.text)
    plot.send_keys(Keys.HOME)
    assert tip.text.startswith("step 50 · 3,200 images · loss ")
    plot.send_keys(Keys.ARROW_RIGHT)
    assert tip.text.startswith("step 100 · ")


def test_earlier_reconstructions_can_be_chosen_without_a_script(browser, page):
    from selenium.webdriver.common.by import By

    show(browser, page, script=False)
    frames = browser.find_elements(By.CSS_SELECTOR, ".stack > .plate")
    assert [frame.is_displayed() for frame in frames] == [False, False, True]
    label = browser.find_element(By.CSS_SELECTOR, "label[for=frame-1]")
    assert label.text == "step 10"
    label.click()
    assert [frame.is_displayed() for frame in frames] == [True, False, False]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_told_from_what_is_behind_it(browser, page, scheme):
    show(browser, page, scheme=scheme)
    pairs = browser.execute_script(COLOURS)
    assert len(pairs) >= 4
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) < 0.05) == (scheme == "dark")
    for colour, background, text in pairs:
        assert contrast(colour, background) >= 4.5, f"{text!r}: {colour} on {background}"
