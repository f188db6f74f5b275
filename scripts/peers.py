"""Other libraries that benchmarks compare with. To be imported before transformers, which imports torchvision."""

import importlib
from types import ModuleType

import torch

# torchvision describes these two on import. Its C++ library has declared them by then, unless it was built for another
# PyTorch and does not load, as a CUDA wheel's beside a PyTorch for CPUs; timm needs only the Python part.
_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # declarations end with the object that made them


def import_timm() -> ModuleType:
    """timm.

    Raises:
        SystemExit: it or torchvision, which it needs, is not installed.
    """
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error.name} is not installed: pip install timm, or leave it out of --peers") from error


def _declare_operators() -> None:
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _declared.append(torch.library.Library("torchvision", "DEF"))
        for schema in _OPERATORS:
            _declared[0].define(schema)


_declare_operators()
