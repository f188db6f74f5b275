"""The page of the demo: what it says, what it survives, and that it is one file."""

import base64
import hashlib
import io
import json
import re
import shlex
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from demo_runs import CLASSES, HOSTILE, draw, make_demo_runs
from PIL import Image

from maws_hf.cli import main
from maws_hf.reporting.demo_report import build_report
from maws_hf.reporting.demo_steps import demo_steps
from maws_hf.reporting.pictures import embed_picture
from maws_hf.reporting.records import Curve, read_curve, share
from maws_hf.reporting.sections import draw_curves, read_encoders, read_frames, read_weak_labels
from maws_hf.reporting.zero_shot import read_zero_shot

REPOSITORY = Path(__file__).parents[2]


class Page(HTMLParser):
    """The parts of a page that the tests ask about."""

    def __init__(self, file: Path):
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self.feed(self.source)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        within = self.tags[-1][0] if self.tags else ""
        (self.scripts if within == "script" else self.texts).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path, Path]:
    return make_demo_runs(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory) -> Page:
    return Page(build_report(*folders, tmp_path_factory.mktemp("page") / "new" / "report.html"))


def test_the_page_tells_the_numbers_of_every_step(page):
    assert "15.6 %" in page.text  # zero-shot in English, split unseen
    assert "of 190 pictures get the right one of 190 English names. Chance: 0.53 %, untrained: 0.27 %." in page.text
    assert "62.1 %" in page.text  # split test
    assert "63.0 % of new concepts" in page.text  # the best of three encoders
    assert "204,800 images, 4.9 × 10 13 operations" in page.text  # four runs of 800 steps and 64 images
    assert page.text.count("800 steps, 3 min") == 4  # 51,200 images at 320 a second
    assert "Of 40,212 tags, 32,624 name WordNet synsets" in page.text
    assert "619 not words (<3, 30 …)" in page.text
    assert "6,991 train, 1,674 test, 931 unseen" in page.text
    assert "86.8" in page.text  # recall@5 from picture to text, in English
    assert "Nothing to show yet" not in page.text


def test_an_interval_without_a_loss_is_no_point_of_the_curve(page):
    hovered = re.findall(r"<title>step ([\d,]+) ·", page.source)
    assert len(hovered) == 4 * 15
    assert "400" not in hovered


def test_names_cannot_become_markup(page):
    assert HOSTILE not in page.source
    assert HOSTILE in page.text
    assert len(page.all("script")) == 1
    assert "Noto <Emoji>, Google Inc" in page.text


def test_words_are_text_in_their_language(page):
    spoken = {attributes["lang"] for attributes in page.all("bdi")}
    assert {"ja", "ar", "zh"} <= spoken
    assert CLASSES["ja"][0] in page.text
    assert page.all("html")[0]["lang"] == "en"


def test_nothing_is_loaded_from_elsewhere(page):
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            address = attributes.get(name) or "#"
            link = tag == "a" and address.startswith("https://")
            assert link or address.startswith(("#", "data:")), f"<{tag} {name}={address[:60]}>"
    style = re.search(r"<style>(.*?)</style>", page.source, re.DOTALL).group(1)
    assert not re.search(r"url\(|@import", style)


def test_the_policy_allows_this_script_and_no_other(page):
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_headings_are_in_order_and_pictures_have_words(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") == "true" for svg in page.all("svg"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.all("a") if link["href"].startswith("#")} <= set(ids)


def test_without_any_run_every_section_names_the_command_that_fills_it(tmp_path):
    nothing = [tmp_path / name for name in ("runs", "data", "labels")]
    page = Page(build_report(*nothing, tmp_path / "report.html"))
    assert page.text.count("Nothing to show yet.") == 11
    for step in demo_steps(*nothing).values():
        assert step.command in page.text.replace("\xa0", " ")
    assert not page.all("img")


@pytest.mark.parametrize(
    "damaged",
    [
        "runs/zero-shot/results.json",
        "runs/evaluation/results.json",
        "runs/lit/retrieval.json",
        "runs/mae/training.json",
        "runs/wsp/metrics.jsonl",
        "runs/mae/reconstruction.png",
        "data/manifest.json",
        "labels/vocabulary.json",
    ],
)
@pytest.mark.parametrize(
    "content", ['{"torn": ', "[]", '{"results": []}', '{"results": [{"model": 3}], "classes": {}, "counts": []}']
)
def test_a_damaged_file_costs_one_part_and_is_named(tmp_path, damaged, content):
    folders = make_demo_runs(tmp_path)
    (tmp_path / damaged).write_text(content)
    page = Page(build_report(*folders, tmp_path / "report.html"))
    assert page.text.count("Nothing to show yet.") == 1
    name = damaged.replace("training.json", "metrics.jsonl")  # they are read together
    assert str(tmp_path / name) in page.text


def test_a_result_that_is_no_share_is_not_shown(tmp_path):
    folders = make_demo_runs(tmp_path)
    file = tmp_path / "runs" / "zero-shot" / "results.json"
    content = json.loads(file.read_text())
    content["results"][0]["top1"] = 62.1  # per cent
    file.write_text(json.dumps(content))
    page = Page(build_report(*folders, tmp_path / "report.html"))
    assert "62.1 is no share between 0 and 1" in page.text


@pytest.mark.slow
def test_large_pictures_do_not_make_a_large_page(tmp_path):
    folders = make_demo_runs(tmp_path)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 640, 3), dtype=np.uint8))
    content = tmp_path / "noise.png"
    noise.save(content, compress_level=1)
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(content.read_bytes() + file.name.encode())  # each a file of its own
    report = build_report(*folders, tmp_path / "report.html")
    assert report.stat().st_size < 4_000_000
    assert "more lie beside the results" in Page(report).text


