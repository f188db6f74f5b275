"""What would fail, or be slow, before a long run finds out: versions, machine, disks, the Hub, and the data set.

Every check is a function that returns findings; none raises, none downloads, and none reads more than it must.
"""

import importlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.version import Version

from .health_data import check_data_path, check_dataset
from .health_disks import check_disks
from .health_findings import Finding
from .health_hub import check_hub
from .health_machine import check_attention, check_devices, check_matmul, check_threads

# The oldest that `setup.py` allows and the newest that the tests have run with; None: nothing is missed without it.
TESTED: dict[str, tuple[str, str]] = {
    "torch": ("2.11", "2.13.0"),
    "transformers": ("5.18", "5.23.0"),
    "huggingface_hub": ("1.33", "2.4.0"),
    "safetensors": ("0.8", "0.8.0"),
    "numpy": ("1.26", "2.4.6"),
    "pillow": ("12.3", "12.3.0"),
    "accelerate": ("1.15", "1.15.0"),
    "datasets": ("5.2", "5.2.0"),
    "torchdata": ("0.11", "0.11.0"),
    "simplejpeg": ("1.8", "1.9.0"),
    "peft": ("0.21", "0.21.2"),
}
_FOR_SOME = {"simplejpeg": "JPEGs are decoded by Pillow, which is slower", "peft": "there are no adapters"}


@dataclass(frozen=True)
class Plan:
    """The run that is to start.

    Args:
        output_dir: its folder; the working directory's disk counts if None.
        dataset_name, dataset_split, image_column_name: as the example scripts have them; None: data are not looked at.
        size: of the model, one of the paper's.
        save_total_limit: checkpoints that are kept.
    """

    output_dir: Path | None = None
    dataset_name: str | None = None
    dataset_split: str = "train"
    image_column_name: str | None = None
    size: str = "vit_b16"
    save_total_limit: int = 2


def examine(plan: Plan) -> Iterator[Finding]:
    """All findings, each as soon as it is known."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        check_versions,
        check_pillow,
        check_optional_pieces,
        check_devices,
        check_threads,
        check_matmul,
        check_attention,
        lambda: check_data_path(plan.size),
        lambda: check_disks(plan.output_dir, plan.size, plan.save_total_limit),
        check_hub,
    ]
    if plan.dataset_name is not None:
        checks.append(lambda: check_dataset(plan.dataset_name, plan.dataset_split, plan.image_column_name))
    for check in checks:
        yield from check()


def check_versions() -> Iterator[Finding]:
    """Of the packages that ours stands on, against what it was tested with."""
    yield Finding("maws_hf", "ok", _our_version())
    for name, (oldest, newest) in TESTED.items():
        install = f'pip install "{name}>={oldest}"'
        try:
            found = Version(metadata.version(name))
        except metadata.PackageNotFoundError:
            status = "warning" if name in _FOR_SOME else "fails"
            missed = _FOR_SOME.get(name, "training needs it")
            yield Finding(name, status, f"is not installed: {missed}", install)
            continue
        if found < Version(oldest):
            yield Finding(name, "fails", f"{found} is older than {oldest}", install)
        elif found.release[:2] > Version(newest).release[:2]:
            advice = f"if something breaks: pip install {name}=={newest}"
            yield Finding(name, "warning", f"{found} is newer than {newest}, the newest tested", advice)
        else:
            yield Finding(name, "ok", str(found))


def _our_version() -> str:
    try:
        return metadata.version("maws_hf")
    except metadata.PackageNotFoundError:
        return "not installed, but on the path"


def check_pillow() -> Iterator[Finding]:
    """Whether Pillow was built with what the decoder needs."""
    from PIL import features

    needed = {"jpg": features.check_codec, "zlib": features.check_codec, "libtiff": features.check_codec}
    missing = [name for name, check in needed.items() if not check(name)]
    missing += [] if features.check_module("webp") else ["webp"]
    if missing:
        advice = "pip install --force-reinstall --only-binary :all: pillow"
        yield Finding("Pillow's formats", "fails", f"built without {', '.join(missing)}", advice)
        return
    turbo = features.check_feature("libjpeg_turbo")
    found = "JPEG, PNG, WebP, TIFF" + (f"; libjpeg-turbo {features.version_feature('libjpeg_turbo')}" if turbo else "")
    advice = "" if turbo else "Pillow without libjpeg-turbo decodes several times slower: install its wheel"
    yield Finding("Pillow's formats", "ok" if turbo else "warning", found, advice)


def check_optional_pieces() -> Iterator[Finding]:
    """What only some commands need; and torchvision, which breaks others when it does not match torch."""
    try:
        version = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        yield Finding("torchvision", "ok", "is not installed, and not needed")
    else:
        try:
            importlib.import_module("torchvision")
            yield Finding("torchvision", "ok", version)
        except Exception as error:  # of an operator that does not exist, most often
            advice = "pip uninstall torchvision, or install the one made for this torch"
            found = f"{version} cannot be imported ({type(error).__name__}), and transformers will try to"
            yield Finding("torchvision", "fails", found, advice)
    npm = shutil.which("npm")
    found = "is there" if npm else "is not there: demo-data and WordNet are fetched with it"
    yield Finding("npm", "ok" if npm else "warning", found, "" if npm else "install Node.js, or Debian's wordnet-base")


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """For programs."""
    return {"fails": any(each.status == "fails" for each in findings), "findings": [asdict(each) for each in findings]}


__all__ = ["Finding", "Plan", "as_json", "examine"]
