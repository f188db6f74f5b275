"""Which original file is it? By the name of a released model, or by the file's own name."""

from dataclasses import dataclass
from pathlib import Path

from .original_archive import ConversionError
from .released_models import RELEASED_MODELS

_MAE_URL = "https://dl.fbaipublicfiles.com/mae/"
_MAE_SIZES = {"base": "vit_b16", "large": "vit_l16", "huge": "vit_h14"}
# First digits of the md5 of mae_pretrain_vit_*.pth, from the README of https://github.com/facebookresearch/mae.
_MAE_MD5 = {"base": "8cad7c", "large": "b8b06e", "huge": "9bdbb0"}


@dataclass(frozen=True)
class KnownFile:
    """
    Args:
        name: "maws-vit-b", or the stem of a file of the original MAE repository.
        layout: what the file holds: "encoder", "classifier", "mae" (encoder and decoder) or "clip".
        size: one of `SIZES`.
        url: where it was published.
        image_size, num_labels: as in `ReleasedModel`.
        sha256: of the file, if known.
        md5_prefix: its first digits, if published.
        norm_pix_loss: whether a decoder's pixels are normalised by patch; None without a decoder.
    """

    name: str
    layout: str
    size: str
    url: str
    image_size: int = 224
    num_labels: int = 0
    sha256: str | None = None
    md5_prefix: str | None = None
    norm_pix_loss: bool | None = None

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


def _known_files() -> dict[str, KnownFile]:
    layouts = {"mae": "encoder", "maws": "encoder", "classifier": "classifier", "clip": "clip"}
    known = [
        KnownFile(
            model.name,
            layouts[model.kind],
            model.size,
            model.url,
            image_size=model.image_size,
            num_labels=model.num_labels,
            sha256=model.sha256,
        )
        for model in RELEASED_MODELS.values()
    ]
    for name, size in _MAE_SIZES.items():
        stem = f"mae_pretrain_vit_{name}"
        known.append(KnownFile(stem, "encoder", size, f"{_MAE_URL}pretrain/{stem}.pth", md5_prefix=_MAE_MD5[name]))
        # The demo paints this file's predictions as they are, so they are plain pixels.
        stem = f"mae_visualize_vit_{name}"
        known.append(KnownFile(stem, "mae", size, f"{_MAE_URL}visualize/{stem}.pth", norm_pix_loss=False))
    return {file.name: file for file in known}


KNOWN_FILES: dict[str, KnownFile] = _known_files()


def known_file(path: Path, model: str | None) -> KnownFile | None:
    """The file that `path` is said to be; None if nothing is known by its name.

    Args:
        path: only its last part counts.
        model: a key of `KNOWN_FILES`, or None to go by the file's name.

    Raises:
        ConversionError: `model` is unknown, or several released files have that name.
    """
    if model is not None:
        if model not in KNOWN_FILES:
            raise ConversionError(f"no released model is called {model!r}; there are {', '.join(KNOWN_FILES)}")
        return KNOWN_FILES[model]
    candidates = [file.name for file in KNOWN_FILES.values() if file.file == path.name]
    if len(candidates) > 1:
        raise ConversionError(
            f"{len(candidates)} released files are called {path.name}: say which one {path} is with "
            f"{' or '.join(f'--model {name}' for name in candidates)}"
        )
    return KNOWN_FILES[candidates[0]] if candidates else None


__all__ = ["KNOWN_FILES", "KnownFile", "known_file"]
