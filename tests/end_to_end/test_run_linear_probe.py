"""`examples/run_linear_probe.py` as a user runs it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import ClassLabel, Dataset, List, Value
from datasets import Features as Columns
from datasets import Image as ImageFeature
from runs import called_with, load_script
from tiny import draw_image, tiny_config
from transformers import ViTConfig, ViTModel

from maws_hf import MawsMAEForPreTraining, MawsViTModel
from maws_hf.evaluation.features import Features
from maws_hf.evaluation.linear_probe import PROTOCOLS, LinearProbeResult
from maws_hf.training.ledger import Stage, write_ledger

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures that return, so that a probe can learn them: 90 rows to train on, 30 to test."""
    folder = tmp_path_factory.mktemp("corpus")
    columns = {"image": ImageFeature(), "label": ClassLabel(names=["a", "b", "c"]), "tags": List(Value("string"))}
    for split, rows in (("train", 90), ("test", 30)):
        images = [{"bytes": draw_image(number % 3), "path": f"{split}-{number}.png"} for number in range(rows)]
        labels = [number % 3 for number in range(rows)]
        tags = [[f"tag {label}", "first two"] if label < 2 else ["tag 2"] for label in labels]
        if split == "train":
            images[7]["bytes"] = b"no picture"
        rows = {"image": images, "label": labels, "tags": tags}
        dataset = Dataset.from_dict(rows, features=Columns(columns))
        for shard in range(2):
            dataset.shard(2, shard).to_parquet(folder / f"{split}-{shard:05d}.parquet")
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One that MAE left behind, and one of transformers without the pooler that its class has."""
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    MawsMAEForPreTraining(tiny_config()).save_pretrained(folder / "mae")
    write_ledger(folder / "mae", [Stage("mae", images=10, flops=5 * 10**9)])
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(image_size=32, patch_size=16, **small), add_pooling_layer=False).save_pretrained(folder / "vit")
    return [folder / "mae", folder / "vit"]


def arguments(corpus: Path, output_dir: Path, models: list[Path], **options: object) -> list[str]:
    defaults = {"dataset_name": corpus, "output_dir": output_dir, "num_train_epochs": 5, "dataloader_num_workers": 0}
    flags = [f"--{name}={value}" for name, value in {**defaults, **options}.items()]
    return ["--model_name_or_path", *map(str, models), *flags]


def run(parameters: list[str], expected: int = 0) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "examples/run_linear_probe.py", *parameters]
    process = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=200)
    output = process.stdout + process.stderr
    assert process.returncode == expected, output
    return output


def run_here(parameters: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, where the encoder can be watched and nothing needs to be imported again."""
    script = load_script("run_linear_probe.py", monkeypatch)
    with called_with(parameters, script, monkeypatch), pytest.raises(SystemExit) as ended:
        script.run_script(script.main)
    if ended.value.code != 0:
        pytest.fail(str(ended.value))


