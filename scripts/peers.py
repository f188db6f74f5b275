"""Other implementations that benchmarks compare with, packages and clones of what is none.

`pip install -c constraints.txt timm lightly` keeps this torch, which torchvision's newest would replace. To be
imported before transformers, which imports torchvision.
"""

import importlib
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # an operator lives as long as the library that declares it


def _complete_torchvision() -> None:
    """Makes the Python part of a torchvision usable that was built for another torch, as CUDA's beside one for CPUs.

    Its C++ library does not load there, so nobody has declared two operators that the Python part describes on import.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
        _declared.append(library)
        importlib.import_module("torchvision")


def import_torchvision() -> ModuleType:
    """torchvision.

    Raises:
        SystemExit: it is not installed.
    """
    return _import("torchvision")


def import_timm() -> ModuleType:
    """timm, which needs torchvision.

    Raises:
        SystemExit: one of them is not installed.
    """
    return _import("timm")


def import_lightly() -> ModuleType:
    """lightly, whose masked autoencoder is built from timm's blocks.

    Raises:
        SystemExit: it, timm or torchvision is not installed.
    """
    return _import("lightly")


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error.name} is not installed: pip install {error.name}, or leave that peer out") from error


_complete_torchvision()
