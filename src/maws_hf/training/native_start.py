"""The weights that a run starts from, read row by row where they lie in a folder of our own format."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..models.loading import native_weight_files
from .sharded_files import WEIGHTS, CheckpointTensors

_ENCODER = "vit."


class NativeStart:
    """Names are those of the model that starts: a bare encoder's files have them without their `vit.`.

    Raises:
        CheckpointError: a file cannot be read.
    """

    def __init__(self, files: list[Path]):
        self._tensors = CheckpointTensors(files[0].parent, files)
        found = self._tensors.names(WEIGHTS)
        prefix = "" if any(name.startswith(_ENCODER) for name in found) else _ENCODER
        self._own_names = {prefix + name: WEIGHTS + name for name in found}

    @classmethod
    def of(cls, where: Any, model_class: type[PreTrainedModel]) -> "NativeStart | None":
        """None where only `from_pretrained` can read it; see `native_weight_files`."""
        files = native_weight_files(model_class.config_class, where)
        return None if files is None else cls(files)

    @property
    def names(self) -> set[str]:
        return set(self._own_names)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` on the CPU, mapped from the file: only these are read."""
        return self._tensors.read(self._own_names[name], start, stop)

    def refuse_another_model(self, model: PreTrainedModel, where: Any) -> None:
        """Raises ModelLoadingError as `from_pretrained` of the model's class would; only headers are read."""
        due = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found = {name: self._tensors.shapes[own] for name, own in self._own_names.items()}
        ignored = model._keys_to_ignore_on_load_unexpected  # of another head
        model.refuse_half_a_model(
            where,
            {
                "missing_keys": due.keys() - found.keys(),
                "unexpected_keys": [n for n in found.keys() - due.keys() if not any(re.search(i, n) for i in ignored)],
                "mismatched_keys": [(n, found[n], due[n]) for n in due.keys() & found.keys() if found[n] != due[n]],
            },
        )


__all__ = ["NativeStart"]
