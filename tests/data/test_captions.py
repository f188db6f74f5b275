"""Captions: what is taken out of them, what must not be, and which one is drawn."""

import math
import time
import unicodedata
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset, Features, Image, LargeList, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from maws_hf.data.captions import (
    CaptionReader,
    clean_caption,
    find_captions,
    parse_weights,
)
from maws_hf.data.sources import DataSourceError

BY_LANGUAGE = {"language": Value("string"), "text": Value("string")}

# ------------------------------------------------------------------------------------------------------ cleaning

CLEANED = {
    "white space": ("  a\tcat\n\non  a mat\u3000here\xa0too ", "a cat on a mat here too"),
    "tags": ('<p class="x">a <b>cat</b><br/>sleeps</p><!-- hidden -->', "a cat sleeps"),
    "less than": ("2 < 3 and a <3 for cats > dogs", "2 < 3 and a <3 for cats > dogs"),
    "less than before a tag": ("x <b and <i>a cat</i>", "x <b and a cat"),
    "entities": ("Tom &amp; Jerry &#39;s caf&eacute; &lt;3", "Tom & Jerry 's café <3"),
    "entities of entities": ("Tom &amp;amp; Jerry &amp;lt;b&amp;gt;", "Tom & Jerry"),
    "address": ("a cat https://example.com/x?y=1#z and http://a.b", "a cat and"),
    "address without http": ("see www.example.com for cats", "see for cats"),
    "capital address": ("a cat HTTPS://EXAMPLE.COM", "a cat"),
    "address after Japanese": ("見てhttps://example.com 猫", "見て 猫"),
    "address before a wide space": ("https://example.com\u3000猫", "猫"),
    "no address": ("awww.so cute", "awww.so cute"),
    "address of a name": ("see http://@jane.org for cats", "see for cats"),
    "mail": ("write to jane.doe+cats@mail.example.org today", "write to today"),
    "mail in Japanese": ("連絡はjane@example.orgまで", "連絡は まで"),
    "name": ("photo by @jane_doe.cats, thanks", "photo by , thanks"),
    "Japanese name": ("写真は@山田、夏", "写真は 、夏"),
    "Persian name": ("@می\u200cخواهم عکس", "عکس"),
    "Indic name": ("@हिन्दी की तस्वीर", "की तस्वीर"),
    "name hidden from search": ("by @\u200bjane", "by"),
    "wide at": ("写真は＠jane さん", "写真は さん"),
    "at": ("a cat @ home, my cat@home", "a cat @ home, my cat@home"),
    "hashtags": ("my #cat on #red_sofa_bed", "my cat on red sofa bed"),
    "joined hashtags": ("#cat#dog ＃猫", "cat dog 猫"),
    "doubled sign": ("##cat", "cat"),
    "hashtag in brackets": ("(#cat)", "(cat)"),
    "Indic hashtag": ("#हिन्दी_दिवस", "हिन्दी दिवस"),
    "hashtag of a name": ("#_@jane", ""),
    "no hashtag": ("C# and C#minor, # alone, snake_case", "C# and C#minor, # alone, snake_case"),
    "keycaps": ("#\ufe0f\u20e3 1\ufe0f\u20e3", "#\ufe0f\u20e3 1\ufe0f\u20e3"),
    "control characters": ("a\x00cat\x07\x1b[0m", "a cat [0m"),
    "soft hyphen": ("ca\xadter\xadpil\xadlar", "caterpillar"),
    "byte order mark": ("\ufeffcat", "cat"),
    "zero width space": ("cat\u200bfish", "catfish"),
    "directions": ("\u202ecat\u202c \u2067dog\u2069 \u200e\u061c", "cat dog"),
    "notes between the lines": ("\ufff9cat\ufffafish\ufffb", "catfish"),
    "hidden tags": ("cat\U000e0041\U000e0042\U000e007f", "cat"),
    "private, unassigned, surrogate": ("a\ue000cat\U000e0fff\ufdd0b\ud800c", "a cat b c"),
    "replacement": ("caf\ufffd \ufffc cat", "caf cat"),
    "blanks that are letters": ("\u3164\uffa0\u2800", ""),
    "composed": ("cafe\u0301", "café"),
    "punctuation alone": ("... !?", ""),
    "digits": ("2024", "2024"),
    "emoji alone": ("🐈", "🐈"),
    "nothing": ("", ""),
}


