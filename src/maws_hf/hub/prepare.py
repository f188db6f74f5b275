"""From the folder of a model to folders that may be released: exported, described, proved, laid out, checked."""

import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from .export import export_model
from .proof import prove_export
from .release_checks import check_release
from .staging import CARD, Staging, StagingError, build_staging


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
    text = _card(model_dir, repo_id, card, license)
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
        main = build_staging(export_dir, staging_dir / "main", card=text)
    finally:
        shutil.rmtree(export_dir, ignore_errors=True)
    check_release(main.folder)
    ours = None
    if native:
        ours = build_staging(model_dir, staging_dir / "native", card=text, native=True)
        check_release(ours.folder, native=True)
    return Prepared(main, ours, export.architecture, differences)


def _card(model_dir: Path, repo_id: str, card: Path | None, license: str | None) -> str:
    from huggingface_hub import ModelCard

    source = card or model_dir / CARD
    if source.is_file():
        text = source.read_text(encoding="utf-8")
    elif card is None and importlib.util.find_spec(f"{__package__}.cards"):
        text = _written_card(model_dir, repo_id)
    else:
        raise StagingError(f"{source} is missing: a release needs a model card; name one with --card FILE.md")
    if license:
        described = ModelCard(text)
        described.data.license = license
        text = str(described)
    return text


def _written_card(model_dir: Path, repo_id: str) -> str:
    from . import cards

    conversion = model_dir / "conversion.json"
    if conversion.is_file():
        record = json.loads(conversion.read_text(encoding="utf-8"))
        return cards.card_for_release(record.get("name", repo_id.split("/")[-1]), repo_id, record)
    return cards.card_for_run(model_dir, repo_id)


def _copy_beside(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    elif source.is_file():
        shutil.copyfile(source, target, follow_symlinks=False)


__all__ = ["Prepared", "prepare_release"]
