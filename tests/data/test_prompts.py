import hashlib
import json

import pytest
from datasets import Dataset, Features, List, Value, concatenate_datasets

from maws_hf.data.prompts import (
    DEFAULT_TEMPLATES,
    RESOURCES,
    Prompts,
    PromptsError,
    load_prompts,
    prompts_from_captions,
    prompts_from_names,
    read_captions,
)
from maws_hf.evaluation.label_maps import imagenet_classes

FRENCH = {
    "language": "fr",
    "source": "a test",
    "templates": ["une photo de {}.", "{}"],
    "classes": [["tanche"], ["poisson rouge", "cyprin doré"]],
}


@pytest.fixture
def write(tmp_path):
    def write(content: object):
        path = tmp_path / "prompts.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("name", "classes", "templates", "ends", "template_ends", "sha256"),
    [
        (
            "imagenet",
            1000,
            80,
            (("tench",), ("toilet paper",)),
            ("a bad photo of a {}.", "a tattoo of the {}."),
            "514a628848dd7ef70845011bf8c6e8da94fddf966bafdcf6c2a424553a5b7aa5",
        ),
        (
            "food101",
            101,
            1,
            (("apple pie",), ("waffles",)),
            ("a photo of {}, a type of food.", "a photo of {}, a type of food."),
            "1cd1d5733942ab84577bb7d68230e13a467e3e2de9febc65052fab785871e520",
        ),
    ],
)
def test_what_comes_with_the_package_is_whole_and_says_where_it_is_from(
    name, classes, templates, ends, template_ends, sha256
):
    prompts = load_prompts(name)
    assert (len(prompts), len(prompts.templates)) == (classes, templates)
    assert (prompts.classes[0], prompts.classes[-1]) == ends
    assert (prompts.templates[0], prompts.templates[-1]) == template_ends
    assert len(set(prompts.templates)) == templates
    assert prompts.language == "en"
    assert prompts.source.startswith("https://github.com/openai/CLIP/blob/")
    assert prompts.licence.startswith("MIT")
    content = {"templates": prompts.templates, "classes": prompts.classes}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == sha256
    assert json.loads(RESOURCES[name].read_text(encoding="utf-8"))["sha256"] == sha256


def test_a_file_may_leave_out_where_its_words_are_from(write):
    content = {name: value for name, value in FRENCH.items() if name != "source"}
    assert load_prompts(write(content)).source == "prompts.json"
    assert load_prompts(write(FRENCH)).source == "a test"


def test_a_file_in_any_language_gives_every_template_with_every_name(write):
    prompts = load_prompts(write(FRENCH))
    assert prompts.language == "fr"
    assert prompts.texts(1) == [
        "une photo de poisson rouge.",
        "une photo de cyprin doré.",
        "poisson rouge",
        "cyprin doré",
    ]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"templates": ["{c}"]}, "templates[0]: '{c}' must hold {} once"),
        ({"templates": ["{}", "{} or {}"]}, "templates[1]: '{} or {}' must hold {} once"),
        ({"templates": ["a {} of {c}"]}, "templates[0]"),
        ({"templates": []}, "templates: there is none"),
        ({"templates": "{}"}, "templates: expected a list of texts, got '{}'"),
        ({"classes": [["tench"], []]}, "classes[1]: it needs a name"),
        ({"classes": [["tench"], [" "]]}, "classes[1]: it needs a name"),
        ({"classes": {"n01440764": "tench"}}, "classes['n01440764']: expected a list of texts, got 'tench'"),
        ({"classes": 7}, "classes: expected a list or an object from label to names, got 7"),
        ({"classes": []}, "classes: there is none"),
        ({"language": None}, "language: expected text, got None"),
        ({"langauge": "fr"}, "langauge: unknown key"),
        ({"sha256": "0"}, "sha256: templates and classes have "),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_key(write, change, wanted):
    path = write({**FRENCH, **change})
    with pytest.raises(PromptsError) as raised:
        load_prompts(path)
    assert str(raised.value).startswith(f"{path}: {wanted}")