@pytest.mark.parametrize(("text", "expected"), CLEANED.values(), ids=CLEANED.keys())
def test_cleaning_takes_out_what_describes_nothing(text, expected):
    assert clean_caption(text) == expected


UNTOUCHED = {
    "a family of joined emoji": "👩‍👩‍👧‍👦 and 🏳️‍🌈",
    "skin, text and picture forms": "👍🏽 ☺️ ☺︎",
    "flags": "🇯🇵 \U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "Arabic with vowels": "قِطَّةٌ صغيرة",
    "Persian with a non-joiner": "می\u200cخواهم",
    "Hebrew with points": "חָתוּל קטן",
    "Hindi": "एक छोटी बिल्ली क्\u200dष",
    "Tamil": "ஒரு சிறிய பூனை",
    "Malayalam with a joiner": "അവന്\u200dറെ പൂച്ച",
    "Thai": "แมวตัวเล็กน่ารัก",
    "Khmer": "ឆ្មា​តូច".replace("\u200b", ""),
    "Burmese": "ကြောင်လေး",
    "Tibetan": "ཞི་མི་ཆུང་ཆུང་།",
    "Amharic": "ትንሽ ድመት",
    "Chinese": "一只小猫。坐在垫子上！",
    "Japanese": "「小さな猫」が、ｶﾜｲｲ〜",
    "Korean": "작은 고양이",
    "a variant of an ideograph": "葛\U000e0100城市",
    "Arabic number signs": "\u0600\u06dd١",
    "case and punctuation": "A Cat's “Life” – 50 % off, e.g. $3.50 (sic)…",
}


@pytest.mark.parametrize("text", UNTOUCHED.values(), ids=UNTOUCHED.keys())
def test_scripts_and_emoji_stay_whole(text):
    assert unicodedata.is_normalized("NFC", text)
    assert clean_caption(text) == text


def test_the_first_thousand_characters_are_read():
    assert clean_caption("ab " * 1000) == ("ab " * 1000)[:1000].strip()
    assert len(clean_caption("\U0001d160" * 1000)) == 1000  # one character becomes three in NFC
    assert clean_caption("&eacute;" * 10_000) == "é" * 125


PIECES = ["&amp;", "&lt;", "&#64;", "#", "_", "@", "<", ">", "b", "/", "://", "http", "www.", ".", "a", "é", "e\u0301"]
PIECES += [" ", "\x00", "\xad", "\u200d", "\u200b", "\U0001f3f4", "\U000e0067", "\U000e007f", "\ud800", "猫", "ि", "&"]


@settings(max_examples=400, deadline=None)
@given(text=st.one_of(st.text(st.characters(), max_size=60), st.lists(st.sampled_from(PIECES)).map("".join)))
def test_cleaning_never_fails_and_leaves_nothing_to_clean(text):
    cleaned = clean_caption(text)
    assert clean_caption(cleaned) == cleaned
    assert unicodedata.is_normalized("NFC", cleaned)
    assert cleaned == " ".join(cleaned.split())
    assert all(unicodedata.category(character) not in ("Cc", "Cs", "Co", "Cn") for character in cleaned)
    cleaned.encode()


@pytest.mark.parametrize(
    "text", ["a." * 600, "<a" * 600, "#a" * 600, "@" * 1200, "&amp;" * 600, "a@" * 600, "&" + "amp;" * 600]
)
def test_hostile_texts_take_no_time(text):
    start = time.process_time()
    clean_caption(text)
    assert time.process_time() - start < 0.5


# ------------------------------------------------------------------------------------------------------- reading


def reader_of(features, **options):
    return find_captions(Features(features), **options)


def draws(reader, row, count=4000, seed=0):
    rng = np.random.default_rng(seed)
    return Counter(reader.draw(row, rng) for _ in range(count))


def assert_shares(counts, expected):
    """Each share within five deviations of what is expected of it."""
    assert counts.keys() == expected.keys()
    for caption, share in expected.items():
        deviation = math.sqrt(counts.total() * share * (1 - share))
        assert abs(counts[caption] - counts.total() * share) < 5 * deviation, caption


def in_languages(**texts):
    entries = [(language, text) for language, found in texts.items() for text in np.atleast_1d(found).tolist()]
    return {"captions": [{"language": language, "text": text} for language, text in entries]}


