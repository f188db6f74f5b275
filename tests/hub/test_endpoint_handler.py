"""The endpoint answers for each kind of model, and says what is wrong with a request."""

import base64
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import draw_image

from maws_hf import MawsViTModel

FILE = Path(__file__).parents[2] / "examples" / "endpoint" / "handler.py"
PICTURE = base64.b64encode(draw_image(1, size=40)).decode()


@pytest.fixture(scope="module")
def handlers(runs, exports):
    spec = importlib.util.spec_from_file_location("handler", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folders = {**{kind: exports[kind] for kind in exports}, "native": runs["clip"]}
    return {kind: module.EndpointHandler(str(folder)) for kind, folder in folders.items()}


def test_zero_shot_gives_shares_best_first(handlers):
    request = {"inputs": PICTURE, "parameters": {"candidate_labels": ["a disc", "ein Balken", "un coche"]}}
    answer = handlers["clip"](request)
    assert {entry["label"] for entry in answer} == {"a disc", "ein Balken", "un coche"}
    scores = [entry["score"] for entry in answer]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-6)
    for entry, other in zip(answer, handlers["native"](request), strict=True):
        assert entry["label"] == other["label"]
        assert entry["score"] == pytest.approx(other["score"], abs=1e-5)
    json.dumps(answer)


def test_a_template_stands_around_each_label_and_commas_separate_them(handlers):
    def shares(**parameters: object) -> list[float]:
        return [entry["score"] for entry in handlers["clip"]({"inputs": PICTURE, "parameters": parameters})]

    around = shares(candidate_labels="a disc , a bar", hypothesis_template="a picture of {}!")
    assert around == pytest.approx(shares(candidate_labels=["a picture of a disc!", "a picture of a bar!"]), abs=1e-6)
    assert around != pytest.approx(shares(candidate_labels=["a disc", "a bar"]), abs=1e-6)


def test_no_model_answers_as_in_training(handlers):
    assert not any(handler.model.training for handler in handlers.values())


def test_labels_are_cut_to_what_the_text_tower_reads(handlers, monkeypatch):
    words = "a b c d e f " * 40
    for kind in ("clip", "native"):
        monkeypatch.setattr(handlers[kind].tokenizer, "model_max_length", int(1e30))  # a folder that was put together
        answer = handlers[kind]({"inputs": PICTURE, "parameters": {"candidate_labels": [words, "b"]}})
        assert {entry["label"] for entry in answer} == {words.strip(), "b"}


def test_classes_are_named_and_counted(handlers):
    answer = handlers["classifier"]({"inputs": PICTURE, "parameters": {"top_k": 2}})
    assert len(answer) == 2
    assert answer[0]["label"].startswith("LABEL_")
    assert len(handlers["classifier"]({"inputs": PICTURE})) == 5


def test_features_are_the_encoders(handlers):
    feature = torch.tensor(handlers["maws"]({"inputs": PICTURE}))
    direction = torch.tensor(handlers["maws"]({"inputs": PICTURE, "parameters": {"normalize": True}}))
    assert feature.shape == (32,)
    torch.testing.assert_close(direction, feature / feature.norm())


def test_an_autoencoder_s_features_are_of_the_whole_picture(handlers, runs):
    answers = [handlers["autoencoder"]({"inputs": PICTURE}) for _ in range(2)]
    assert answers[0] == answers[1]
    pixels = handlers["autoencoder"]._images([PICTURE])
    with torch.inference_mode():
        expected = MawsViTModel.from_pretrained(runs["autoencoder"]).eval()(pixels.cpu()).pooler_output[0]
    torch.testing.assert_close(torch.tensor(answers[0]), expected)


def test_several_pictures_and_other_forms_of_one(handlers):
    raw = draw_image(1, size=40)
    several = handlers["maws"]({"inputs": [PICTURE, base64.b64encode(draw_image(2)).decode()]})
    assert len(several) == 2
    one = torch.tensor(several[0])
    for form in (f"data:image/png;base64,{PICTURE}", raw, Image.open(io.BytesIO(raw))):
        torch.testing.assert_close(torch.tensor(handlers["maws"]({"inputs": form})), one, rtol=0, atol=1e-5)


def test_an_opened_picture_is_seen_upright_and_on_white_as_its_bytes_are(handlers):
    turned, clear = io.BytesIO(), io.BytesIO()
    picture = Image.open(io.BytesIO(draw_image(1, size=40)))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    picture.save(turned, format="PNG", exif=exif)
    transparent = picture.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize((40, 40)))
    transparent.save(clear, format="PNG")
    plain = torch.tensor(handlers["maws"]({"inputs": PICTURE}))
    for file in (turned, clear):
        opened, raw = (
            torch.tensor(handlers["maws"]({"inputs": form})) for form in (Image.open(file), file.getvalue())
        )
        torch.testing.assert_close(opened, raw, rtol=0, atol=1e-5)
        assert (raw - plain).norm() > 1e-3 * plain.norm()


