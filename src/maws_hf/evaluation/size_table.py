"""Scores of many encoders as the paper's Table 9 has them: a column for each size, a row for each pretraining."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..models.configuration_maws_vit import SIZES

# Rows in the paper's order; what else there is follows as it comes, and what nobody knows is last.
TRAININGS = ("MAE", "WSP", "MAWS")
UNKNOWN = "unknown"
_STAGES = {"mae": "MAE", "wsp": "WSP", "lit": "LiT", "finetune": "fine-tuned"}


@dataclass(frozen=True)
class Entry:
    """One encoder's place in the table: its score in per cent, its size, and how it was trained."""

    encoder: str
    training: str
    size: str
    parameters: int
    score: float


@dataclass(frozen=True)
class SizeTable:
    """
    Attributes:
        sizes: names of the columns, the smallest model first.
        rows: for each training a cell for each size; a cell holds its entries, none, one or several.
    """

    sizes: list[str]
    rows: dict[str, list[list[Entry]]]

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> "SizeTable":
        """Columns are ordered by the parameters of their smallest model."""
        smallest: dict[str, int] = {}
        for entry in entries:
            smallest[entry.size] = min(entry.parameters, smallest.get(entry.size, entry.parameters))
        sizes = sorted(smallest, key=lambda size: (smallest[size], size))
        found = list(dict.fromkeys(entry.training for entry in entries))
        others = [training for training in found if training not in (*TRAININGS, UNKNOWN)]
        names = [training for training in (*TRAININGS, *others, UNKNOWN) if training in found]
        rows = {
            name: [[entry for entry in entries if (entry.training, entry.size) == (name, size)] for size in sizes]
            for name in names
        }
        return cls(sizes, rows)

    def markdown(self, corner: str) -> str:
        """The table, its columns padded so that it also reads well as it is; several scores of a cell by a slash."""
        texts = [[corner, *self.sizes]]
        for training, cells in self.rows.items():
            texts.append([training, *(" / ".join(f"{entry.score:.1f}" for entry in cell) or "-" for cell in cells)])
        texts = [[text.replace("|", r"\|") for text in row] for row in texts]
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
        lines = [
            [row[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(row[1:], widths[1:], strict=True))]
            for row in texts
        ]
        rule = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]
        return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))

    def shared_cells(self) -> Iterator[str]:
        """A sentence for each cell with several encoders, which names them in the order of their scores there."""
        for training, cells in self.rows.items():
            for size, cell in zip(self.sizes, cells, strict=True):
                if len(cell) > 1:
                    encoders = ", ".join(f"{entry.encoder} ({entry.score:.1f})" for entry in cell)
                    yield f"{training}, {size} is {len(cell)} encoders: {encoders}"

    def curves(self) -> dict[str, dict[float, list[float]]]:
        """Scores over parameters for each training, as `plot_scaling` takes them."""
        curves: dict[str, dict[float, list[float]]] = {}
        for training, cells in self.rows.items():
            for entry in (entry for cell in cells for entry in cell):
                curves.setdefault(training, {}).setdefault(float(entry.parameters), []).append(entry.score)
        return curves

    def to_json(self) -> dict[str, Any]:
        """Columns, and for each row and column a list of `{"encoder", "score"}`."""
        cells = {
            training: [[{"encoder": entry.encoder, "score": entry.score} for entry in cell] for cell in row]
            for training, row in self.rows.items()
        }
        return {"sizes": self.sizes, "rows": cells}


def size_name(config: Any, parameters: int) -> str:
    """`ViT-B/16` for the paper's sizes (Table 1), `192x12/16` (width, depth, patch) for other ViTs, else `28.6M`."""
    config = getattr(config, "vision_config", config)
    shape = {name: getattr(config, name, None) for name in ("hidden_size", "num_hidden_layers", "patch_size")}
    for name, fields in SIZES.items():
        if shape == {field: fields[field] for field in shape}:
            size, patch = re.fullmatch(r"vit_(.+?)(\d\d)", name).groups()
            return f"ViT-{size.upper()}/{patch}"
    if None in shape.values():
        return f"{parameters / 1e6:.3g}M"
    patch = shape["patch_size"]
    patch = patch if isinstance(patch, int) else "x".join(map(str, patch))
    return f"{shape['hidden_size']}x{shape['num_hidden_layers']}/{patch}"


def training_name(stages: Sequence[str]) -> str:
    """The row of an encoder that went through these stages: MAE, then WSP, is MAWS; none is unknown.

    Args:
        stages: names as run ledgers have them. A stage repeated at once counts once.
    """
    once = [stage for number, stage in enumerate(stages) if stages[number - 1 : number] != [stage]]
    names = [_STAGES.get(stage, stage) for stage in once]
    if names[:2] == ["MAE", "WSP"]:
        names[:2] = ["MAWS"]
    return ", then ".join(names) or UNKNOWN


__all__ = ["TRAININGS", "UNKNOWN", "Entry", "SizeTable", "size_name", "training_name"]
