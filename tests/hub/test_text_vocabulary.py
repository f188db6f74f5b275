"""Cutting a unigram vocabulary, on small tokenizers of XLM-R's make."""

import json
import random
from pathlib import Path

import pytest
import tiny_package as tiny
from transformers import AutoTokenizer

from maws_hf.hub.text_vocabulary import VocabularyError, cut_tokenizer, write_tokenizer


def cut(folder: Path, texts: list[str], **kwargs) -> tuple:
    """The tokenizers before and after, as transformers reads them, and the kept ids."""
    folder.mkdir(exist_ok=True)
    write_tokenizer(folder, tiny.tokenizer_bytes(**kwargs))
    full = AutoTokenizer.from_pretrained(folder)
    kept = cut_tokenizer(folder, texts)
    return full, AutoTokenizer.from_pretrained(folder), kept


def test_a_cut_vocabulary_splits_the_corpus_as_the_full_one(tmp_path: Path):
    texts = ["a red heart", "photo of   a re", "heart", "z 中 q", ""]
    full, small, kept = cut(tmp_path, texts)
    assert len(small) == len(kept) < len(full)
    for text in texts:
        assert small.tokenize(text) == full.tokenize(text)
        assert [kept[number] for number in small(text).input_ids] == full(text).input_ids


def test_random_vocabularies_with_ties_split_random_corpora_alike(tmp_path: Path):
    for seed in range(25):
        rng = random.Random(seed)
        words = {"".join(rng.choices("▁abc", k=rng.randint(2, 4))) for _ in range(20)}
        # Not every letter is a piece of its own, so that unknown ones compete with longer pieces.
        pieces = [*tiny.PIECES[:4], "▁", *sorted({*words, *rng.sample("abc", 2)} - {"▁"}), "<mask>"]
        scores = [0.0] * 4 + [float(-rng.randint(1, 6)) for _ in pieces[5:]] + [0.0]
        texts = ["".join(rng.choices("abc d", k=rng.randint(0, 12))) for _ in range(rng.randint(1, 8))]
        full, small, _ = cut(tmp_path / str(seed), texts, pieces=pieces, scores=scores)
        assert [small.tokenize(text) for text in texts] == [full.tokenize(text) for text in texts]


def test_the_score_of_unknown_characters_does_not_rise_with_the_cut(tmp_path: Path):
    """'xy' is better than 'x' and an unknown 'y' only as long as unknown is as bad as it was."""
    pieces = [*tiny.PIECES[:4], "▁", "x", "xy", "zz", "<mask>"]
    full, small, kept = cut(tmp_path, ["xy"], pieces=pieces, scores=[0.0] * 4 + [-1.0, -1.0, -40.0, -45.0, 0.0])
    assert full.tokenize("xy") == small.tokenize("xy") == ["▁", "xy"]
    assert 7 in kept


def test_special_pieces_keep_their_ids_and_mask_is_last(tmp_path: Path):
    _, small, _ = cut(tmp_path, ["red"])
    assert small.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert small.mask_token_id == len(small) - 1
    assert small("red <mask>").input_ids[-2:] == [len(small) - 1, 2]
    assert small.model_max_length == 512


def test_new_words_are_spelt_and_other_cases_known(tmp_path: Path):
    _, small, _ = cut(tmp_path, ["é"])
    assert "<unk>" not in small.tokenize("zebra É")
    assert small.tokenize("heart") == ["▁", *"heart"]


def test_the_other_case_of_a_character_stays(tmp_path: Path):
    pieces = [*tiny.PIECES[:4], "▁", "é", "É", "ж", "<mask>"]
    _, small, _ = cut(tmp_path, ["é"], pieces=pieces, scores=[0.0] * 4 + [-1.0, -2.0, -2.0, -2.0, 0.0])
    assert set(small.get_vocab()) == {*pieces} - {"ж"}


def test_a_cut_folder_is_read_by_the_tokenizers_library_alone(tmp_path: Path):
    from tokenizers import Tokenizer

    _, small, _ = cut(tmp_path, ["a red heart"])
    alone = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert alone.encode(" a  red heart ").ids == small(" a  red heart ").input_ids


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content["model"].update(type="BPE"),
        lambda content: content["model"].pop("vocab"),
        lambda content: content["model"]["vocab"].reverse(),
        lambda content: content["added_tokens"].pop(),
        lambda content: content["model"].update(vocab=3),
    ],
)
def test_another_tokenizer_is_refused(damage, tmp_path: Path):
    content = tiny.tokenizer_json()
    damage(content)
    with pytest.raises(VocabularyError, match="not XLM-R's"):
        write_tokenizer(tmp_path, json.dumps(content).encode())


def test_nothing_to_cut_to_is_refused(tmp_path: Path):
    write_tokenizer(tmp_path, tiny.tokenizer_bytes())
    with pytest.raises(VocabularyError, match="no texts"):
        cut_tokenizer(tmp_path, [])
