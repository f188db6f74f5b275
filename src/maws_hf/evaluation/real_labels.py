"""ReaL (Beyer et al. 2020, arXiv 2006.07159): for each ImageNet validation image all classes that it shows."""

import hashlib
import json
import re
import tempfile
from pathlib import Path

from ..data.pypi_packages import Wheel, default_packages_dir, extract_members, fetch_wheel
from .label_maps import LabelMapError

# Of the 50,000 lists as compact JSON: the file in google-research/reassessed-imagenet and timm's copy have the same.
REAL_SHA256 = "571f454f8fe788a871fa87f5f3073972be208f1be818f0327258ed89d795f345"
SOURCE = "https://github.com/google-research/reassessed-imagenet/blob/master/real.json"
MEMBER = "timm/data/_info/imagenet_real_labels.json"
TIMM = Wheel(
    name="timm",
    version="1.0.31",
    licence="Apache-2.0",
    attribution="Ross Wightman; labels by the authors of ReaL, Apache-2.0",
    file="timm-1.0.31-py3-none-any.whl",
    sha256="5bd50f7d0fe6d09bf9285ac2523234a1b7e6bf075c0be3e7aed09139fcb617c7",
)

_VALIDATION_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})")


def load_real_labels(file: str | Path) -> list[list[int]]:
    """The class numbers of validation image 1, 2, ...: several, one, or none.

    Args:
        file: `real.json`, from anywhere.

    Raises:
        LabelMapError: it cannot be read, or is not that file.
    """
    advice = f"{SOURCE} is the file, and --real_labels_file timm takes it out of timm's wheel"
    try:
        lists = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise LabelMapError(f"{file} cannot be read ({error.strerror}): {advice}") from error
    except ValueError as error:
        raise LabelMapError(f"{file} is not JSON: {advice}") from error
    if hashlib.sha256(json.dumps(lists, separators=(",", ":")).encode()).hexdigest() != REAL_SHA256:
        raise LabelMapError(f"{file} does not hold the labels of ReaL as they were published: {advice}")
    return lists


def fetch_real_labels(folder: Path | None = None) -> list[list[int]]:
    """The same, from timm's wheel on PyPI, which is kept in `folder` (by default in this package's cache).

    Raises:
        PackageError: it cannot be had.
    """
    wheel = fetch_wheel(TIMM, folder or default_packages_dir(), size="3 MB")
    with tempfile.TemporaryDirectory() as unpacked:
        extract_members(wheel, {MEMBER: 1 << 20}, Path(unpacked))
        return load_real_labels(Path(unpacked, MEMBER))


def validation_number(name: str | None) -> int:
    """The number, from 1, of an ImageNet validation image, from its file name, in whatever folder it lies.

    Raises:
        LabelMapError: the name has no such number.
    """
    found = _VALIDATION_IMAGE.search(Path(name or "").name)
    if found is None:
        raise LabelMapError(
            f"{name or 'an image without a file name'}: ReaL knows images by their number, as in "
            "ILSVRC2012_val_00000001.JPEG; give ImageNet's validation images, or leave out --real_labels_file"
        )
    return int(found[1])


__all__ = ["fetch_real_labels", "load_real_labels", "validation_number"]
