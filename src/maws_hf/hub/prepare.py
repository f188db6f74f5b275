"""From the folder of a model to folders that may be released: exported, described, proved, laid out, checked."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from .cards import LICENSE, card_for_release, card_for_run
from .export import export_model
from .proof import prove_export
from .release_checks import card_problems, check_release
from .released_models import RELEASED_MODELS
from .staging import CARD, CONFIG, Staging, StagingError, build_staging, refuse_overlap


@dataclass(frozen=True)
class Prepared:
    """
    Args:
        main: the in-tree model.
        native: the same in our own format, if wanted.
        architecture: `model_type` of the in-tree model.
        differences: largest ones between the outputs of both, by name.
    """

    main: Staging
    native: Staging | None
    architecture: str
    differences: dict[str, float]


def prepare_release(
    model_dir: Path,
    staging_dir: Path,
    *,
    repo_id: str,
    architecture: str | None = None,
    card: Path | None = None,
    license: str | None = None,
    native: bool = True,
) -> Prepared:
    """Everything of a release that needs no network.

    Args:
        model_dir: in our own format: a run, or what `maws-hf convert` wrote.
        staging_dir: `main` and `native` below it are made, and replaced if an earlier call made them.
        repo_id: for the commands in the card.
        architecture: in-tree, as `export_model` takes it.
        card: file with the model card; None writes one.
        license: identifier for the card's metadata, instead of what stands there.
        native: prepare the branch in our own format, too.

    Raises:
        ExportError, ProofError, StagingError, ReleaseCheckError: it must not be released; says why.
    """
    model_dir, staging_dir = Path(model_dir), Path(staging_dir)
    if not (model_dir / CONFIG).is_file():
        raise StagingError(f"{model_dir} holds no model: {CONFIG} is missing")
    for folder in ("main", "native"):
        refuse_overlap(model_dir, staging_dir / folder)
    _card(model_dir, repo_id, card, license, None)  # what is missing is said before the work, not after it
    staging_dir.mkdir(parents=True, exist_ok=True)
    export_dir = staging_dir / ".export"
    shutil.rmtree(export_dir, ignore_errors=True)
    try:
        print(f"Exporting {model_dir}", flush=True)
        export = export_model(model_dir, export_dir, architecture)
        print(f"Comparing with {export.model_class} in a process without maws_hf", flush=True)
        differences = prove_export(model_dir, export_dir)
        for name in ("images", "handler.py", "requirements.txt"):  # written beside the model by hand
            _copy_beside(model_dir / name, export_dir / name)
        text = _card(model_dir, repo_id, card, license, export.model_class)
        main = build_staging(export_dir, staging_dir / "main", card=text)
    finally:
        shutil.rmtree(export_dir, ignore_errors=True)
    check_release(main.folder)
    ours = None
    if native:
        ours = build_staging(model_dir, staging_dir / "native", card=text, native=True)
        check_release(ours.folder, native=True)
    return Prepared(main, ours, export.architecture, differences)


def _card(model_dir: Path, repo_id: str, card: Path | None, license: str | None, exported_as: str | None) -> str:
    source = card or model_dir / CARD
    if source.is_file():
        text = _read_card(source, license)
    elif card is None:
        text = _written_card(model_dir, repo_id, license, exported_as)
    else:
        raise StagingError(f"{source} is missing: name a model card with --card FILE.md, or none to have one written")
    return text


def _read_card(source: Path, license: str | None) -> str:
    """A card that somebody has written, with the license that is given in place of its own."""
    from huggingface_hub import ModelCard

    try:
        text = source.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StagingError(f"the model card {source} is no UTF-8 text: save it as such") from error
    if problems := list(card_problems(text, None, license)):
        raise StagingError(f"the model card {source} cannot be released: {'; '.join(problems)}")
    if license is None:
        return text
    card = ModelCard(text)
    card.data.license = license
    return str(card)


def _written_card(model_dir: Path, repo_id: str, license: str | None, exported_as: str | None) -> str:
    record_file = model_dir / "conversion.json"
    record = json.loads(record_file.read_text(encoding="utf-8")) if record_file.is_file() else {}
    if record.get("released_model") in RELEASED_MODELS:
        if license not in (None, LICENSE):
            raise StagingError(f"{model_dir} holds {record['released_model']}, which is Meta's, under {LICENSE}")
        return card_for_release(record["released_model"], repo_id, record, exported_as=exported_as)
    if license is None:
        raise StagingError(
            f"{model_dir} has no README.md and --license is not given: under which licence is it released?"
        )
    return card_for_run(model_dir, repo_id, license=license, exported_as=exported_as)


def _copy_beside(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    elif source.is_file():
        shutil.copyfile(source, target, follow_symlinks=False)


__all__ = ["Prepared", "prepare_release"]
