"""What a converted model needs beside its weights: class names, and XLM-R's tokenizer."""

import json
import shutil
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..models.configuration_maws_lit import MawsLiTConfig
from ..models.processing_maws_lit import MawsLiTProcessor
from ..whole_files import sha256_of, to_json, write_atomically
from .original_archive import ConversionError
from .text_vocabulary import MASK, SPECIAL_PIECES, TOKENIZER_SETTINGS

RECORD = "conversion.json"
SENTENCEPIECE = "sentencepiece.bpe.model"


def read_labels(path: Path) -> list[str]:
    """Class names in the order of the classifier's outputs.

    Args:
        path: `.txt`, one name a line; or `.json`, a list of names or a dictionary `{"0": name, ...}`.

    Raises:
        ConversionError: it is neither, or a name occurs twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors of Windows begin a file with a mark that is no text
        names = _names_in(json.loads(text)) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError, KeyError) as error:
        raise ConversionError(
            f"{path} has no labels ({error!r}): expected a .txt file with one name a line, or a .json file with a "
            'list of names or {"0": name, "1": name, ...}'
        ) from error
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise ConversionError(f"{path} has a label that is empty or no text")
    names = [name.strip() for name in names]
    if doubles := [name for name, count in Counter(names).items() if count > 1]:
        raise ConversionError(
            f"{path} has labels more than once, so that no class could be told by its name: {', '.join(doubles)}. "
            "Add what tells them apart"
        )
    return names


def add_tokenizer(folder: str | Path, tokenizer_name_or_path: str) -> int:
    """Makes the folder of a `MawsLiTModel` one of a `MawsLiTProcessor` as well; returns the tokenizer's length.

    Args:
        folder: config and image processor are there; a `conversion.json` in it will name the tokenizer.
        tokenizer_name_or_path: a folder or Hub id of XLM-R's tokenizer, or its `sentencepiece.bpe.model`, under
            whatever name.

    Raises:
        ConversionError: there is no tokenizer, or it is not the model's.
    """
    from transformers import AutoImageProcessor

    folder = Path(folder)
    config = MawsLiTConfig.from_pretrained(folder)
    tokenizer = _load(tokenizer_name_or_path)
    wanted = {piece: index for index, piece in enumerate(SPECIAL_PIECES)}
    found = dict(zip(wanted, tokenizer.convert_tokens_to_ids(list(wanted)), strict=True))
    if found != wanted or tokenizer.convert_ids_to_tokens(len(tokenizer) - 1) != MASK:
        raise ConversionError(f"{tokenizer_name_or_path} is not XLM-R's tokenizer: its special pieces are {found}")
    if len(tokenizer) != config.text_config.vocab_size:
        raise ConversionError(
            f"the tokenizer in {tokenizer_name_or_path} has {len(tokenizer):,} pieces, the model "
            f"{config.text_config.vocab_size:,}: it belongs to another model"
        )
    tokenizer.model_max_length = config.max_text_length
    MawsLiTProcessor(AutoImageProcessor.from_pretrained(folder), tokenizer).save_pretrained(folder)
    if (folder / RECORD).exists():
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        write_record(folder, {**record, "tokenizer": origin_of(tokenizer_name_or_path)})
    return len(tokenizer)


def origin_of(tokenizer_name_or_path: str) -> str:
    """What a record says of a tokenizer: the Hub id, or the name of a folder or file, without where it lies here."""
    path = Path(tokenizer_name_or_path)
    if not path.exists():
        return tokenizer_name_or_path
    name = path.resolve().name
    if path.is_dir():
        return name
    return f"{name} (sha256 {sha256_of(path)})"


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes a conversion's `conversion.json`."""
    write_atomically(folder / RECORD, to_json(record))


def _names_in(content: object) -> list:
    if isinstance(content, dict):
        return [content[str(index)] for index in range(len(content))]
    if isinstance(content, list):
        return content
    raise ValueError(f"it holds a {type(content).__name__}")


def _load(name_or_path: str):
    from transformers import AutoTokenizer, XLMRobertaTokenizer

    try:
        if not Path(name_or_path).is_file():
            return AutoTokenizer.from_pretrained(name_or_path)
        with TemporaryDirectory() as folder:
            shutil.copy(name_or_path, Path(folder) / SENTENCEPIECE)
            settings = json.dumps(TOKENIZER_SETTINGS)
            (Path(folder) / "tokenizer_config.json").write_text(settings, encoding="utf-8")
            return XLMRobertaTokenizer.from_pretrained(folder)
    except Exception as error:  # the readers of tokenizers raise whatever a foreign file leads them to
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ConversionError(
            f"there is no tokenizer in {name_or_path}: {reason} (wanted: a folder or Hub id of XLM-R's tokenizer, "
            f"such as FacebookAI/xlm-roberta-base, or its {SENTENCEPIECE})"
        ) from error


__all__ = ["add_tokenizer", "origin_of", "read_labels", "write_record"]
