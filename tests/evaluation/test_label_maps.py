"""The tables of classes, and how models and data sets name them."""

import json

import pytest

from maws_hf.data.prompts import load_prompts
from maws_hf.evaluation import label_maps
from maws_hf.evaluation.label_maps import (
    LabelMapError,
    class_number,
    class_numbers,
    imagenet_classes,
    imagenet_subset,
    model_columns,
    object_folder,
    objectnet_classes,
    read_table,
)

WNIDS = list(imagenet_classes())
NAMES = list(imagenet_classes().values())


def labels(names: list[str]) -> dict[int, str]:
    return dict(enumerate(names))


def test_imagenet_has_1000_classes_in_the_order_of_their_wnids():
    assert len(WNIDS) == 1000
    assert sorted(WNIDS) == WNIDS
    assert (WNIDS[0], NAMES[0], WNIDS[999]) == ("n01440764", "tench, Tinca tinca", "n15075141")


def test_the_names_are_in_the_order_of_clips_prompts():
    """An independent list of the package: a shift by one would leave hardly a name in common."""
    clip = [names[0].casefold() for names in load_prompts("imagenet").classes]
    same = sum(name.split(", ")[0].casefold() == other for name, other in zip(NAMES, clip, strict=True))
    assert same > 600


def test_subsets_have_200_classes_and_objectnet_shares_113_of_313():
    for name in ("imagenet_a", "imagenet_r"):
        subset = imagenet_subset(name)
        assert len(set(subset)) == 200
        assert list(subset) == sorted(subset)
    assert imagenet_subset("imagenet_a")[:4] == (6, 11, 13, 15)
    assert imagenet_subset("imagenet_r")[:4] == (1, 2, 4, 6)
    objects = objectnet_classes()
    assert (len(objects), sum(map(bool, objects.values()))) == (313, 113)
    assert objects["air_freshener"] == ()
    assert [NAMES[number].split(",")[0] for number in objects["alarm_clock"]] == ["analog clock", "digital clock"]


@pytest.mark.parametrize("name", ["imagenet_classes", "imagenet_subsets", "objectnet_classes"])
def test_a_changed_table_is_refused(name, tmp_path):
    content = json.loads((label_maps.RESOURCES / f"{name}.json").read_text(encoding="utf-8"))
    assert content["source"]
    assert content["licence"]
    file = tmp_path / "table.json"
    file.write_text(json.dumps(content))
    assert read_table(file) == content["classes"]
    key = next(iter(content["classes"]))
    content["classes"][key] = content["classes"][key][:-1] or ["n01440764"]
    file.write_text(json.dumps(content))
    with pytest.raises(LabelMapError, match=r"table\.json: its classes have the sha256"):
        read_table(file)


def test_integer_folders_are_taken_at_their_word_in_whatever_order():
    folders = sorted(map(str, range(1000)))
    assert folders[:4] == ["0", "1", "10", "100"]
    assert class_numbers(folders) == [int(folder) for folder in folders]
    assert class_numbers(["2", "10"]) == [2, 10]
    assert [class_number(7), class_number("7"), class_number("n01440764")] == [7, 7, 0]


@pytest.mark.parametrize("label", ["1000", -1, "-1", "tench", "n00000000", "", "²"])
def test_what_is_no_class_is_an_error(label):
    with pytest.raises(LabelMapError, match="is no class of ImageNet"):
        class_number(label)


def test_1000_names_are_understood_in_imagenets_order_only():
    assert class_numbers(NAMES) == list(range(1000))
    assert class_numbers([f"kind {number}" for number in range(1000)]) == list(range(1000))
    with pytest.raises(LabelMapError, match="not in ImageNet's order: its class 0 is 'goldfish"):
        class_numbers(NAMES[1:] + NAMES[:1])
    with pytest.raises(LabelMapError, match="'tench, Tinca tinca' is no class"):
        class_numbers(NAMES[:200])


def test_a_model_of_1000_classes_is_taken_to_have_their_order():
    prompts = [names[0] for names in load_prompts("imagenet").classes]  # differ from WordNet's in many words
    for names in ([f"LABEL_{number}" for number in range(1000)], NAMES, prompts, WNIDS):
        assert model_columns(labels(names), [5, 0, 999], "model") == [5, 0, 999]
    for names in (NAMES[::-1], [name.upper().replace(" ", "_") for name in NAMES[::-1]]):
        with pytest.raises(LabelMapError, match="model is not in ImageNet's order"):
            model_columns(labels(names), [0], "model")


def test_wnids_say_where_a_class_is_whatever_their_number_and_order():
    assert model_columns(labels(WNIDS[::-1]), [0, 999], "model") == [999, 0]
    assert model_columns(labels([WNIDS[7], "n00000000", WNIDS[3]]), [3, 7], "model") == [2, 0]
    assert model_columns({1: WNIDS[3], 0: WNIDS[7]}, [3, 7], "model") == [1, 0], "columns, not the order of writing"
    with pytest.raises(LabelMapError, match=f"model lacks 2 of 3 classes that it must know: {WNIDS[1]}, {WNIDS[2]}$"):
        model_columns(labels(WNIDS[:1]), [0, 1, 2], "model")
    with pytest.raises(LabelMapError, match="n01440764 twice"):
        model_columns(labels([WNIDS[0], WNIDS[0]]), [0], "model")


def test_class_numbers_as_text_say_where_a_class_is():
    folders = sorted(map(str, range(1000)))
    columns = model_columns(labels(folders), range(1000), "model")
    assert [folders[column] for column in columns] == [str(number) for number in range(1000)]
    assert model_columns(labels(["7", "3"]), [3, 7], "model") == [1, 0]
    with pytest.raises(LabelMapError, match=f"lacks 1 of 1 .* know: {WNIDS[1]}; its labels, which are numbers"):
        model_columns(labels(["7", "3"]), [1], "model")


def test_numbers_of_no_class_are_understood_in_order_only():
    counted = [str(number) for number in range(1, 1001)]
    assert model_columns(labels(counted), [0, 999], "model") == class_numbers(counted)[:1000:999] == [0, 999]
    for read in (class_numbers, lambda names: model_columns(labels(names), [0], "model")):
        with pytest.raises(LabelMapError, match="has classes named by numbers up to 1000, not in their order"):
            read(sorted(counted))


@pytest.mark.parametrize("names", [["LABEL_0", "LABEL_1"], ["cat"] * 1001, [*WNIDS[:20], "background"]])
def test_another_number_of_classes_is_refused_unless_they_are_wnids(names):
    with pytest.raises(LabelMapError, match=f"model has {len(names)} classes"):
        model_columns(labels(names), [0], "model")


def test_folders_of_objects_are_the_313():
    assert object_folder("air_freshener") == "air_freshener"
    for label in ("n01440764", 3, "Air freshener"):
        with pytest.raises(LabelMapError, match="none of ObjectNet's 313 folders"):
            object_folder(label)
