"""Hashtags as people write them. Every synset in the tables was looked up and is what most pictures with the tag show,
or, where it is not, what the one documented rule gives; such lines say so."""

import json
import pickle
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maws_hf.data.hashtags import WORDS, DropReason, TagMapper, canonical_forms, extract_hashtags
from maws_hf.data.wordnet import WordNet, find_wordnet


@pytest.fixture(scope="module")
def mapper() -> TagMapper:
    return TagMapper(WordNet.load(find_wordnet()))


LABELS = {
    # spelling
    "dog": "n02084071",
    "Dog": "n02084071",
    "#dog": "n02084071",
    "Ｄｏｇ": "n02084071",  # fullwidth
    "ﬁsh": "n02512053",  # a ligature
    "dog's": "n02084071",
    "&#39;dog&#39;": "n02084071",
    ":dog:": "n02084071",
    "GoldenRetriever": "n02099601",
    "goldenretriever": "n02099601",
    "golden_retrievers": "n02099601",
    "Golden-Retriever": "n02099601",
    "golden+retriever": "n02099601",
    "new+york": "n09119277",
    "new%20york": "n09119277",
    "NewYorkCity": "n09119277",
    "EiffelTower": "n03266906",
    "statueofliberty": "n04307106",
    "LadyBug": "n02165456",
    "cup_cake": "n07631023",
    "ice-cream": "n07614500",
    "T-shirt": "n03595614",
    "x-ray": "n11527177",
    "U.S.A.": "n09044862",
    "R&B": "n07064315",
    "rock&amp;roll": "n07064715",
    "rock&amp;amp;roll": "n07064715",  # escaped twice
    "rock'n'roll": "n07064715",
    # accents, and words that English has borrowed
    "café": "n02935658",
    "caf%C3%A9": "n02935658",
    "jalapeños": "n12900987",
    "crèmebrûlée": "n07619409",
    "København": "n08761868",
    "archæology": "n06144081",
    "onomatopœia": "n07104574",
    "đồng": "n13674890",
    "Zürich": "n09033117",
    "sushi": "n07879450",
    "tsunami": "n07349299",
    # plurals
    "mice": "n02330245",
    "ComputerMice": "n03793489",
    "geese": "n01855672",
    "wolves": "n02114100",
    "women": "n10787470",
    "leaves": "n13152742",
    "axes": "n02764044",
    "beaches": "n09217230",
    "dishes": "n03206908",
    "foxes": "n02118333",
    "waltzes": "n07475762",  # the rule: to WordNet's texts that is a victory
    "cherries": "n12641796",  # the rule: the wood is the most frequent sense
    "buses": "n02924116",
    "sonsinlaw": "n10624915",
    "news": "n06642138",
    "jeans": "n03594734",
    "glasses": "n04272054",
    "tigers": "n10710632",  # no Tamil separatists; the rule: the fierce person comes first
    "windows": "n04587648",  # no trademark
    "shoes": "n04199027",  # not somebody's situation
    "men": "n10287213",  # not the work force
    "men's": "n10287213",
    "mens": "n10287213",
    "women’s": "n10787470",
    "womens": "n10787470",
    "children's": "n09917593",
    "gentlemens": "n10127273",
    "dogs'": "n02084071",
    "omens": "n07286368",
    "birds of prey": "n01604330",
    "lilies_of_the_valley": "n12471544",
    "Alps": "n09194357",  # no texts know either: not any high mountain, an alp
    "canvass": "n14513489",  # no canvas
    # years
    "dog2020": "n02084071",
    "2020dog": "n02084071",
    "halloween_2019": "n15191233",
    "dog20200101": "n02084071",
    "20200101dog": "n02084071",
    "worldwar2": "n01312096",  # WordNet has it as it is
    # emoji
    "🐶": "n02084071",
    "🐱🐱": "n02121620",
    "🦊": "n02118333",
    "🌻": "n11978233",
    "♠": "n04266660",  # a black spade suit, not a tool
    "❤️": "n05919263",
    "🏃🏽‍♀️": "n10615334",  # the rule: a smuggler is the most frequent runner
    "dog🐶": "n02084071",
    "🇮🇹pizza": "n07873807",
    # several senses
    "crane": "n03126707",  # no sense is tagged: the first common noun, a machine; not Stephen Crane, nor the bird
    "turkey": "n01794158",  # the bird
    "china": "n08723006",  # the country
    "jaguar": "n02128925",
    "bass": "n04986796",  # the rule: the musical range, not the fish
    "mouse": "n02330245",
    "date": "n15159583",  # the rule: the day, not the fruit
    "bat": "n02139199",
    "java": "n08908248",  # the island
    "apple": "n07739125",
    "spring": "n15237044",
    "may": "n15211484",  # the month
    "white_horse": "n07352693",  # the rule: to WordNet that is a wave
    "water_gate": "n04244615",
    "Watergate": "n07306963",
    "broadbean": "n12576323",  # of "broad bean" and "broad-bean" the former: the seed
    "bullseye": "n00187144",  # of "bull's eye" and "bull's-eye" what texts know: the hit, not a lantern
}