def test_a_picture_that_stays_large_becomes_narrower(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (500, 1000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png", compress_level=1)
    picture = embed_picture(tmp_path / "noise.png", "noise")
    content = base64.b64decode(picture.uri.removeprefix("data:image/webp;base64,"))
    assert len(content) <= 250_000
    assert Image.open(io.BytesIO(content)).size == (picture.width, picture.height)
    assert picture.width == 2 * picture.height < 1000


def test_a_small_picture_keeps_every_pixel(folders):
    file = folders[0] / "mae" / "reconstruction.png"
    content = base64.b64decode(embed_picture(file, "").uri.removeprefix("data:image/webp;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(Image.open(file)))


def test_the_commands_are_those_of_the_makefile():
    makefile = (REPOSITORY / "Makefile").read_text().replace("\\\n", " ")
    demo = re.search(r"^demo:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE).group(1)
    for name, value in reversed(re.findall(r"^([A-Z_]+) = (.*)$", makefile, re.MULTILINE)):
        demo = demo.replace(f"$({name})", value)
    demo = re.sub(r"--num_cpu_threads_per_process \S+", "", demo)  # of the machine
    typed = [shlex.split(line.replace("$(VENV)/bin/", "")) for line in demo.splitlines()]
    steps = demo_steps(Path("runs/demo"), Path("data/emoji"), Path("data/emoji-synsets"))
    shown = [shlex.split(step.command) for step in steps.values()]
    for command in typed:
        if "demo-report" not in command:
            assert sorted(command) in [sorted(words) for words in shown]


def test_the_command_writes_the_page(folders, tmp_path, capsys):
    runs, data, labels = map(str, folders)
    output = tmp_path / "page.html"
    options = ["--runs_dir", runs, "--data_dir", data, "--labels_dir", labels, "--output", str(output)]
    with pytest.raises(SystemExit) as ended:
        main(["demo-report", *options])
    assert ended.value.code == 0
    assert output.as_uri() in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


# ---------------------------------------------------------------- what is read


def test_frames_are_evenly_chosen_and_end_with_the_final_picture(tmp_path):
    for step in range(10, 90, 10):
        draw(tmp_path / "reconstructions" / f"step-{step:08d}.png", str(step))
    frames = read_frames(tmp_path)
    assert frames.names == ["step 10", "step 20", "step 40", "step 50", "step 70"]
    draw(tmp_path / "reconstruction.png", "80")  # drawn at the last step as well
    frames = read_frames(tmp_path)
    assert frames.names == ["step 10", "step 20", "step 40", "step 60", "the end"]
    assert len({picture.uri for picture in frames.pictures}) == 5


def test_wsp_is_drawn_behind_mae_wsp_on_the_same_axes():
    def curve(*losses: float) -> Curve:
        return Curve([1, 2], [64, 128], list(losses), [0.1, 0.1], 1.0, None)

    runs = {"mae": curve(1.0, 0.5), "wsp": curve(6.0, 3.0), "mae-wsp": curve(5.0, 1.0)}
    charts = draw_curves(runs, {key: key for key in runs})
    assert charts["mae-wsp"].reference_path == charts["wsp"].path
    assert charts["wsp"].y_ticks == charts["mae-wsp"].y_ticks != charts["mae"].y_ticks
    assert [chart.reference_path for key, chart in charts.items() if key != "mae-wsp"] == [None, None]
    assert "from 5 to 1 over 128 images" in charts["mae-wsp"].summary


def test_labels_are_listed_by_falling_frequency_on_logarithmic_axes(folders, tmp_path):
    content = json.loads((folders[2] / "vocabulary.json").read_text())
    content["classes"].reverse()
    (tmp_path / "vocabulary.json").write_text(json.dumps(content))
    labels = read_weak_labels(tmp_path)
    assert [label["count"] for label in labels.most_frequent] == [700 // rank for rank in range(1, 13)]
    assert [tick.text for tick in labels.chart.x_ticks] == ["1", "10"]
    assert labels.chart.points[0].text.startswith("no. 1: label 1 · 700 images")
    assert (labels.classes, labels.images, labels.tags, labels.dropped) == (60, 6784, 0, [])


def test_encoders_come_best_first_with_all_that_their_training_cost(folders):
    encoders = read_encoders(folders[0] / "evaluation")
    assert [row.name.split("/")[-1] for row in encoders.rows] == ["mae-wsp", "wsp", "mae"]
    assert encoders.best == {"linear top-1": 0.6305, "linear top-5": 0.9184, "20-NN top-1": 0.623}
    assert [(row.operations, row.images) for row in encoders.rows[:2]] == [(24_600_000_000_000, 256_000)] + [
        (12_300_000_000_000, 128_000)
    ]
    assert (encoders.classes, encoders.images, encoders.split) == (9, 931, "unseen")


def zero_shot_row(**changes) -> dict:
    row = {"model": "lit", "split": "unseen", "language": "en", "prompts": "captions", "classes": 4, "images": 8}
    return {**row, "top1": 0.5, "top5": None, "chance": 0.25, "per_class": {}, "examples": None, **changes}


def read_rows(folder: Path, *rows: dict):
    (folder / "results.json").write_text(json.dumps({"results": rows}))
    return read_zero_shot(folder)


def test_the_headline_is_english_and_of_the_first_way_of_prompting(tmp_path):
    rows = [zero_shot_row(language="de", top1=0.4), zero_shot_row(), zero_shot_row(prompts="names", top1=0.1)]
    untrained = zero_shot_row(model="lit-untrained", top1=0.2)
    found = read_rows(tmp_path, untrained, *rows, zero_shot_row(split="test", language="fr"))
    assert found.model == "lit"
    assert (found.headline("unseen").top1, found.headline("unseen").untrained) == (0.5, 0.2)
    assert found.headline("test").language.code == "fr"
    assert found.headline("train") is None
    assert [score.top1 for score in found.scores] == [0.4, 0.5, 0.5]


@pytest.mark.parametrize("highest", ["top1", "untrained", "chance"])
def test_bars_of_all_splits_share_an_axis_that_reaches_over_every_score(tmp_path, highest):
    shares = {"top1": 0.2, "untrained": 0.1, "chance": 0.05, highest: 0.45}
    untrained = zero_shot_row(model="lit-untrained", top1=shares.pop("untrained"))
    rows = [zero_shot_row(**shares), zero_shot_row(split="test", top1=0.3)]
    first, second = read_rows(tmp_path, *rows, untrained).bars
    assert first.ticks == second.ticks
    assert first.longest == second.longest == 0.5
    assert [(tick.place, tick.text) for tick in first.ticks][::5] == [(0, "0"), (100, "50")]


def test_words_are_the_best_found_and_the_most_pictured_of_the_missed(tmp_path):
    told = {
        "half": (4, 0.5),
        "whole": (2, 1.0),
        "more": (6, 1.0),
        "rare": (1, 0.0),
        "often": (9, 0.0),
        "never": (0, None),
    }
    per_class = {name: {"images": images, "top1": top1} for name, (images, top1) in told.items()}
    (words,) = read_rows(tmp_path, zero_shot_row(per_class=per_class)).words
    assert words.found == [("more", 6), ("whole", 2), ("half", 4)]
    assert words.missed == [("often", 9), ("rare", 1)]


def test_a_curve_has_the_points_that_are_numbers_and_the_time_of_all(tmp_path):
    lines = [
        {"step": step, "loss": loss, "learning_rate": 0.1, "images_seen": 100 * step, "images_per_second": rate}
        for step, loss, rate in ((1, 2.0, 10.0), (2, float("nan"), 20.0), (3, 1.0, 50.0))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = read_curve(tmp_path)
    assert (curve.steps, curve.images, curve.losses) == ([1, 3], [100, 300], [2.0, 1.0])
    assert curve.seconds == 10 + 5 + 2
    assert curve.operations is None


@pytest.mark.parametrize("value", [-0.1, 1.01, True, "0.5", float("nan")])
def test_what_is_no_share_is_refused(value):
    with pytest.raises(ValueError, match="is no share between 0 and 1"):
        share(value)
    assert [share(None), share(0), share(1)] == [None, 0.0, 1.0]


@pytest.mark.parametrize(("rate", "told"), [(1024.0, "50 s"), (320.0, "3 min"), (7.0, "2 h 02 min")])
def test_the_time_of_a_run_is_told_in_its_own_unit(tmp_path, rate, told):
    folders = make_demo_runs(tmp_path)
    file = tmp_path / "runs" / "mae" / "metrics.jsonl"
    file.write_text(file.read_text().replace('"images_per_second": 320.0', f'"images_per_second": {rate}'))
    page = Page(build_report(*folders, tmp_path / "report.html"))
    assert f"800 steps, {told}" in page.text


def test_a_run_whose_operations_are_not_known_adds_none(tmp_path):
    folders = make_demo_runs(tmp_path)
    (tmp_path / "runs" / "mae" / "training.json").unlink()
    assert "204,800 images, 3.7 × 10 13 operations" in Page(build_report(*folders, tmp_path / "report.html")).text


def test_versions_are_those_of_the_evaluation(page):
    assert re.search(r"torch\W+2\.13\.0", page.text)


def test_a_wide_picture_is_narrowed(tmp_path):
    Image.new("RGB", (2800, 100), "red").save(tmp_path / "wide.png")
    picture = embed_picture(tmp_path / "wide.png", "wide")
    assert (picture.width, picture.height) == (1400, 50)
    assert embed_picture(tmp_path / "wide.png", "wide", widest=700).height == 25
