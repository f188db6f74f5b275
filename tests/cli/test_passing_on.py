"""Every option of a command reaches the function that the command calls."""

import inspect
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maws_hf.cli import main
from maws_hf.hub.original import Sizes

CONVERT = ["convert", "a.pt", "--output_dir", "out", "--num_attention_heads", "4"]
PUSH = ["push", "run", "--repo_id", "org/tiny", "--staging_dir", "s"]
TOWER = ["text-tower", "--output_dir", "tower"]
NO_SIZES = Sizes(num_attention_heads=4)
COMMANDS: dict[str, tuple[list[str], str, dict[str, Any]]] = {
    "convert": (
        CONVERT,
        "maws_hf.hub.original.convert_checkpoint",
        {"file": Path("a.pt"), "output_dir": Path("out"), "model": None, "sizes": NO_SIZES, "sha256": None}
        | {"accept_unknown_sha256": False, "labels": None, "tokenizer_name_or_path": None, "verify": None},
    ),
    "convert, all": (
        [*CONVERT, "--model", "maws-vit-b", "--sha256", "ab", "--accept_unknown_sha256", "--labels", "l.txt"]
        + ["--tokenizer_name_or_path", "xlm-r", "--no_verify"],
        "maws_hf.hub.original.convert_checkpoint",
        {"model": "maws-vit-b", "sha256": "ab", "accept_unknown_sha256": True, "labels": Path("l.txt")}
        | {"tokenizer_name_or_path": "xlm-r", "verify": False},
    ),
    "convert, verified": ([*CONVERT, "--verify"], "maws_hf.hub.original.convert_checkpoint", {"verify": True}),
    "convert, sizes": (
        [*CONVERT, "--patch_size", "14", "--image_size", "96", "128", "--decoder_num_attention_heads", "8"]
        + ["--text_num_attention_heads", "12", "--layer_norm_eps", "1e-5", "--norm_pix_loss", "true"],
        "maws_hf.hub.original.convert_checkpoint",
        {"sizes": Sizes(14, (96, 128), 4, 8, 12, layer_norm_eps=1e-5, norm_pix_loss=True)},
    ),
    "convert, plain pixels": (
        [*CONVERT, "--norm_pix_loss", "false"],
        "maws_hf.hub.original.convert_checkpoint",
        {"sizes": Sizes(num_attention_heads=4, norm_pix_loss=False)},
    ),
    "text-tower": (
        TOWER,
        "maws_hf.hub.corpus_texts.requested_texts",
        {"dataset": None, "splits": ["train"], "column": "captions", "languages": None, "text_files": None}
        | {"further": []},
    ),
    "text-tower, all": (
        [*TOWER, "--dataset_name", "data", "--dataset_split", "a", "b", "--caption_column_name", "alt"]
        + ["--languages", "fr", "de", "--text_file", "t.txt", "--keep_text", "x"],
        "maws_hf.hub.corpus_texts.requested_texts",
        {"dataset": "data", "splits": ["a", "b"], "column": "alt", "languages": ["fr", "de"]}
        | {"text_files": [Path("t.txt")], "further": ["x"]},
    ),
    "push": (
        [*PUSH, "--dry_run"],
        "maws_hf.hub.prepare.prepare_release",
        {"repo_id": "org/tiny", "architecture": None, "card": None, "license": None, "native": True},
    ),
    "push, all": (
        [*PUSH, "--dry_run", "--architecture", "vit", "--card", "c.md", "--license", "mit", "--no_native"],
        "maws_hf.hub.prepare.prepare_release",
        {"architecture": "vit", "card": Path("c.md"), "license": "mit", "native": False},
    ),
    "doctor": (
        ["doctor", "--output_dir", "out", "--dataset_name", "data", "--dataset_split", "test"]
        + ["--image_column_name", "photo", "--size", "vit_l16", "--save_total_limit", "5"],
        "maws_hf.training.health.Plan",
        {"output_dir": Path("out"), "dataset_name": "data", "dataset_split": "test", "image_column_name": "photo"}
        | {"size": "vit_l16", "save_total_limit": 5},
    ),
    "demo-data emoji": (
        ["demo-data", "emoji", "--output_dir", "out", "--image_size", "96", "--sources_dir", "npm"],
        "maws_hf.data.demo_emoji.build_emoji_corpus",
        {"output_dir": Path("out"), "image_size": 96, "sources_dir": Path("npm")},
    ),
    "demo-data fashion-mnist": (
        ["demo-data", "fashion-mnist", "--output_dir", "out", "--source_dir", "gz"],
        "maws_hf.data.demo_fashion_mnist.build_fashion_mnist_corpus",
        {"output_dir": Path("out"), "source_dir": Path("gz")},
    ),
    "demo-report": (
        ["demo-report", "--runs_dir", "r", "--data_dir", "d", "--labels_dir", "l", "--output", "o.html"],
        "maws_hf.reporting.demo_report.build_report",
        {"runs_dir": Path("r"), "data_dir": Path("d"), "labels_dir": Path("l"), "output_file": Path("o.html")},
    ),
}


class ReachedError(Exception):
    """The function was called."""


def given_to(target: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the function is called with, by the names of its parameters; it does nothing but end the command."""
    module, _, name = target.rpartition(".")
    signature = inspect.signature(getattr(import_module(module), name))
    given: dict[str, Any] = {}

    def called(*arguments: object, **options: object) -> None:
        given.update(signature.bind(*arguments, **options).arguments)
        raise ReachedError

    monkeypatch.setattr(target, called)
    return given


@pytest.mark.parametrize("name", COMMANDS)
def test_options_arrive(name: str, monkeypatch: pytest.MonkeyPatch):
    argv, target, expected = COMMANDS[name]
    given = given_to(target, monkeypatch)
    with pytest.raises((ReachedError, SystemExit)):
        main(argv)
    assert {option: given[option] for option in expected} == expected


@pytest.mark.parametrize(("flags", "private"), [([], False), (["--private"], True)])
def test_a_release_is_private_if_it_is_said_to_be(flags: list[str], private: bool, monkeypatch: pytest.MonkeyPatch):
    folder = SimpleNamespace(folder=Path("main"))
    prepared = SimpleNamespace(differences={}, native=None, main=folder)
    monkeypatch.setattr("maws_hf.hub.prepare.prepare_release", lambda *_, **__: prepared)
    monkeypatch.setattr("maws_hf.hub.release.describe_plan", lambda *_, **__: "")
    monkeypatch.setattr("maws_hf.hub.release.usable_api", lambda: "the Hub")
    given = given_to("maws_hf.hub.release.push_release", monkeypatch)
    with pytest.raises((ReachedError, SystemExit)):
        main([*PUSH, "--tag", "v1", *flags])
    assert (given["private"], given["tag"], given["api"], given["native"]) == (private, "v1", "the Hub", None)


def test_a_tower_is_built_of_the_texts_and_verified_unless_that_is_forbidden(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("maws_hf.hub.corpus_texts.requested_texts", lambda *_, **__: ["a", "b"])
    given = given_to("maws_hf.hub.text_tower.build_text_tower", monkeypatch)
    for flags, verify in (([], True), (["--no_verify"], False)):
        with pytest.raises((ReachedError, SystemExit)):
            main([*TOWER, "--packages_dir", "wheels", *flags])
        expected = {"texts": ["a", "b"], "packages_dir": Path("wheels"), "verify": verify}
        assert {option: given[option] for option in expected} == expected