DROPPED = {
    DropReason.EMPTY: ["", "#", " ", "\t#\n"],
    DropReason.TOO_LONG: ["a" * 101, "dog " * 50, "%20" * 2000, "🐶" * 500, "x" * 1_000_000],
    DropReason.NOT_WORDS: [
        *("x", "143", "2020", "9/11", "+", "!!!", "c++", "1️⃣", "٣٤"),
        *("IMG_2019", "DSC01234", "_MG_1234", "P1010001", "dog.jpg", "dogs.mp4"),
        *(
            "http://example.com/dog",
            "www.dog.com",
            "dog.com",
            "someone@example.com",
            "@dog",
            "geo:lat=52.5",
            "animal:dog",
            "a=b",
        ),
    ],
    DropReason.FUNCTION_WORD: [
        *("me", "in", "it", "as", "he", "us", "an", "Or", "who", "the", "no", "can", "will"),
        *("don't", "we’ll", "he‘ll", "im", "la", "de", "und", "los"),
    ],
    DropReason.OTHER_SCRIPT: [
        "犬",
        "собака",
        "كلب",
        "कुत्ता",
        "고양이",
        "หมา",
        "dogσ",
        "犬🐶",
        "%E7%8A%AC",
        "%E7%8A%AC" * 100,
    ],
    DropReason.UNKNOWN: [
        *("eBay", "iPhone", "NYC", "selfie", "tbt", "nofilter", "photooftheday", "dogsofinstagram", "blink182"),
        *(
            "retreiver",
            "dooog",
            "dogcat",
            "formula1",
            "ps4",
            "ox2020",
            "lbs",
        ),  # typos stay typos; names keep their digits
        *(
            "likes",
            "beautiful",
            "happy",
            "cute",
            "nice",
            "delicious",
            "born",
        ),  # adjectives, also where a city is called Nice
        *("perro", "Hund", "chien", "Straße", "smørrebrød"),
        *("👩‍🚀", "🇫🇷", "🐶🐱", "🐕‍🦺"),
        *("\x00\x00dogg", "100%cotton", "a3f9c2e1", "qwertyuiop", "a" * 100),
    ],
}


@pytest.mark.parametrize("tag", LABELS)
def test_a_tag_that_names_something(mapper, tag):
    result = mapper(tag)
    assert (result.synset, result.reason) == (LABELS[tag], None)
    assert mapper.wordnet.names(result.synset)


@pytest.mark.parametrize(("tag", "reason"), [(tag, reason) for reason, tags in DROPPED.items() for tag in tags])
def test_a_tag_that_names_nothing(mapper, tag, reason):
    result = mapper(tag)
    assert (result.synset, result.reason) == (None, reason)
    assert len(result.canonical) <= 100


def test_the_sense_of_a_lemma_follows_one_rule(mapper):
    for lemma in list(mapper.wordnet)[::53]:
        senses, sense = mapper.wordnet.senses(lemma), mapper.sense(lemma)
        spelled = lemma.replace("_", " ")
        common = [synset for synset in senses if spelled in mapper.wordnet.names(synset)]
        if mapper.wordnet.tagged_senses(lemma) or not common:
            assert sense == senses[0]
        else:
            assert sense == common[0]
    with pytest.raises(KeyError, match="no_such_word"):
        mapper.sense("no_such_word")


def test_all_words_of_wordnet_are_found_as_they_are_and_joined(mapper):
    for lemma in list(mapper.wordnet)[::61]:
        for tag in (lemma, lemma.replace("_", ""), lemma.replace("_", " ").title()):
            result = mapper(tag)
            if result.reason is None:
                names = {name.lower() for name in mapper.wordnet.names(result.synset)}
                letters = {"".join(filter(str.isalnum, name)) for name in names}
                plain = "".join(filter(str.isalnum, lemma))
                assert plain in letters or any(plain.startswith(other[:2]) for other in letters), (tag, result)
            else:
                assert result.reason in (DropReason.FUNCTION_WORD, DropReason.NOT_WORDS, DropReason.UNKNOWN)