def test_files_that_hold_no_prompts_are_named(write, tmp_path):
    with pytest.raises(PromptsError, match=r"nowhere.json: prompts cannot be read .* or one of imagenet, food101"):
        load_prompts(tmp_path / "nowhere.json")
    with pytest.raises(PromptsError, match=r"prompts.json is not JSON"):
        load_prompts(write("{"))
    with pytest.raises(PromptsError, match=r"expected an object with .*, got \[1\]"):
        load_prompts(write([1]))
    with pytest.raises(PromptsError, match="language: missing"):
        load_prompts(write({key: value for key, value in FRENCH.items() if key != "language"}))


def test_integers_are_matched_by_number_and_texts_by_key(write):
    numbered = load_prompts(write(FRENCH))
    assert numbered.select([1, 0]).classes == (("poisson rouge", "cyprin doré"), ("tanche",))
    assert numbered.select([1]).labels == (1,)
    keyed = load_prompts(write({**FRENCH, "classes": {"b": ["bé"], "a": ["a"], "3": ["trois"]}}))
    assert keyed.select(["a", "b"]).classes == (("a",), ("bé",))
    assert keyed.select([3]).classes == (("trois",),)
    assert keyed.select([0, 1], class_names=["a", "b"]).classes == (("a",), ("bé",))
    assert keyed.select([0, 1], class_names=["a", "b"]).labels == (0, 1)


def test_class_names_that_are_all_known_find_their_prompts_in_any_order():
    food = load_prompts("food101")
    names = [names[0].replace(" ", "_") for names in food.classes]
    stored = [*names[:16], names[17], names[16], *names[18:]]  # cheesecake before cheese_plate, as on the Hub
    assert food.select([16, 17], class_names=stored).classes == (("cheesecake",), ("cheese plate",))
    nearly = [*stored[:40], "an unknown dish", *stored[41:]]
    with pytest.raises(PromptsError, match="'cheesecake' is number 16 in the data and 17 here"):
        food.select([0], class_names=nearly)
    nearly = [*names[:40], "an unknown dish", *names[41:]]
    assert food.select([16, 40], class_names=nearly).classes == (("cheese plate",), food.classes[40])
    others = [f"class {number}" for number in range(101)]
    assert food.select([16, 17], class_names=others).classes == (("cheese plate",), ("cheesecake",))


def test_a_name_that_the_data_have_twice_says_nothing_of_their_order():
    three = Prompts(("{}",), (("crane",), ("tench",), ("a machine",)), "en", "a test")
    assert three.select([0, 2], class_names=["crane", "unknown", "crane"]).classes == (("crane",), ("a machine",))
    with pytest.raises(PromptsError, match="'crane' is number 2 in the data and 0 here"):
        three.select([0, 2], class_names=["another", "unknown", "crane"])
    shared = Prompts(("{}",), (("crane", "bird"), ("machine", "crane")), "en", "a test")  # is right for either
    for class_names in (["crane", "unknown"], ["unknown", "crane"]):
        assert shared.select([0, 1], class_names=class_names).classes == shared.classes


def test_numbers_and_wordnet_ids_find_their_prompts_in_any_order():
    imagenet = load_prompts("imagenet")
    folders = sorted(map(str, range(1000)))  # ImageNetV2's
    assert imagenet.select(range(1000), folders).classes == tuple(imagenet.classes[int(name)] for name in folders)
    wnids = list(imagenet_classes())
    assert imagenet.select(range(1000), wnids).classes == imagenet.classes
    assert imagenet.select([0, 1], ["n01443537", "n01440764"]).classes == imagenet.classes[1::-1]
    two = Prompts(("{}",), (("tench",), ("goldfish",)), "en", "a test")
    for in_order in (["0", "1"], ["1", "2"], ["1999", "2003"]):
        assert two.select([0, 1], in_order).classes == two.classes
    for turned in (["1", "0"], ["2", "1"]):
        assert two.select([0, 1], turned).classes == two.classes[::-1]
    assert two.select([0, 1], ["n01443537", "n01440764"]).classes == two.classes  # not ImageNet's list


@pytest.mark.parametrize(
    ("labels", "class_names", "wanted"),
    [
        (
            [0],
            ["1", "10", "2"],
            "classes: 2, but the label column has 3",
        ),
        (
            [0],
            ["01", "1"],
            "numbers, 01, 1 ..., that count from neither 0 nor 1 and are not in order: give an object from class name",
        ),
        ([0, 2], None, "classes: 2, but the data has the label 2"),
        ([-1], None, "classes: 2, but the data has the label -1"),
        ([0], ["x", "y", "z"], "classes: 2, but the label column has 3"),
        (["tench"], None, "classes: a list, but the labels are texts such as 'tench'"),
    ],
)
def test_prompts_that_do_not_cover_the_labels_are_refused(write, labels, class_names, wanted):
    with pytest.raises(PromptsError, match=wanted):
        load_prompts(write(FRENCH)).select(labels, class_names)


