from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Features, LargeList, List, Value

from maws_hf.data.sources import DataSourceError
from maws_hf.data.targets import class_names, find_labels, pad_labels
from maws_hf.data.vocabulary import LabelClass, Vocabulary


def vocabulary() -> Vocabulary:
    rows = [
        ("n02084071", "dog", 5),
        ("n02012849", "crane", 3),
        ("n03126707", "crane", 2),
        ("n02099601", "golden retriever", 1),
    ]
    classes = tuple(
        LabelClass(id=id, name=name, gloss=f"what a {name} is", count=count, rarest=count, tags=((name, count),))
        for id, name, count in rows
    )
    return Vocabulary(images=11, min_count=1, classes=classes)


def test_synset_ids_become_sorted_distinct_indices_and_rare_ones_none(tmp_path: Path):
    vocabulary().save(tmp_path / "vocabulary.json")
    features = Features({"synsets": List(Value("string")), "label": ClassLabel(names=["a"])})
    reader = find_labels(features, None, vocabulary_file=tmp_path / "vocabulary.json")
    assert reader.column == "synsets"
    assert reader({"synsets": ["n03126707", "n02084071", "n03126707", "n99999999", None]}) == [0, 2]
    assert reader({"synsets": None}) == reader({"synsets": []}) == []


def test_a_row_of_targets_marks_the_same_classes():
    reader = find_labels(Features({"labels": List(ClassLabel(names=["a", "b", "c", "d"]))}), None)
    assert reader.multi_hot({"labels": [3, 1]}).tolist() == [False, True, False, True]
    assert not reader.multi_hot({"labels": [-1]}).any()


def test_a_split_that_numbers_its_classes_otherwise_is_read_by_name():
    reader = find_labels(Features({"label": ClassLabel(names=["a", "b", "c"])}), None)
    assert reader.of_split(Features({"label": ClassLabel(names=["a", "b", "c"])})) is reader
    other = reader.of_split(Features({"label": ClassLabel(names=["c", "x", "a"])}))
    assert [other({"label": label}) for label in (0, 2, -1)] == [[2], [0], []]
    assert other.multi_hot({"label": 0}).tolist() == [False, False, True]
    with pytest.raises(ValueError, match="class x in label is none of the 3"):
        other({"label": 1})
    with pytest.raises(ValueError, match=r"label 3 in label is not in 0\.\.2"):
        other({"label": 3})
    turned = reader.of_split(Features({"label": ClassLabel(names=["c", "b", "a"])}))
    assert [turned({"label": label}) for label in range(3)] == [[2], [1], [0]]
    fewer = reader.of_split(Features({"label": ClassLabel(names=["b", "c"])}))
    assert [fewer({"label": label}) for label in range(2)] == [[1], [2]]
    with pytest.raises(ValueError, match=r"label 2 in label is not in 0\.\.1"):
        fewer({"label": 2})


def test_texts_are_classes_by_alphabet():
    features = Features({"labels": List(Value("string"))})
    reader = find_labels(features, None, texts_in=lambda column: iter(["dog", "cat", "dog", "ant"]))
    assert reader.names == ("ant", "cat", "dog")
    assert reader({"labels": ["dog", None, "ant", "dog"]}) == [0, 2]
    assert reader({"labels": None}) == []
    with pytest.raises(ValueError, match=r"its class bee in labels is none of the 3 of the training split"):
        reader({"labels": ["bee"]})


def test_names_that_two_synsets_share_carry_their_ids():
    names = class_names(vocabulary())
    assert names == ("dog", "crane (n02012849)", "crane (n03126707)", "golden retriever")


@pytest.mark.parametrize(
    ("features", "sample", "expected"),
    [
        ({"label": ClassLabel(names=["a", "b"])}, {"label": 1}, [1]),
        ({"labels": List(ClassLabel(names=["a", "b", "c"]))}, {"labels": [2, 0, 2]}, [0, 2]),
        ({"labels": List(Value("int64"))}, {"labels": np.array([3, 1])}, [1, 3]),
        ({"label": Value("int32")}, {"label": None}, []),
        ({"label": Value("int32")}, {"label": -1}, []),
        ({"labels": LargeList(Value("int64"))}, {"labels": [-100, 2]}, [2]),
    ],
)
def test_class_indices_are_taken_as_they_are(features: dict, sample: dict, expected: list):
    assert find_labels(Features(features), None, num_labels=4)(sample) == expected


def test_the_fingerprint_tells_classes_their_order_and_the_column(tmp_path: Path):
    def fingerprint(column: str, names: list[str]) -> str:
        return find_labels(Features({column: ClassLabel(names=names)}), column).fingerprint

    assert fingerprint("label", ["a", "b"]) == fingerprint("label", ["a", "b"])
    others = {
        fingerprint("label", ["b", "a"]),
        fingerprint("labels", ["a", "b"]),
        fingerprint("label", ["a", "b", "c"]),
    }
    assert len(others | {fingerprint("label", ["a", "b"])}) == 4


def test_the_fingerprint_tells_synsets_of_one_name(tmp_path: Path):
    features, prints = Features({"synsets": List(Value("string"))}), set()
    for second in ("n03126707", "n03126708"):
        classes = [LabelClass(id=id, name="dog", gloss="", count=1, rarest=1) for id in ("n02084071", second)]
        renamed = (replace(classes[0], name="hound"), classes[1])  # the ids decide, however they are called
        for file, its in (("a.json", tuple(classes)), ("b.json", renamed)):
            Vocabulary(images=2, min_count=1, classes=its).save(tmp_path / file)
            prints.add((second, find_labels(features, None, vocabulary_file=tmp_path / file).fingerprint))
    assert len(prints) == len({fingerprint for _, fingerprint in prints}) == 2


def test_what_cannot_be_a_label_says_what_to_do(tmp_path: Path):
    for features, message in (
        ({"image": Value("binary")}, "no column synsets, labels or label among image"),
        ({"label": Value("int64")}, "plain integers: say of how many classes, --num_labels"),
        ({"label": Value("float32")}, r"Value\('float32'\): class indices or synset ids are wanted"),
        (
            {"synsets": List(Value("string"))},
            r"v\.json is not there \(--vocabulary_file; scripts/build_wsp",
        ),
        ({"label": ClassLabel(names=["only"])}, "the labels in label are of 1 class: two are the least"),
    ):
        with pytest.raises(DataSourceError, match=message):
            find_labels(Features(features), None, vocabulary_file=tmp_path / "v.json")
    with pytest.raises(DataSourceError, match="no column tags among label"):
        find_labels(Features({"label": Value("int64")}), "tags")
    reader = find_labels(Features({"label": Value("int64")}), "label", num_labels=3)
    with pytest.raises(ValueError, match=r"cat\.png: label 3 in label is not in 0\.\.2"):
        reader({"__key__": "cat.png", "label": 3})


def test_labels_are_padded_and_too_many_drawn_at_random():
    rng = np.random.default_rng(0)
    assert pad_labels([4, 7], 4, rng).tolist() == [4, 7, -100, -100]
    assert pad_labels([], 2, rng).tolist() == [-100, -100]
    drawn = np.stack([pad_labels(list(range(10)), 4, rng) for _ in range(2000)])
    assert all(len(set(row)) == 4 for row in drawn.tolist())
    counts = np.bincount(drawn.ravel(), minlength=10)
    assert abs(counts - 800).max() < 5 * np.sqrt(2000 * 0.4 * 0.6)
    assert pad_labels([1], 16, rng).nbytes == 64