def test_tags_are_counted_under_their_words(mapper):
    assert mapper("#GoldenRetrievers2020").canonical == "golden retrievers"
    assert mapper("Dog🐶").canonical == "dog"
    assert mapper("eBay").canonical == "e bay"
    assert mapper("selfie2020").canonical == "selfie"
    assert mapper("  HTTP://x.com ").canonical == "http://x.com"


def test_forms_go_from_literal_to_stripped():
    assert canonical_forms("GoldenRetriever2020") == ("golden retriever2020", "golden retriever")
    assert canonical_forms("HTMLParser") == ("html parser",)
    assert canonical_forms("🦊") == ("fox face", "fox")
    assert canonical_forms("❤️") == ("heavy black heart", "heart")
    assert canonical_forms("you2020") == ("you2020",)


CAPTIONS = {
    "no tags, and no. 1": [],
    "#dog": ["dog"],
    "my #dog, and #cat!": ["dog", "cat"],
    "#a#b##c": ["a", "b", "c"],
    "＃犬　#猫。#café・#कुत्ता": ["犬", "猫", "café", "कुत्ता"],
    "a fullwidth sign alone ＃dog": ["dog"],
    "(#dog) [#cat] “#fox”—#owl": ["dog", "cat", "fox", "owl"],
    "#new_york #golden-retriever #dog's": ["new_york", "golden", "dog"],
    "#🐶 #dog🐶 #👩‍🚀": ["🐶", "dog🐶", "👩‍🚀"],
    "#️⃣ # #  C# page#x a/#b &#39;yes&#39; &amp;#39;no&amp;#39;": [],
    "see https://example.com/p?q=#top#dog #cat": ["cat"],
    "www.example.com/#dog and example.com/a#dog": [],
    "rock &amp; roll #rock&amp;roll": ["rock"],
    "escaped twice #caf&amp;eacute;": ["café"],
    "#1 #2020 #4thofjuly": ["1", "2020", "4thofjuly"],
    "line\n#one\r\n#two\t#three": ["one", "two", "three"],
    "#dog #dog": ["dog", "dog"],
}


@pytest.mark.parametrize("caption", CAPTIONS)
def test_hashtags_of_a_caption(caption):
    assert extract_hashtags(caption) == CAPTIONS[caption]


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("#＃&;%+:/.@ \u200d\ufe0f🐶é犬_-'")), max_size=80))
@settings(max_examples=300, deadline=None)
def test_nothing_that_people_write_raises(mapper, text):
    for tag in [text, *extract_hashtags(text)]:
        result = mapper(tag)
        assert (result.synset is None) != (result.reason is None)
        assert mapper(tag) == result
        assert len(result.canonical) <= 100
    assert all(tag and not set(tag) & set("#＃ \n") for tag in extract_hashtags(text))


@pytest.mark.parametrize(
    "text", ["#" * 99_999, "#a" * 50_000, "a" * 99_999 + "://", "&amp;" * 20_000 + "#", "www." * 9999]
)
def test_long_nonsense_takes_no_time(mapper, text):
    start = time.perf_counter()
    for tag in extract_hashtags(f"{text} #x"):
        mapper(tag)
    assert time.perf_counter() - start < 2


def test_a_mapper_travels_to_other_processes_and_remembers_within_bounds(mapper):
    small = TagMapper(mapper.wordnet, cache_size=10)
    for number in range(100):
        small(f"dog{number:04d}")
    assert small._map.cache_info().currsize == 10
    pickled = pickle.dumps(small)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)  # noqa: S301
    assert copy("dogs") == mapper("dogs")
    assert copy.cache_size == 10


def test_lists_of_words_say_what_they_are(mapper):
    lists = json.loads(WORDS.read_text(encoding="utf-8"))
    assert lists["source"]
    for name, words in lists.items():
        if isinstance(words, list):
            assert words == sorted(set(words)), name
    assert all(lemma in mapper.wordnet for lemma in lists["names only"] + lists["plurals"])
    assert not any(mapper.wordnet.tagged_senses(lemma) for lemma in lists["names only"])
