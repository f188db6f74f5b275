"""Texts of data sets and files, chosen by column, split and language."""

from pathlib import Path

import pytest

from maws_hf.hub.corpus_texts import CorpusTextError, caption_texts, requested_texts, text_file_lines

datasets = pytest.importorskip("datasets")


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """Two splits with captions of all three kinds."""
    folder = tmp_path / "corpus"
    for split, word in (("train", "dog"), ("test", "cat")):
        rows = {
            "captions": [
                [{"language": "en", "text": f"a {word}"}, {"language": "de", "text": f"{word} auf Deutsch"}],
                [{"language": "fr", "text": f"un {word}"}],
            ],
            "alt": [f"one {word}", None],
            "tags": [[word, "animal"], []],
            "number": [1, 2],
        }
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}-00000.parquet")
    return str(folder)


def read(corpus: str, column: str = "captions", splits: tuple[str, ...] = ("train",), languages=None) -> list[str]:
    return list(caption_texts(corpus, splits=splits, column=column, languages=languages))


def test_captions_of_all_or_some_languages_and_splits(corpus: str):
    assert read(corpus) == ["a dog", "dog auf Deutsch", "un dog"]
    assert read(corpus, languages=["en", "fr"], splits=("train", "test")) == ["a dog", "un dog", "a cat", "un cat"]


def test_texts_and_lists_of_texts(corpus: str):
    assert read(corpus, "alt") == ["one dog"]
    assert read(corpus, "tags") == ["dog", "animal"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"column": "caption"}, "has only the columns captions, alt, tags, number"),
        ({"column": "number"}, "column number .* holds values of type int"),
        ({"languages": ["en", "xx"]}, "--languages xx: .* has captions in de, en, fr"),
        ({"column": "alt", "languages": ["en"]}, "--languages en: .* has texts without a language"),
    ],
)
def test_what_is_not_there_is_named(corpus: str, arguments: dict, message: str):
    with pytest.raises(CorpusTextError, match=message):
        read(corpus, **arguments)


def test_lines_of_a_text_file(tmp_path: Path):
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeffréd heart\r\n\n  two \n".encode())
    assert list(text_file_lines([path])) == ["réd heart", "two"]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorpusTextError, match=f"--text_file {path} cannot be read"):
        list(text_file_lines([path]))


def test_options_that_need_another_one_say_so(tmp_path: Path):
    nothing = {"splits": ["train"], "column": "captions", "languages": None, "text_files": None, "further": []}
    assert requested_texts(None, **nothing) is None
    with pytest.raises(CorpusTextError, match="--languages chooses"):
        requested_texts(None, **{**nothing, "languages": ["en"]})
    with pytest.raises(CorpusTextError, match="--keep_text adds"):
        requested_texts(None, **{**nothing, "further": ["a photo"]})