def test_pictures_are_answered_in_their_order(handlers):
    pictures = [base64.b64encode(draw_image(number)).decode() for number in range(3)]
    together = torch.tensor(handlers["maws"]({"inputs": pictures}))
    for row, picture in zip(together, pictures, strict=True):
        torch.testing.assert_close(row, torch.tensor(handlers["maws"]({"inputs": picture})), rtol=0, atol=1e-5)


def test_the_name_of_a_class_is_that_of_its_logit(handlers):
    handler = handlers["classifier"]
    shares = handler.model(handler._images([PICTURE])).logits.softmax(dim=1)[0].tolist()
    answer = {entry["label"]: entry["score"] for entry in handler({"inputs": PICTURE, "parameters": {"top_k": 9}})}
    assert answer == pytest.approx({f"LABEL_{number}": share for number, share in enumerate(shares)}, abs=1e-6)


def bomb() -> str:
    encoded = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(encoded, format="PNG")
    return base64.b64encode(encoded.getvalue()).decode()


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("maws", {"inputs": "https://example.org/picture.jpg"}, "addresses and paths are not opened"),
        ("maws", {"inputs": "/etc/passwd"}, ""),
        ("maws", {"inputs": base64.b64encode(b"no picture").decode()}, ""),
        ("maws", {"inputs": 7}, "must be a picture in base64"),
        ("maws", {"inputs": []}, "0 pictures"),
        ("maws", {"inputs": [PICTURE] * 33}, "33 pictures"),
        ("maws", [PICTURE], "no JSON object"),
        (
            "maws",
            {"inputs": PICTURE, "parameters": {"top_k": 3}},
            "parameters has 'top_k'; this model is for features: normalize",
        ),
        ("maws", {"inputs": PICTURE, "parameters": {"images": 1}}, "parameters has 'images'"),
        ("maws", {"inputs": PICTURE, "parameters": {"normalize": "false"}}, "normalize must be true or false"),
        ("maws", {"inputs": "A" * 27_000_000}, "27000000 characters"),
        ("maws", {"inputs": Image.open(io.BytesIO(draw_image(1, size=200)[:300]))}, "cannot be read"),
        ("maws", {"inputs": PICTURE, "parameters": "x"}, "parameters is no object"),
        ("clip", {"inputs": PICTURE}, "candidate_labels must be"),
        ("clip", {"inputs": PICTURE, "parameters": {"candidate_labels": ["a", 3]}}, "candidate_labels must be"),
        ("clip", {"inputs": PICTURE, "parameters": {"candidate_labels": ["a", " "]}}, "candidate_labels must be"),
        (
            "clip",
            {"inputs": PICTURE, "parameters": {"candidate_labels": ["a"], "hypothesis_template": "{}" * 99}},
            "{} once",
        ),
        (
            "clip",
            {"inputs": PICTURE, "parameters": {"candidate_labels": ["a"], "hypothesis_template": "x"}},
            "hypothesis_template must have",
        ),
        ("classifier", {"inputs": PICTURE, "parameters": {"top_k": 0}}, "top_k must be"),
    ],
)
def test_what_cannot_be_answered_is_said(handlers, kind, data, message):
    answer = handlers[kind](data)
    assert set(answer) == {"error"}
    assert message in answer["error"]


def test_a_picture_too_large_is_refused_before_it_is_decoded(handlers):
    answer = handlers["maws"]({"inputs": bomb()})
    assert "20000" in answer["error"]


def test_an_opened_picture_is_refused_before_it_is_decoded_too(handlers, monkeypatch):
    encoded = io.BytesIO()
    Image.new("1", (8_000, 8_000)).save(encoded, format="PNG")
    picture = Image.open(encoded)
    monkeypatch.setattr(picture, "load", lambda: pytest.fail("its pixels were decompressed"))
    assert "8000" in handlers["maws"]({"inputs": picture})["error"]


def test_an_opened_picture_of_another_format_never_meets_its_parser(handlers):
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8)).save(encoded, format="PPM")
    assert "is PPM" in handlers["maws"]({"inputs": Image.open(encoded)})["error"]


@pytest.mark.slow
def test_the_package_beside_the_handler_is_enough(exports, tmp_path):
    """As on an endpoint: the repository's folder is first on the path; what requirements.txt does not name is away."""
    repository = shutil.copytree(exports["maws"], tmp_path / "repository")
    shutil.copy(FILE, repository)
    package = Path(sys.modules["maws_hf"].__file__).parent
    shutil.copytree(package, repository / "maws_hf", ignore=shutil.ignore_patterns("__pycache__"))
    script = f"""
import sys
for name in ("datasets", "accelerate", "torchdata", "simplejpeg", "sentencepiece", "jinja2", "matplotlib"):
    sys.modules[name] = None
sys.path.insert(0, {str(repository)!r})
from handler import EndpointHandler
import maws_hf
assert maws_hf.__file__.startswith({str(repository)!r})
print(len(EndpointHandler({str(repository)!r})({{"inputs": {PICTURE!r}}})))
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["32"], done.stderr
