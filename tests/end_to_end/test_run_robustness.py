"""`examples/run_robustness.py` as a user runs it, on made folders whose scores are known beforehand."""

import hashlib
import io
import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import ROOT, load_script
from tiny import draw_image, tiny_config

from maws_hf import MawsViTForImageClassification
from maws_hf.evaluation import real_labels
from maws_hf.evaluation.benchmark_images import Outputs
from maws_hf.evaluation.label_maps import LabelMapError, imagenet_classes, imagenet_subset, objectnet_classes
from maws_hf.processing.image_processors import square_image_processor_of

pytestmark = pytest.mark.timeout(120)

WNIDS = list(imagenet_classes())
PICTURES = [draw_image(number, size=32) for number in range(8)]
BORDERED = [draw_image(number, size=36) for number in range(8)]  # 32 without two pixels on each side
Run = Callable[..., str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MawsViTForImageClassification:
    """Of 1000 unnamed classes, and with predictions of its own for every picture."""
    torch.manual_seed(0)
    model = MawsViTForImageClassification(tiny_config(num_labels=1000)).eval()
    torch.nn.init.normal_(model.classifier.weight)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    square_image_processor_of(model.config).save_pretrained(folder)
    return model.from_pretrained(folder)


def predicted(model, pictures: list[bytes], among: list[int], border: int = 0) -> list[int]:
    """The best class of each picture, from pixels that need no resizing."""
    arrays = [np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")) for picture in pictures]
    arrays = [array[border : array.shape[0] - border, border : array.shape[1] - border] for array in arrays]
    pixels = torch.from_numpy(np.stack(arrays).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        logits = model(pixels).logits
    return [among[place] for place in logits[:, among].argmax(dim=1).tolist()]


def put(root: Path, folders: list[str], pictures: list[bytes], name: str = "{:08d}.png") -> None:
    for number, (folder, picture) in enumerate(zip(folders, pictures, strict=True), start=1):
        file = root / folder / name.format(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture)


@pytest.fixture(scope="module")
def sets(model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the 8 pictures of each set, the first lie in the folder of the prediction and the others elsewhere."""
    root, every = tmp_path_factory.mktemp("sets"), list(range(1000))
    best = predicted(model, PICTURES, every)
    assert len(set(best)) > 3
    other = [(number + 1) % 1000 for number in best]
    for folder, right in {"imagenetv2-matched-frequency-format-val": 6, "imagenetv2-top-images-format-val": 2}.items():
        put(root / "v2" / folder, [str(number) for number in best[:right] + other[right:]], PICTURES)
    wnids = [WNIDS[number] for number in best[:4] + other[4:]]
    put(root / "val", wnids, PICTURES, "ILSVRC2012_val_{:08d}.png")
    put(root / "sketch", wnids[::-1], PICTURES[::-1])
    real = [[], [best[1]], [other[2]], [other[3], best[3]], [best[4]], [], [best[6], 7], [other[7]]]
    (root / "real.json").write_text(json.dumps(real))

    subset = list(imagenet_subset("imagenet_r"))
    best = predicted(model, PICTURES, subset)
    other = [subset[(subset.index(number) + 1) % 200] for number in best]
    put(root / "r", [WNIDS[number] for number in best[:5] + other[5:]], PICTURES)
    (root / "r" / WNIDS[best[0]] / "damaged.png").write_bytes(PICTURES[0][:50])

    owners = {number: folder for folder, numbers in objectnet_classes().items() for number in numbers}
    best = [owners[number] for number in predicted(model, BORDERED, sorted(owners), border=2)]
    other = ["banana" if folder != "banana" else "backpack" for folder in best]
    put(root / "objectnet" / "images", best[:7] + other[7:], BORDERED)
    put(root / "objectnet" / "images", ["air_freshener"], BORDERED[:1])
    return root


EXPECTED = {
    "ImageNet": (4 / 8, 8, 0, 1000),
    "ImageNet-ReaL": (4 / 6, 6, 0, 1000),
    "ObjectNet": (7 / 8, 8, 0, 113),
    "ImageNet-R": (5 / 8, 8, 1, 200),
    "ImageNet-Sketch": (4 / 8, 8, 0, 1000),
    "ImageNetV2 matched-frequency": (6 / 8, 8, 0, 1000),
    "ImageNetV2 top-images": (2 / 8, 8, 0, 1000),
}


@pytest.fixture
def run(monkeypatch, capsys, sets) -> Run:
    """The script in this process, which knows the made labels for ReaL's; gives what it prints."""
    compact = (sets / "real.json").read_text().replace(" ", "")
    monkeypatch.setattr(real_labels, "REAL_SHA256", hashlib.sha256(compact.encode()).hexdigest())

    def run(*flags: object, expected: int | str = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["run_robustness.py", *map(str, flags), "--dataloader_num_workers=0"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "examples" / "run_robustness.py"), run_name="__main__")
        captured = capsys.readouterr()
        if isinstance(expected, str):
            assert expected in f"{ended.value.code} {captured.err}"
        else:
            assert ended.value.code == expected, captured.err
        return captured.out

    return run


def command(model, sets: Path, output_dir: Path) -> list[str]:
    options = {
        "model_name_or_path": model.name_or_path,
        "imagenet_val": sets / "val",
        "real_labels_file": sets / "real.json",
        "imagenet_v2": sets / "v2",
        "objectnet": sets / "objectnet",
        "imagenet_r": sets / "r",
        "imagenet_sketch": sets / "sketch",
        "output_dir": output_dir,
    }
    return [f"--{name}={value}" for name, value in options.items()]


@pytest.mark.slow
def test_every_rule_scores_as_was_arranged_and_a_killed_run_goes_on(run, model, sets, tmp_path):
    output = run(*command(model, sets, tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    found = {r["test_set"]: (r["top1"], r["images"], len(r["skipped"]), r["classes"]) for r in results}
    assert found == EXPECTED
    assert {r["test_set"] for r in results if "top5" not in r} == {"ImageNet-ReaL"}
    for title, (top1, *_) in EXPECTED.items():
        assert f"{title:30}{100 * top1:10.2f}" in output
    assert "damaged.png" in output
    assert "9 images are not the 30000" in output
    assert (tmp_path / "results.png").is_file()

    cells = sorted(tmp_path.glob("cells/*.json"))
    assert len(cells) == 6  # ImageNet's images are read once for both of its rows
    cells[0].unlink()
    before = {cell: cell.stat().st_mtime_ns for cell in cells[1:]}
    assert run(*command(model, sets, tmp_path)) == output
    assert {cell: cell.stat().st_mtime_ns for cell in cells[1:]} == before
    assert json.loads((tmp_path / "results.json").read_text())["results"] == results


@pytest.mark.slow
def test_several_models_and_another_way_of_resizing(run, model, sets, tmp_path):
    """A model that knows but the classes of ImageNet-R, by their wnids, in another order."""
    subset = list(imagenet_subset("imagenet_r"))[::-1]
    small = MawsViTForImageClassification(tiny_config(num_labels=200))
    state = model.state_dict()
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = state[name][subset]
    small.load_state_dict(state)
    small.config.id2label = {column: WNIDS[number] for column, number in enumerate(subset)}
    small.save_pretrained(tmp_path / "small")
    flags = ["--model_name_or_path", tmp_path / "small", model.name_or_path, "--output_dir", tmp_path / "out"]
    run(*flags, "--imagenet_r", sets / "r", "--resize=square")
    first, second = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert (first["top1"], first["top5"]) == (second["top1"], second["top5"])
    assert first["top1"] == 5 / 8
    wanted = "small, for ImageNet-Sketch, lacks 800 of 1000 classes"
    run(*flags, "--imagenet_sketch", sets / "sketch", "--resize=square", expected=wanted)
    run(*flags, "--imagenet_r", sets / "r", expected="say --resize square")


def test_wrong_options_are_one_sentence(run, model, sets, tmp_path):
    base = ["--model_name_or_path", model.name_or_path, "--output_dir", tmp_path]
    run(*base, expected="there is nothing to score on: give one or several of --imagenet_val")
    run(*base, "--real_labels_file", sets / "real.json", "--imagenet_r", sets / "r", expected="with --imagenet_val")
    run(*base, "--imagenet_r", sets / "r", "--image_size=64", expected="with --resize")
    unknown = ["--imagenet_v2", sets / "v2", "--imagenet_v2_variants", "c"]
    run(*base, *unknown, expected="some of matched-frequency, threshold-0.7, top-images")
    absent = ["--imagenet_v2", sets / "v2", "--imagenet_v2_variants", "threshold-0.7"]
    run(*base, *absent, expected="does not hold imagenetv2-threshold0.7-format-val")
    run(*base, "--imagenet_v2", sets / "r", expected="say which with --imagenet_v2_variants")
    wrong = ["--imagenet_val", sets / "val", "--real_labels_file", sets / "v2" / "none.json"]
    run(*base, *wrong, expected="--real_labels_file timm")
    run(*base, "--imagenet_sketch", sets / "objectnet", expected="is no class of ImageNet")
    (tmp_path / "file").touch()
    nowhere = [
        "--imagenet_r",
        sets / "none",
        "--output_dir",
        tmp_path / "file" / "run",
    ]  # told before anything is read
    run(*base, *nowhere, expected=f"--output_dir {tmp_path / 'file' / 'run'} cannot be written to")
    run(*base, "--imagenet_r", tmp_path, expected=f"--output_dir {tmp_path} lies in {tmp_path}, the data set")


def test_a_result_is_kept_for_the_same_model_images_and_options_only(model, sets, tmp_path, monkeypatch):
    run, cells = load_script("run_robustness.py", monkeypatch), []

    def cell(options, classifier, preprocessing, test) -> list[dict]:
        cells.append(preprocessing.description())
        return [{"test_set": "ImageNet-R", "top1": len(cells), "skipped": []}]

    monkeypatch.setattr(run, "run_cell", cell)
    pictures = tmp_path / "r"
    shutil.copytree(sets / "r", pictures)

    def found(name: str = model.name_or_path, real: list | None = None, **options: object) -> int:
        settings = run.RobustnessOptions(
            model_name_or_path=[name], output_dir=str(tmp_path / "out"), imagenet_r=str(pictures), **options
        )
        opened = run.OpenSet("imagenet_r", str(pictures), run.benchmark_of("imagenet_r"), None, real)
        return run.run_model(settings, name, [opened])[0]["top1"]

    changes = [{"resize": "crop"}, {"resize": "crop", "image_size": 64}, {"bf16": True}, {"real": [[1]]}]
    changes += [{"eval_split": "test"}, {"image_column_name": "image"}, {"label_column_name": "label"}]
    for number, options in enumerate([{}, *changes], start=1):
        assert found(**options) == found(**options) == number
    assert cells[2]["size"] == (64, 64)
    put(pictures, [WNIDS[1]], PICTURES[:1], "more.png")
    assert found() == 9
    other = MawsViTForImageClassification(tiny_config(num_labels=1000))
    other.save_pretrained(tmp_path / "other")
    square_image_processor_of(other.config).save_pretrained(tmp_path / "other")
    assert found(str(tmp_path / "other")) == 10


def test_the_usual_splits_and_columns_are_looked_for_unless_others_are_named(sets, tmp_path, monkeypatch):
    run, asked = load_script("run_robustness.py", monkeypatch), {}
    monkeypatch.setattr(run, "read_real_labels", lambda file: file and [[1]])

    def opened_with(**options: object) -> dict[str, dict]:
        sources = {"imagenet_val": "org/imagenet", "imagenet_a": "org/a"}
        settings = run.RobustnessOptions(model_name_or_path=["x"], output_dir=str(tmp_path), **sources, **options)
        monkeypatch.setattr(run, "open_benchmark", lambda source, benchmark, **how: asked.update({source: how}))
        run.open_sets(settings)
        return asked

    usual = opened_with()
    assert usual["org/imagenet"]["splits"] == ("validation", "train")  # its test split has no labels
    assert usual["org/a"]["splits"] == ("test", "validation", "train")
    assert not usual["org/imagenet"]["may_lack_labels"]
    named = opened_with(
        eval_split="extra", image_column_name="photo", label_column_name="kind", real_labels_file="real.json"
    )
    for how in named.values():
        assert (how["splits"], how["image_column"], how["label_column"]) == (("extra",), "photo", "kind")
    assert [how["may_lack_labels"] for how in named.values()] == [True, False]


def test_only_the_variants_that_are_wanted_are_scored(sets, monkeypatch):
    run = load_script("run_robustness.py", monkeypatch)
    assert run.imagenet_v2_sources(str(sets / "v2"), ["top-images"]) == {
        "imagenet_v2/top-images": str(sets / "v2" / "imagenetv2-top-images-format-val")
    }
    assert len(run.imagenet_v2_sources(str(sets / "v2"), None)) == 2
    assert run.imagenet_v2_sources("org/v2", ["threshold-0.7"]) == {"imagenet_v2/threshold-0.7": "org/v2"}


@pytest.mark.parametrize("bf16", [False, True])
def test_the_scores_are_computed_in_the_precision_asked_for(bf16, model, sets, tmp_path, monkeypatch):
    run, precisions = load_script("run_robustness.py", monkeypatch), []
    really = run.logits_of
    monkeypatch.setattr(run, "logits_of", lambda *what, bf16: precisions.append(bf16) or really(*what, bf16=bf16))
    options = run.RobustnessOptions(
        model_name_or_path=[model.name_or_path],
        output_dir=str(tmp_path),
        imagenet_r=str(sets / "r"),
        bf16=bf16,
        per_device_eval_batch_size=3,
        dataloader_num_workers=0,
    )
    run.run_model(options, model.name_or_path, run.open_sets(options))
    assert precisions == [bf16] * 3  # eight images that can be decoded


def test_an_image_beyond_the_labels_of_real_is_told(monkeypatch):
    run = load_script("run_robustness.py", monkeypatch)
    paths = ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000003.JPEG"]
    outputs = Outputs(logits=torch.zeros(2, 1000), labels=None, paths=paths, skipped=[])
    assert run.real_labels_of(outputs, [[5], [], [6, 7]]) == [[5], [6, 7]]
    with pytest.raises(LabelMapError, match="no validation image 3: ReaL has labels of 2"):
        run.real_labels_of(outputs, [[5], []])