def test_labels_without_a_key_are_refused(write):
    keyed = load_prompts(write({**FRENCH, "classes": {"a": ["a"]}}))
    with pytest.raises(PromptsError, match="no prompts for 2 labels of the data, such as 'b'"):
        keyed.select(["a", "b", "c"])


def test_class_names_become_prompts_of_their_own():
    prompts = prompts_from_names(["hot_dog"])
    assert prompts.classes == (("hot dog",),)
    assert prompts.templates == DEFAULT_TEMPLATES


def test_names_that_two_classes_share_are_told_apart_by_label():
    prompts = Prompts(("{}",), (("crane",), ("tench",), ("crane", "bird")), "en", "a test")
    assert prompts.unique_names() == ["crane (0)", "tench", "crane (2)"]
    assert prompts.unique_names(["x", "y", "z"])[2] == "crane (z)"


def captioned(rows: list[tuple[str, list[tuple[str, str]]]]):
    kinds = {"concept": Value("string"), "captions": List({"language": Value("string"), "text": Value("string")})}
    columns = {
        "concept": [label for label, _ in rows],
        "captions": [[{"language": language, "text": text} for language, text in captions] for _, captions in rows],
    }
    return Dataset.from_dict(columns, features=Features(kinds)).to_iterable_dataset()


def test_captions_are_names_in_the_language_asked():
    dataset = captioned(
        [
            ("1f415", [("en", "dog"), ("ja", "犬")]),
            ("1f408", [("en", "cat"), ("en", " "), ("fr", "")]),
            ("1f415", [("en", "dog"), ("en", "hound")]),
        ]
    )
    captions = read_captions(dataset, label_column="concept")
    english = prompts_from_captions(captions, "en")
    assert english.labels == ("1f415", "1f408")
    assert english.classes == (("dog", "hound"), ("cat",))
    assert english.templates == ("{}",)
    japanese = prompts_from_captions(captions, "ja", templates=["{}の写真"])
    assert (japanese.labels, japanese.texts(0)) == (("1f415",), ["犬の写真"])
    with pytest.raises(PromptsError, match=r"no caption is in the language 'fr': there are en, ja$"):
        prompts_from_captions(captions, "fr")


def test_missing_captions_and_languages_are_passed_over():
    rows = [("1f415", [("en", "dog"), (None, "Hund"), ("en", None)]), ("1f408", [(None, "x"), (None, None)])]
    rows.append((None, [("en", "a row without a label")]))
    kinds = captioned(rows).features
    table = [{"concept": "1f415", "captions": [None]}, {"concept": "1f415", "captions": None}]
    broken = Dataset.from_list(table, features=kinds).to_iterable_dataset()
    captions = read_captions(concatenate_datasets([captioned(rows), broken]), label_column="concept")
    assert captions == {"1f415": {"en": ["dog"]}, "1f408": {}}
    with pytest.raises(PromptsError, match=r"no caption is in the language 'fr': there are en$"):
        prompts_from_captions(captions, "fr")


def test_columns_that_hold_no_captions_are_refused():
    dataset = captioned([("1f415", [("en", "dog")])])
    with pytest.raises(PromptsError, match="no caption column 'texts' among concept, captions"):
        read_captions(dataset, label_column="concept", caption_column="texts")
    with pytest.raises(PromptsError, match=r"lists of {language, text} are wanted"):
        read_captions(dataset, label_column="concept", caption_column="concept")


def test_a_single_caption_that_is_no_list_is_refused():
    kinds = {"concept": Value("string"), "captions": {"language": Value("string"), "text": Value("string")}}
    rows = {"concept": ["1f415"], "captions": [{"language": "en", "text": "dog"}]}
    dataset = Dataset.from_dict(rows, features=Features(kinds)).to_iterable_dataset()
    with pytest.raises(PromptsError, match=r"lists of {language, text} are wanted"):
        read_captions(dataset, label_column="concept")