@pytest.fixture(scope="module")
def first_run(corpus: Path, encoders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output_dir = tmp_path_factory.mktemp("first")
    parameters = arguments(corpus, output_dir, encoders, dataloader_num_workers=2)
    return output_dir, run([*parameters, "--k", "1", "5"])


def test_a_table_a_chart_and_all_that_is_needed_to_repeat_it(first_run: tuple[Path, str], encoders: list[Path]):
    output_dir, output = first_run
    content = json.loads((output_dir / "results.json").read_text())
    assert [result["encoder"] for result in content["results"]] == list(map(str, encoders))
    for result in content["results"]:
        assert result["images"] == {"train": 89, "test": 30}
        assert [record["key"] for record in result["skipped"]["train"]] == ["train-7.png"]
        assert result["knn"] == {"1": {"top1": 1.0}, "5": {"top1": 1.0}}
        assert result["linear"]["top1"] == 1.0
        assert result["learning_rate"] in [head["learning_rate"] for head in result["validation"]]
        assert result["settings"]["epochs"] == 5
        rows = [line for line in output.splitlines() if line.startswith(result["encoder"] + " ")]
        (row,) = [line for line in rows if line.split()[1][0].isdigit()]
        assert row.split()[1:-1] == ["100.00", "100.00", "100.00", f"{result['learning_rate']:.4g}"]
        assert row.split()[-1] == ("5.00e+09" if result["encoder"].endswith("mae") else "unknown")
    assert content["options"]["seed"] == 0
    assert {"torch", "transformers", "maws_hf"} <= content["versions"].keys()
    assert "comes without an image processor" in output
    assert (output_dir / "results.png").read_bytes().startswith(b"\x89PNG")
    assert not list(output_dir.rglob("*.part"))


def test_a_second_run_computes_no_feature_and_finds_the_same(
    first_run: tuple[Path, str],
    corpus: Path,
    encoders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(MawsViTModel, "forward", refuse)
    monkeypatch.setattr(ViTModel, "forward", refuse)
    parameters = arguments(corpus, tmp_path, encoders, feature_cache=first_run[0] / "features")
    run_here([*parameters, "--k", "1", "5"], monkeypatch)
    assert capsys.readouterr().out.count("features read from the cache") == 4
    again, first = (
        json.loads((folder / "results.json").read_text())["results"] for folder in (tmp_path, first_run[0])
    )
    assert again == first
    with pytest.raises(AssertionError, match="the encoder ran"):
        run_here(arguments(corpus, tmp_path, encoders), monkeypatch)


@pytest.fixture(scope="module")
def two_sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs and a conversion in two widths; two of them MAWS of one size, one of nobody knows what."""
    folder = tmp_path_factory.mktemp("sizes")
    stages = {"mae": ["mae"], "wsp": ["wsp"], "maws": ["mae", "wsp"], "again": ["mae", "wsp"], "foreign": []}
    for seed, (name, led) in enumerate(stages.items()):
        for width in (16, 32) if name in ("mae", "maws") else (32,):
            torch.manual_seed(seed)
            MawsViTModel(tiny_config(hidden_size=width)).save_pretrained(folder / f"{name}-{width}")
            if led:
                write_ledger(folder / f"{name}-{width}", [Stage(stage, images=1, flops=1) for stage in led])
    (folder / "maws-16" / "training.json").unlink()  # as a conversion has it
    (folder / "maws-16" / "conversion.json").write_text('{"released_model": "maws-vit-b"}')
    return folder


def test_sizes_by_pretrainings_make_one_table(two_sizes, corpus, tmp_path, monkeypatch, capsys):
    models = [f"SWAG={two_sizes / 'wsp-32'}", *sorted(two_sizes.glob("*-32"))[::-1], *sorted(two_sizes.glob("*-16"))]
    models.remove(two_sizes / "wsp-32")
    run_here(arguments(corpus, tmp_path, models), monkeypatch)
    text, shown = (tmp_path / "table.md").read_text(), capsys.readouterr().out
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert lines[0] == ["linear top1 (%)", "16x2/8", "32x2/8"]
    rows = {line[0]: line[1:] for line in lines[2:]}
    assert list(rows) == ["MAE", "MAWS", "SWAG", "unknown"]
    content = json.loads((tmp_path / "results.json").read_text())
    places = {
        training: [[Path(cell["encoder"]).name for cell in cells] for cells in row]
        for training, row in content["table"]["rows"].items()
    }
    assert places == {
        "MAE": [["mae-16"], ["mae-32"]],
        "MAWS": [["maws-16"], ["maws-32", "again-32"]],
        "SWAG": [[], ["wsp-32"]],
        "unknown": [[], ["foreign-32"]],
    }
    top1 = {Path(r["encoder"]).name: f"{100 * r['linear']['top1']:.1f}" for r in content["results"]}
    for training, cells in places.items():
        assert rows[training] == [" / ".join(top1[name] for name in names) or "-" for names in cells]
    both = f"MAWS, 32x2/8 is 2 encoders: {two_sizes / 'maws-32'} ({top1['maws-32']}), {two_sizes / 'again-32'}"
    assert both in text
    assert both in shown
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_finished_before_a_kill_is_not_probed_again(two_sizes, corpus, tmp_path, monkeypatch, capsys):
    from maws_hf.evaluation import linear_probe

    real, probed = linear_probe.linear_probe, []

    def counted(*data: object, **options: object) -> object:
        if len(probed) == 2:
            raise ValueError("killed")
        probed.append(data)
        return real(*data, **options)

    monkeypatch.setattr(linear_probe, "linear_probe", counted)
    models = [two_sizes / name for name in ("mae-16", "mae-32", "foreign-32")]
    with pytest.raises(pytest.fail.Exception, match="killed"):
        run_here(arguments(corpus, tmp_path, models), monkeypatch)
    assert not (tmp_path / "results.json").exists()
    monkeypatch.setattr(linear_probe, "linear_probe", real)
    fresh = arguments(corpus, tmp_path / "fresh", models, feature_cache=tmp_path / "features")
    run_here(fresh, monkeypatch)
    probed.pop()  # one more may be probed now
    monkeypatch.setattr(linear_probe, "linear_probe", counted)
    run_here(arguments(corpus, tmp_path, models), monkeypatch)
    assert capsys.readouterr().out.count("probed before") == 2
    assert len(probed) == 2
    again, expected = (json.loads((f / "results.json").read_text())["results"] for f in (tmp_path, tmp_path / "fresh"))
    assert again == expected
    with pytest.raises(pytest.fail.Exception, match="killed"):  # another seed is another probe
        run_here(arguments(corpus, tmp_path, models, seed=1), monkeypatch)


def test_a_folder_that_is_missing_is_told_before_the_first_encoder_runs(two_sizes, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(MawsViTModel, "forward", lambda *_, **__: pytest.fail("the encoder ran"))
    models = [two_sizes / "mae-16", two_sizes / "nothere"]
    with pytest.raises(pytest.fail.Exception, match=r"there is no folder .*nothere"):
        run_here(arguments(corpus, tmp_path, models), monkeypatch)


def test_an_impossible_output_folder_is_told_before_anything_is_read(tmp_path, monkeypatch):
    with pytest.raises(pytest.fail.Exception, match=f"--output_dir {__file__}/run cannot be written to"):
        run_here(arguments(tmp_path / "no data", Path(__file__, "run"), [tmp_path / "no encoder"]), monkeypatch)


@pytest.mark.parametrize("other", ["WSP={}", "{}"])
def test_an_encoder_comes_once(other, two_sizes, corpus, tmp_path, monkeypatch, capsys):
    models = [two_sizes / "mae-16", other.format(two_sizes / "mae-16")]
    with pytest.raises(pytest.fail.Exception):
        run_here(arguments(corpus, tmp_path, models), monkeypatch)
    assert "a list of different encoders" in capsys.readouterr().err


def test_label_lists_are_scored_by_mean_average_precision(corpus: Path, encoders: list[Path], tmp_path: Path):
    options = {"label_column_name": "tags", "objective": "binary", "protocol": "mae", "k": 3, "bf16": True}
    output = run(arguments(corpus, tmp_path, encoders[:1], **options))
    (result,) = json.loads((tmp_path / "results.json").read_text())["results"]
    assert result["classes"] == 4
    assert result["knn"] == {"3": {"mAP": 1.0}}
    assert set(result["linear"]) == {"mAP"}
    assert "linear mAP" in output


def test_of_two_image_columns_the_named_one_is_read(corpus, encoders, tmp_path, monkeypatch, capsys):
    for file in corpus.glob("*.parquet"):
        rows = Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "arrow"))
        mask = [{"bytes": draw_image(0), "path": "mask.png"}] * len(rows)
        rows.add_column("mask", mask, feature=ImageFeature()).to_parquet(tmp_path / "two" / file.name)
    with pytest.raises(pytest.fail.Exception, match="name it with --image_column_name"):
        run_here(arguments(tmp_path / "two", tmp_path / "run", encoders[:1]), monkeypatch)
    parameters = arguments(tmp_path / "two", tmp_path / "run", encoders[:1], image_column_name="image")
    run_here(parameters, monkeypatch)
    (result,) = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    assert result["linear"]["top1"] == 1.0


def test_what_a_probe_is_told_reaches_it_and_tells_its_result_from_others(monkeypatch, tmp_path):
    """Of features that nobody computes: what is asked of the heads, and when a result is another one."""
    run, told = load_script("run_linear_probe.py", monkeypatch), []
    torch.manual_seed(0)
    labels = torch.arange(30) % 3

    def features_of(options, name, encoder, split) -> Features:
        rows = torch.nn.functional.one_hot(labels, 8).float() + 0.1 * torch.randn(30, 8)
        digest = f"{split} {options.image_size}"
        return Features(rows, labels.tolist(), list(map(str, range(30))), [], ["a", "b", "c"], digest)

    def linear_probe(train, test, protocol, **how) -> LinearProbeResult:
        told.append({**how, "protocol": protocol})
        return really(train, test, replace(protocol, epochs=1, warmup_epochs=0), **how)

    really = run.linear_probe
    monkeypatch.setattr(run, "read_features", features_of)
    monkeypatch.setattr(run, "linear_probe", linear_probe)

    def score(**options: object) -> dict:
        data = {"model_name_or_path": ["x"], "dataset_name": "d", "output_dir": str(tmp_path)}
        settings = run.ProbeOptions(**{**data, "k": [3], **options})
        return run.score(settings, "x", SimpleNamespace(device=torch.device("cpu")))

    changes = [{}, {"learning_rates": [0.1, 0.2]}, {"validation_share": 0.3}, {"seed": 4}, {"k": [5, 2]}]
    changes += [{"protocol": "mae"}, {"objective": "binary"}, {"num_train_epochs": 7}, {"image_size": 48}]
    for number, options in enumerate(changes, start=1):
        first, again = score(**options), score(**options)
        assert first["linear"] == again["linear"]
        assert len(told) == number
        assert list(first["knn"]) == [str(k) for k in options.get("k", [3])]
    plain = {
        "learning_rates": None,
        "validation_share": 0.1,
        "seed": 0,
        "device": torch.device("cpu"),
        "protocol": PROTOCOLS["sgd"],
    }
    assert told[0] == plain
    assert told[1]["learning_rates"] == [0.1, 0.2]
    assert told[2]["validation_share"] == 0.3
    assert told[3]["seed"] == 4
    assert told[5]["protocol"] == PROTOCOLS["mae"]
    assert told[6]["protocol"].objective == "binary"
    assert told[7]["protocol"].epochs == 7


def test_a_shorter_probe_warms_up_for_as_large_a_share(monkeypatch):
    run = load_script("run_linear_probe.py", monkeypatch)
    options = {"model_name_or_path": ["x"], "dataset_name": "d", "output_dir": "o", "protocol": "mae"}
    protocol = run.build_protocol(run.ProbeOptions(**options, num_train_epochs=18))
    assert (protocol.epochs, protocol.warmup_epochs) == (18, 2)  # MAE: 10 of 90


def result_of(encoder: str, top1: float, rate: float) -> dict:
    images, sweep = {"train": 4, "test": 2}, [{"learning_rate": rate} for rate in (0.1, 0.2, 0.4)]
    result = {"encoder": encoder, "row": "MAE", "size": "B", "parameters": 1, "training": [], "classes": 2}
    scores = {"linear": {"top1": top1, "top5": 1.0}, "knn": {"20": {"top1": 0.5}}}
    return {**result, **scores, "images": images, "learning_rate": rate, "validation": sweep}


def test_the_best_linear_probe_is_the_first_row_and_a_rate_at_the_edge_is_told(tmp_path, monkeypatch, capsys):
    run = load_script("run_linear_probe.py", monkeypatch)
    results = {
        "low": result_of("low", 0.25, 0.1),
        "high": result_of("high", 0.75, 0.4),
        "mid": result_of("mid", 0.5, 0.2),
    }
    monkeypatch.setattr(run, "probe", lambda options, argument: results[argument])
    monkeypatch.setattr(run.ProbeOptions, "open", lambda options, split: None)
    monkeypatch.setattr(run, "refuse_missing_folder", lambda name: None)
    with called_with(arguments(tmp_path / "data", tmp_path / "run", list(results)), run, monkeypatch):
        assert run.main() == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.split()[:1] and line.split()[0] in results and ":" not in line]
    assert [row[:2] for row in rows] == [["high", "75.00"], ["mid", "50.00"], ["low", "25.00"]]
    told = [line.partition(";")[0] for line in lines if "learning rate did best" in line]
    assert told == ["low: the lowest learning rate did best", "high: the highest learning rate did best"]


@pytest.mark.parametrize(
    ("released", "row"),
    [("maws-vit-b-mae", ["mae"]), ("maws-vit-b", ["mae", "wsp"]), ("maws-vit-b-clip", ["mae", "wsp", "lit"])],
)
def test_conversions_went_through_the_papers_stages(released: str, row: list[str], tmp_path, monkeypatch):
    run = load_script("run_linear_probe.py", monkeypatch)
    assert run.stages_of(str(tmp_path)) == []
    (tmp_path / "conversion.json").write_text(json.dumps({"released_model": released}))
    assert run.stages_of(str(tmp_path)) == row


def test_a_class_that_no_training_image_shows_is_named(encoders, tmp_path, monkeypatch, capsys):
    for split, classes in (("train", "ab"), ("test", "abc")):
        for number, name in enumerate(classes):
            (folder := tmp_path / "photos" / split / name).mkdir(parents=True)
            for picture in range(4):
                (folder / f"{picture}.png").write_bytes(draw_image(number))
    for seen in ("ab", "abc"):
        run_here(arguments(tmp_path / "photos", tmp_path / "run", encoders[:1], k=1), monkeypatch)
        sentence = "no training image in train shows 1 of the 3 classes in test (c): their images count as wrong"
        assert (sentence in capsys.readouterr().out) == (seen == "ab")
        (folder := tmp_path / "photos" / "train" / "c").mkdir(exist_ok=True)
        (folder / "0.png").write_bytes(draw_image(2))


def test_weights_that_a_checkpoint_lacks_are_no_encoder(corpus: Path, encoders: list[Path], tmp_path: Path):
    from safetensors.torch import load_file, save_file

    model = MawsViTModel.from_pretrained(encoders[0])
    model.save_pretrained(tmp_path / "partial")
    weights = load_file(tmp_path / "partial" / "model.safetensors")
    del weights["layers.0.mlp.fc1.weight"]
    save_file(weights, tmp_path / "partial" / "model.safetensors", metadata={"format": "pt"})
    output = run(arguments(corpus, tmp_path / "run", [tmp_path / "partial"]), expected=1)
    assert "lacks 1 weights of MawsViTModel, among them layers.0.mlp.fc1.weight" in output.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"protocol": "adam"}, "--protocol adam is not possible: it must be one of mae, sgd"),
        ({"eval_split": "train"}, "--eval_split train is not possible"),
        ({"k": 0}, "--k [0] is not possible"),
        ({"k": 90}, "--k 90 is more than the 89 training images in train"),
        ({"resize_size": 31}, "--resize_size 31 is less than the 32 pixels of "),
        ({"image_size": 48, "resize_size": 40}, "--resize_size 40 is less than the 48 pixels of --image_size"),
        ({"label_column_name": "nowhere"}, "no label column 'nowhere'"),
        ({"eval_split": "validation"}, "no split 'validation'"),
        ({"learning_rates": -1}, "--learning_rates [-1.0] is not possible"),
        ({"validation_share": 1}, "--validation_share 1.0 is not possible"),
        ({"image_size": 30}, "--image_size 30 is no multiple of 8, the side of a patch of "),
    ],
)
def test_a_bad_option_is_one_line_that_names_it(
    options: dict,
    wanted: str,
    first_run: tuple[Path, str],
    corpus: Path,
    encoders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    options = {"feature_cache": first_run[0] / "features", **options}
    with pytest.raises(pytest.fail.Exception) as failed:
        run_here(arguments(corpus, tmp_path, encoders[:1], **options), monkeypatch)
    message = str(failed.value) if str(failed.value) != "2" else capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("run_linear_probe.py: error: ")
    assert wanted in message
    assert "\n" not in message