def test_languages_are_drawn_by_weight_and_their_texts_alike():
    row = in_languages(en=["a cat", "the cat", "one cat"], de="eine Katze", fr="un chat")
    weighted = CaptionReader(("captions",), {"en": 3, "de": 1, "es": 5})  # fr is not named, es is not there
    shares = {"a cat": 0.25, "the cat": 0.25, "one cat": 0.25, "eine Katze": 0.25}
    assert_shares(draws(weighted, row), shares)
    unweighted = {"a cat": 1 / 9, "the cat": 1 / 9, "one cat": 1 / 9, "eine Katze": 1 / 3, "un chat": 1 / 3}
    assert_shares(draws(CaptionReader(("captions",)), row), unweighted)


def test_columns_of_plain_texts_are_sources_by_their_names():
    row = {"alt": "a cat", "tags": ["pet", "sofa"], "title": None}
    reader = CaptionReader(("alt", "tags", "title"), {"alt": 1, "tags": 4, "title": 9})
    assert_shares(draws(reader, row), {"a cat": 0.2, "pet": 0.4, "sofa": 0.4})
    mixed = CaptionReader(("alt", "captions"), {"alt": 1, "de": 1})
    assert_shares(draws(mixed, row | in_languages(de="eine Katze", fr="un chat")), {"a cat": 0.5, "eine Katze": 0.5})


def test_a_text_without_words_gives_its_place_to_another():
    row = in_languages(en=["@jane", "https://a.b", "a cat"], de="#")
    assert draws(CaptionReader(("captions",)), row, count=50) == {"a cat": 50}
    row = in_languages(en=["@jane", "https://a.b", "a cat"], de="eine Katze")
    assert_shares(draws(CaptionReader(("captions",)), row), {"a cat": 0.5, "eine Katze": 0.5})  # by language, still


def test_the_same_generator_draws_the_same_caption():
    row = in_languages(en=["a", "b", "c"], de=["d", "e"], fr="f")
    reader = CaptionReader(("captions",))
    first, second = ([reader.draw(row, rng) for _ in range(30)] for rng in map(np.random.default_rng, (7, 7)))
    assert first == second
    assert row == in_languages(en=["a", "b", "c"], de=["d", "e"], fr="f")


WITHOUT = [
    None,
    [],
    [None],
    "",
    "...",
    [{"language": "en", "text": None}],
    [{"language": "en", "text": "@jane"}],
    [{"language": "fr", "text": "un chat"}],  # no weight
    {"language": [], "text": []},
    b"a cat",
    7,
    [1.5, b"a cat", {"language": "en", "text": 3}],
]


@pytest.mark.parametrize("value", WITHOUT, ids=repr)
def test_a_row_without_captions_is_left_out(value):
    reader = CaptionReader(("captions",), {"en": 1.0, "captions": 1.0})
    assert reader({"captions": value}) == 0
    assert reader.draw({"captions": value}, np.random.default_rng(0)) is None


WITH = [
    "a cat",
    [None, "a cat"],
    np.array(["a cat"], dtype=object),
    {"language": "en", "text": "a cat"},
    {"language": ["de", "en"], "text": [None, "a cat"]},
    {name: np.array([text], dtype=object) for name, text in {"language": "en", "text": "a cat"}.items()},
    [None, {"language": "en", "text": "a cat"}],
    [{"language": None, "text": "a cat"}],
    {"language": None, "text": [None, "a cat"]},
]


@pytest.mark.parametrize("value", WITH, ids=repr)
def test_a_row_with_a_caption_is_one_sample_of_an_epoch(value):
    for weights in (None, {"en": 0.1, "captions": 1.0}):
        reader = CaptionReader(("captions",), weights)
        assert reader({"captions": value}) == 1
        assert reader.draw({"captions": value}, np.random.default_rng(0)) == "a cat"


def test_a_row_with_fewer_languages_than_captions_is_told():
    with pytest.raises(ValueError, match="2 captions have 1 languages"):
        CaptionReader(("captions",))({"captions": {"language": ["en"], "text": ["a cat", "ein Hund"]}})


