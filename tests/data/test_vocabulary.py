"""The vocabulary file: what is saved is loaded, and what was not saved by us is refused by name."""

import json
from dataclasses import replace

import pytest

from maws_hf.data.vocabulary import LabelClass, Vocabulary, VocabularyError

DOG = LabelClass("n02084071", "dog", "a member of the genus Canis", 7, 2, (("dog", 6), ("dogs", 3)))
CAFE = LabelClass("n02935658", "café", "a small restaurant", 4, 1)
CAT = LabelClass("n02121620", "cat", "feline mammal", 4, 4)


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(images=7, min_count=2, classes=(DOG, CAT, CAFE))


def test_what_is_saved_is_loaded(vocabulary, tmp_path):
    vocabulary.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json") == vocabulary
    assert "café" in (tmp_path / "vocabulary.json").read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["vocabulary.json"]


def test_a_class_that_is_no_images_rarest_is_loaded_too(tmp_path):
    vocabulary = Vocabulary(images=4, min_count=0, classes=(replace(DOG, rarest=0, tags=(("dog", 0),)), CAT))
    vocabulary.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json") == vocabulary


def test_encode_gives_sorted_distinct_places(vocabulary):
    assert len(vocabulary) == 3
    assert (len(DOG.tags), CAT.tags) == (2, ())
    assert vocabulary.index == {DOG.id: 0, CAT.id: 1, CAFE.id: 2}
    assert vocabulary.encode([CAFE.id, DOG.id, CAFE.id, "n00000000"]) == [0, 2]
    many = tuple(replace(CAT, id=f"n{number:08d}", rarest=0) for number in range(9))
    many = Vocabulary(images=0, min_count=1, classes=many)
    assert many.encode([many.classes[8].id, many.classes[1].id]) == [1, 8]
    assert vocabulary.encode([]) == vocabulary.encode(iter(["n00000000"])) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": (CAT, DOG, CAFE)}, "classes: they are not in the order of falling count, then id"),
        ({"classes": (DOG, CAFE, CAT)}, "classes: they are not in the order of falling count, then id"),
        ({"classes": (DOG, CAT, CAT)}, "classes: n02121620 is there twice"),
        ({"images": 8}, "images: 8 is not the sum of all `rarest`, 7"),
    ],
)
def test_contradictions_are_refused(vocabulary, fields, message):
    with pytest.raises(VocabularyError, match=message):
        replace(vocabulary, **fields)


def change(content: dict, path: tuple, value: object) -> dict:
    *parents, last = path
    place = content
    for key in parents:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("images",), None, "images: missing"),
        (("colour",), 1, "colour: unknown field"),
        (("min_count",), "2", "min_count: expected a whole number, 0 or more, got '2'"),
        (("min_count",), True, "min_count: expected a whole number, 0 or more, got True"),
        (("images",), -7, "images: expected a whole number"),
        (("classes",), {}, r"classes: expected a list, got \{\}"),
        (("classes", 1), "cat", r"classes\[1\]: expected an object, got 'cat'"),
        (("classes", 1, "name"), 7, r"classes\[1\]\.name: expected text, got 7"),
        (("classes", 1, "count"), "x" * 999, r"classes\[1\]\.count: expected a whole number, .*, got 'x{39}\.\.\.;"),
        (("classes", 1, "gloss"), None, r"classes\[1\]\.gloss: missing"),
        (("classes", 0, "count"), 7.0, r"classes\[0\]\.count: expected a whole number, 0 or more, got 7\.0"),
        (("classes", 0, "rarest"), "2", r"classes\[0\]\.rarest: expected a whole number, 0 or more, got '2'"),
        (("classes", 0, "id"), 2084071, r"classes\[0\]\.id: expected text, got 2084071"),
        (("classes", 0, "tags"), [["dog"]], r"classes\[0\]\.tags: expected pairs of a tag and its count"),
        (("classes", 0, "tags"), [["dog", 6, 1]], r"classes\[0\]\.tags: expected pairs of a tag and its count"),
        (("classes", 0, "tags"), [["dog", "6"]], r"classes\[0\]\.tags: expected a whole number, 0 or more, got '6'"),
        (("classes", 0, "tags"), [[7, 6]], r"classes\[0\]\.tags: expected text, got 7"),
        (("classes", 0, "tags"), ["do"], r"classes\[0\]\.tags: expected a list, got 'do'"),
        (("classes", 0, "count"), 1, "classes: they are not in the order"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused_by_field(vocabulary, tmp_path, path, value, message):
    file = tmp_path / "vocabulary.json"
    vocabulary.save(file)
    file.write_text(json.dumps(change(json.loads(file.read_text(encoding="utf-8")), path, value)))
    with pytest.raises(VocabularyError, match=rf"vocabulary\.json is not a vocabulary: {message}.*build it again"):
        Vocabulary.load(file)


def test_a_torn_file_is_refused(tmp_path):
    file = tmp_path / "vocabulary.json"
    file.write_text('{"images": 7, "cla')
    with pytest.raises(VocabularyError, match=r"vocabulary\.json is not JSON"):
        Vocabulary.load(file)
    file.write_bytes(b'{"images": "\xff')
    with pytest.raises(VocabularyError, match=r"vocabulary\.json is not JSON"):
        Vocabulary.load(file)
    file.write_text("[]")
    with pytest.raises(VocabularyError, match=r"the file: expected an object, got \[\]"):
        Vocabulary.load(file)
    with pytest.raises(FileNotFoundError):
        Vocabulary.load(tmp_path / "none.json")
