"""Scores as metrics of Hugging Face `evaluate`, for whoever expects a metric; nothing is downloaded.

The package itself calls the functions of `metrics.py`: `evaluate` keeps what it is given as Arrow rows, half a second
for a million scores.
"""

from collections.abc import Sequence
from typing import Any

import evaluate
import torch
from datasets import Features, List, Value

from .metrics import label_ranks, mean_average_precision, mean_per_class_accuracy, share_within


class _ScoreMetric(evaluate.Metric):
    """A metric of rows of scores, kept in memory in a single process: then no file or lock is left in the home.

    With `num_process` above 1, rows are exchanged through files, as `evaluate` does.
    """

    references: Any = Value("int64")
    inputs = "predictions: a score for each class, (N, C). references: the class of each row, integers (N,)."

    def __init__(self, *arguments: Any, num_process: int = 1, keep_in_memory: bool | None = None, **options: Any):
        in_memory = num_process == 1 if keep_in_memory is None else keep_in_memory
        super().__init__(*arguments, num_process=num_process, keep_in_memory=in_memory, **options)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description=self.inputs,
            features=Features({"predictions": List(Value("float32")), "references": self.references}),
        )

    def _build_data_dir(self) -> str:
        return self._data_dir_root if self.keep_in_memory else super()._build_data_dir()


class TopKAccuracy(_ScoreMetric):
    """Share of rows whose class is among the k best scores."""

    def _compute(
        self, predictions: list[list[float]], references: list[int], k: int | Sequence[int] = (1, 5)
    ) -> dict[str, float]:
        ranks = label_ranks(torch.tensor(predictions), torch.tensor(references))
        wanted = [k] if isinstance(k, int) else k
        return {f"top_{places}_accuracy": share_within(ranks, places) for places in wanted}


class MeanPerClassAccuracy(_ScoreMetric):
    """Top-1 accuracy averaged over classes."""

    def _compute(self, predictions: list[list[float]], references: list[int]) -> dict[str, float]:
        return {
            "mean_per_class_accuracy": mean_per_class_accuracy(torch.tensor(predictions), torch.tensor(references))
        }


class MeanAveragePrecision(_ScoreMetric):
    """Average precision of each class, averaged over the classes with a positive."""

    references = List(Value("int64"))
    inputs = "predictions: a score for each class, (N, C). references: the list of each row's classes, maybe empty."

    def _compute(self, predictions: list[list[float]], references: list[list[int]]) -> dict[str, float]:
        longest = max(1, max(map(len, references)))
        padded = torch.tensor([row + [-100] * (longest - len(row)) for row in references])
        return {"mean_average_precision": mean_average_precision(torch.tensor(predictions), padded)}


__all__ = ["MeanAveragePrecision", "MeanPerClassAccuracy", "TopKAccuracy"]