def test_another_choice_of_captions_has_another_fingerprint():
    readers = [
        CaptionReader(("a",)),
        CaptionReader(("a", "b")),
        CaptionReader(("a",), {"en": 1.0}),
        CaptionReader(("a",), {"en": 2.0}),
    ]
    assert len({reader.fingerprint for reader in readers}) == 4
    assert (
        CaptionReader(("a",), {"en": 1, "de": 2}).fingerprint == CaptionReader(("a",), {"de": 2, "en": 1}).fingerprint
    )


STORED = {
    "text": (Value("string"), "a cat"),
    "large text": (Value("large_string"), "a cat"),
    "texts": (List(Value("string")), ["a cat"]),
    "many texts": (LargeList(Value("string")), ["a cat"]),
    "languages": (List(BY_LANGUAGE), [{"language": "en", "text": "a cat"}]),
    "one language": (BY_LANGUAGE, {"language": "en", "text": "a cat"}),
    "struct of lists": (
        {"language": List(Value("string")), "text": List(Value("string"))},
        {"language": ["en"], "text": ["a cat"]},
    ),
}


@pytest.mark.parametrize(("kind", "value"), STORED.values(), ids=STORED.keys())
def test_every_accepted_type_is_read_as_datasets_streams_it(kind, value):
    features = Features({"image": Value("binary"), "caption": kind})
    dataset = Dataset.from_dict({"image": [b""], "caption": [value]}, features=features).to_iterable_dataset()
    reader = find_captions(dataset.features)
    assert reader.columns == ("caption",)
    (row,) = dataset
    assert reader.draw(row, np.random.default_rng(0)) == "a cat"


def test_the_usual_columns_are_found_in_their_order():
    text = Value("string")
    assert reader_of({"image": Image(), "txt": text, "caption": text}).columns == ("caption",)
    assert reader_of({"image": Image(), "txt": text, "key": text}).columns == ("txt",)
    assert reader_of({"alt": text, "txt": text}, columns=["alt", "txt"]).columns == ("alt", "txt")


def test_weights_are_those_asked_for_and_one_of_0_is_never_drawn():
    features = {"alt": Value("string"), "captions": List(BY_LANGUAGE)}
    weights = {"alt": 1.0, "en": 3.0, "de": 0.0}
    reader = reader_of(features, columns=["alt", "captions"], weights=weights)
    row = {"alt": "a pet"} | in_languages(en="a cat", de="eine Katze", fr="un chat")
    assert_shares(draws(reader, row), {"a pet": 0.25, "a cat": 0.75})


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ({"image": Image()}, {}, "no column captions, caption, text, txt among image"),
        ({"caption": Value("string")}, {"columns": ["alt"]}, "no column alt among caption"),
        ({"caption": Value("int64")}, {}, "the captions in caption are .*lists of strings"),
        ({"caption": List(List(Value("string")))}, {}, "the captions in caption are"),
        ({"caption": {"language": Value("int64"), "text": Value("string")}}, {}, "the captions in caption are"),
        ({"caption": Value("string")}, {"weights": {"en": 1}}, "caption weight for 'en'.* the sources caption"),
        ({"caption": List(BY_LANGUAGE)}, {"weights": {"en": 0}}, "nor all 0"),
        ({"caption": List(BY_LANGUAGE)}, {"weights": {"en": -1}}, "must not be negative"),
        ({"caption": List(BY_LANGUAGE)}, {"weights": {"en": math.nan}}, "must not be negative"),
        ({"caption": List(BY_LANGUAGE)}, {"weights": {"en": 1.0, "de": math.inf}}, "must not be negative"),
    ],
)
def test_captions_that_cannot_be_read_are_named(features, options, message):
    with pytest.raises(DataSourceError, match=message):
        reader_of(features, **options)


def test_weights_are_parsed():
    assert parse_weights("en=2, de=0.5,fr , zh-Hant = 1e-1,") == {"en": 2.0, "de": 0.5, "fr": 1.0, "zh-Hant": 0.1}
    assert parse_weights("") == {}
    assert parse_weights("en=1,de=0") == {"en": 1.0, "de": 0.0}


@pytest.mark.parametrize("text", ["en=two", "en=", "=2", "en=-1", "en=inf", "en=nan", "en=1=2"])
def test_a_weight_that_is_none_is_named(text):
    with pytest.raises(ValueError, match=f"caption weight '{text}' must be SOURCE=NUMBER"):
        parse_weights(text)


def test_a_source_has_one_weight():
    with pytest.raises(ValueError, match="'en' is given twice"):
        parse_weights("en=1,de,en=2")
