"""What must hold of a release before the first byte of it leaves this machine; every problem is named at once."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

from .staging import CARD, CONFIG, STUB, files_below, is_allowed
from .weight_checks import Problem, weight_problems

TEXT_SUFFIXES = (".json", ".md", ".py", ".txt")
_LONGEST_HEADER = 100_000_000  # bytes, as the format has it
_SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|aws_secret_access_key",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a key of an API": r"\bsk-[\w-]{20,}|\bAIza[\w-]{30,}|\bxox[abprs]-[\w-]{10,}|(?i:wandb_api_key)\W+\w{20,}",
    "a bearer token": r"\bBearer\s+[A-Za-z0-9._~+/-]{16,}",
    "an address with a password": r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"']+:[^\s/@\"']+@",
}
# A whole value that is a path, or a path inside a longer one, such as a command line.
_PATH = re.compile(
    r"^(?:/[\w.@+~-]+){2,}/?$|^file:/|^~[\w.-]*/|^[A-Za-z]:\\|^\\\\"
    r"|(?<![\w./:@])(?:/(?:home|Users|Volumes|root|mnt|tmp|var|data|scratch|workspace|private|media|opt|srv)/|~/)[\w.-]"
)
# In commands and the like any path counts; in prose only those of a machine's usual folders.
_PATH_IN_TEXT = re.compile(r"(?:^|[\s\"'=])(?:/[\w.@+~-]+){2,}")
_VOCABULARY = {"tokenizer.json": ("model", "added_tokens")}  # pieces of words, some of which look like paths
_PLACEHOLDERS = re.compile(r"\{\{|\bTODO\b|(?i:to be filled|more information needed)")
# The task of the in-tree architectures; None where a model has no pipeline of its own.
_TASKS = {
    "ViTForImageClassification": "image-classification",
    "VisionTextDualEncoderModel": "zero-shot-image-classification",
    "ViTModel": "image-feature-extraction",
    "PixioModel": "image-feature-extraction",
    "Dinov2Model": "image-feature-extraction",
}


class ReleaseCheckError(ValueError):
    """A folder must not be released as it is; the message lists every problem, each with its file."""


def check_release(folder: Path, *, native: bool = False) -> None:
    """Looks at every file of a folder that is about to be released; nothing is sent anywhere.

    Args:
        folder: as `build_staging` makes it.
        native: it is in our own format, with the stub that imports our classes.

    Raises:
        ReleaseCheckError: naming all that is wrong.
    """
    if problems := list(release_problems(folder, native=native)):
        keep = "one problem keeps" if len(problems) == 1 else f"{len(problems)} problems keep"
        listed = "; ".join(f"{folder.name}/{file}: {problem}" for file, problem in problems)
        raise ReleaseCheckError(f"{keep} this model from being released: {listed}")


def release_problems(folder: Path, *, native: bool = False) -> Iterator[Problem]:
    """All problems, as pairs of a file and what is wrong with it."""
    for name in files_below(folder):
        if (folder / name).is_symlink():
            yield name, "is a link: put the file itself there"
        elif not is_allowed(name, native):
            yield name, "is not on the list of what a release may hold: delete it"
        elif name.endswith(TEXT_SUFFIXES):
            yield from ((name, problem) for problem in _text_problems(folder / name))
        else:
            yield from ((name, problem) for problem in _binary_problems(folder / name))
    config = _json(folder / CONFIG)
    if not isinstance(config, dict):
        yield CONFIG, "is missing or not a JSON object"
        config = {}
    yield from _remote_code_problems(folder, config, native)
    yield from weight_problems(folder, config)
    try:
        card = (folder / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        yield CARD, "is missing or not UTF-8 text: a release needs a model card"
        return
    yield from ((CARD, problem) for problem in card_problems(card, None if native else config))


def card_problems(text: str, config: dict[str, Any] | None, license: str | None = None) -> Iterator[str]:
    """What a model card lacks.

    Args:
        config: of the model; None leaves the task unchecked.
        license: that the card will be given.
    """
    parts = re.match(r"---\r?\n(.*?)\r?\n---\r?\n(.*)", text, re.DOTALL)
    try:
        data = yaml.safe_load(parts[1]) if parts else None
    except yaml.YAMLError as error:
        yield f"its metadata is not YAML ({' '.join(str(error).split())})"
        return
    if not isinstance(data, dict):
        yield "has no metadata between lines of ---"
        return
    for field in ("license", "library_name", "tags"):
        if not data.get(field) and not (field == "license" and license):
            yield f"lacks the field {field}"
    explained = re.search(r"^#+ Training", parts[2], re.MULTILINE)  # for data that are on no Hub
    if not data.get("base_model") and not data.get("datasets") and not explained:
        yield "lacks base_model, datasets and a section Training: what do the weights come from?"
    index = data.get("model-index")
    first = index[0] if isinstance(index, list) and index else None
    if not data.get("model_name") and not (isinstance(first, dict) and first.get("name")):
        yield "lacks model_name"
    elif index is not None and not _is_model_index(index):
        yield "its model-index is not the list of models with their results that the Hub reads"
    task = _TASKS.get(str(next(iter((config or {}).get("architectures") or []), "")))
    if task and data.get("pipeline_tag") != task:
        yield f"pipeline_tag is {data.get('pipeline_tag')!r}; this architecture is for {task!r}"
    if not parts[2].strip():
        yield "has no text after its metadata"
    for number, line in enumerate(text.splitlines(), 1):
        if found := _PLACEHOLDERS.search(line):
            yield f"line {number} still holds {found[0]!r}"


def _is_model_index(index: Any) -> bool:
    try:
        model_index_to_eval_results(index)
    except (AttributeError, KeyError, TypeError, ValueError):  # it is written for sound ones
        return False
    return True


def _text_problems(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        yield "is not UTF-8 text"
        return
    for what, place in _secrets_in(text):
        # The line, never the secret: messages end up in logs.
        yield f"line {text.count(chr(10), 0, place) + 1} holds {what}: revoke it and take it out"
    if path.suffix != ".json":
        for number, line in enumerate(text.splitlines(), 1):
            if found := _PATH.search(line):
                yield f"line {number} names a place on this machine ({_short(found[0])}): write it without"
        return
    content = _json(path)
    if content is None:
        yield "is not JSON"
    for where, value in _strings(content, skip=_VOCABULARY.get(path.name, ())):
        if _PATH.search(value) or _PATH_IN_TEXT.search(value):
            yield f"{where} names a place on this machine ({_short(value)}): write it without"
        for what, _ in _secrets_in(value):  # which JSON can spell in other ways than the file's text shows
            if value not in text:
                yield f"{where} holds {what}: revoke it and take it out"


def _secrets_in(text: str) -> Iterator[tuple[str, int]]:
    """What kind, and where it starts."""
    for what, pattern in _SECRETS.items():
        if found := re.search(pattern, text):
            yield what, found.start()


def _binary_problems(path: Path) -> Iterator[str]:
    """Pictures, vocabularies, and the header of weights: nothing but what their names say, and no secrets in it."""
    with path.open("rb") as file:
        start = file.read(8)
        if path.suffix == ".safetensors":
            content = file.read(min(int.from_bytes(start, "little"), _LONGEST_HEADER))
        else:
            content = start + file.read()
    kinds = {".png": b"\x89PNG\r\n\x1a\n", ".jpg": b"\xff\xd8\xff"}
    if path.suffix in kinds and not content.startswith(kinds[path.suffix]):
        yield f"is no {path.suffix.removeprefix('.').upper()} picture"
    for what, _ in _secrets_in(content.decode("latin-1")):
        yield f"holds {what}: revoke it and take it out"


def _remote_code_problems(folder: Path, config: dict[str, Any], native: bool) -> Iterator[Problem]:
    """The in-tree model is for everybody, so no file of it may ask for code; ours asks for the stub only."""
    for name in (CONFIG, "preprocessor_config.json", "processor_config.json", "tokenizer_config.json"):
        content = config if name == CONFIG else _json(folder / name)
        for where, found in _values_of("auto_map", content):
            if not (native and name == CONFIG and where == "auto_map"):
                yield name, f"asks for remote code ({where}): take it out"
            elif not isinstance(found, dict) or any(
                not str(value).startswith(f"{Path(STUB).stem}.") for value in found.values()
            ):
                yield name, f"asks for other remote code than {STUB}"
    if native and not (folder / STUB).is_file():
        yield STUB, "is missing"


def _values_of(key: str, content: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of that key in parsed JSON, however deep, with the keys that lead there."""
    if isinstance(content, dict):
        for name, value in content.items():
            path = f"{where}.{name}".lstrip(".")
            if name == key and value:
                yield path, value
            else:
                yield from _values_of(key, value, path)


def _strings(content: Any, where: str = "", skip: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Every text in parsed JSON, keys too, with the keys that lead there."""
    if isinstance(content, str):
        yield where, content
    elif isinstance(content, dict):
        for key, value in content.items():
            if key not in skip:
                yield from _strings(key, f"a key of {where or 'the file'}")
                yield from _strings(value, f"{where}.{key}".lstrip("."))
    elif isinstance(content, list):
        for place, value in enumerate(content):
            yield from _strings(value, f"{where}[{place}]")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


__all__ = ["ReleaseCheckError", "card_problems", "check_release", "release_problems"]
