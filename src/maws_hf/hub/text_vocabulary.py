"""Cut the vocabulary of XLM-R's tokenizer to what a corpus needs, without changing how the corpus is split.

A unigram tokenizer splits a text into the pieces with the highest sum of scores. If all pieces of the best split stay
and no score changes, that split stays the best: there are only fewer others. The score of an unknown character is
derived from the lowest score of all pieces, so a piece with that score stays too.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

SPECIAL_PIECES = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3 in fairseq's order
MASK = "<mask>"
SPACE = "▁"
BATCH = 4096
LONGEST = 512  # tokens, of a text
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_SETTINGS = {
    "tokenizer_class": "XLMRobertaTokenizer",
    "model_max_length": LONGEST,
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": MASK,
}


class VocabularyError(ValueError):
    """A tokenizer is not XLM-R's, or cannot be cut as asked; the message says why."""


def write_tokenizer(folder: Path, tokenizer_json: bytes) -> list[str]:
    """Write XLM-R's tokenizer into `folder` as transformers reads and runs it; its pieces by id are returned.

    Raises:
        VocabularyError: `tokenizer_json` is no XLM-R tokenizer.
    """
    from transformers import XLMRobertaTokenizer

    _write_settings(folder)
    (folder / TOKENIZER_FILE).write_bytes(tokenizer_json)
    try:
        _pieces_or_error(json.loads(tokenizer_json))
        # transformers splits at white space first; saved so, other readers of tokenizer.json split as it does.
        content = json.loads(XLMRobertaTokenizer.from_pretrained(folder).backend_tokenizer.to_str())
        pieces = _pieces_or_error(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VocabularyError(f"The package's tokenizer.json is not XLM-R's: {error}") from error
    _write_json(folder, content)
    return pieces


def cut_tokenizer(folder: Path, texts: Sequence[str]) -> list[int]:
    """Cut the tokenizer in `folder` to the pieces that `texts` need, and compare all their splits with the full one's.

    Also stay: the special pieces (`<mask>` last), the pieces of one character for every character that occurs, in
    upper and lower case, and for all of ASCII, so that new words of these scripts are spelt and not unknown.

    Returns:
        The ids of the kept pieces in the full vocabulary, ascending: row i of the cut embeddings is row `kept[i]`.

    Raises:
        VocabularyError: a text is split differently (that would be a bug), or nothing is given to cut to.
    """
    from tokenizers import Tokenizer

    if not texts:
        raise VocabularyError("There are no texts to cut the vocabulary to.")
    full = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    content = json.loads(full.to_str())
    used = {number for ids in _splits(full, texts, "Reading texts") for number in ids}
    kept = _kept(content["model"]["vocab"], used)
    _write_json(folder, _cut(content, kept))
    cut = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    renumbered = {old: new for new, old in enumerate(kept)}
    both = zip(texts, _splits(full, texts), _splits(cut, texts, "Comparing splits"), strict=True)
    for text, before, after in both:
        if [renumbered[number] for number in before] != after:
            raise VocabularyError(f"The cut vocabulary splits {text!r} differently from the full one.")
    return kept


def _kept(vocabulary: list, used: set[int]) -> list[int]:
    ids = {piece: number for number, (piece, _) in enumerate(vocabulary)}
    characters = {other for number in used for c in vocabulary[number][0] for other in (c, c.lower(), c.upper())}
    characters |= {chr(code) for code in range(33, 127)}
    lowest = min(range(len(vocabulary)), key=lambda number: vocabulary[number][1])
    single = {ids[character] for character in characters if character in ids}
    return sorted(used | single | {lowest} | {ids[piece] for piece in (*SPECIAL_PIECES, MASK, SPACE)})


def _cut(content: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    vocabulary = [content["model"]["vocab"][number] for number in kept]
    ids = {piece: number for number, (piece, _) in enumerate(vocabulary)}
    added = [{**token, "id": ids[token["content"]]} for token in content["added_tokens"]]
    # The specials that are set around a text keep their ids, so the post-processor stays as it is.
    return {**content, "model": {**content["model"], "vocab": vocabulary}, "added_tokens": added}


def _splits(tokenizer, texts: Sequence[str], progress: str | None = None) -> Iterator[list[int]]:
    with tqdm(total=len(texts), desc=progress, unit=" texts", disable=progress is None, leave=False) as bar:
        for batch in (texts[start : start + BATCH] for start in range(0, len(texts), BATCH)):
            for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
                yield encoding.ids
            bar.update(len(batch))


def _pieces_or_error(content: dict[str, Any]) -> list[str]:
    pieces = [piece for piece, _ in content["model"]["vocab"]]
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    expected = {piece: number for number, piece in enumerate(SPECIAL_PIECES)} | {MASK: len(pieces) - 1}
    if tuple(pieces[:4]) != SPECIAL_PIECES or pieces[-1] != MASK or added != expected:
        raise ValueError(f"it begins with {pieces[:4]}, ends with {pieces[-1]!r} and adds {added}")
    if content["model"]["type"] != "Unigram" or SPACE not in pieces:
        raise ValueError(f"its model is {content['model']['type']}")
    return pieces


def _write_json(folder: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    (folder / TOKENIZER_FILE).write_text(text + "\n", encoding="utf-8")


def _write_settings(folder: Path) -> None:
    settings = json.dumps(TOKENIZER_SETTINGS, indent=1)
    (folder / "tokenizer_config.json").write_text(settings + "\n", encoding="utf-8")
