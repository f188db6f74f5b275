import socket
from pathlib import Path

import evaluate
import pytest
import torch

from maws_hf.evaluation.evaluate_metrics import MeanAveragePrecision, MeanPerClassAccuracy, TopKAccuracy
from maws_hf.evaluation.metrics import mean_average_precision, mean_per_class_accuracy, top_k_accuracy


def test_metrics_work_batch_by_batch_offline_and_leave_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: object) -> None:
        raise AssertionError("a metric may not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "home")
    generator = torch.Generator().manual_seed(2)
    scores, labels = torch.randn(30, 6, generator=generator), torch.arange(30) % 6
    lists = [[int(label)] * (place % 3 > 0) for place, label in enumerate(labels)]
    padded = torch.tensor([row or [-100] for row in lists])
    cases = [
        (TopKAccuracy(), labels, {f"top_{k}_accuracy": top_k_accuracy(scores, labels, k) for k in (1, 5)}),
        (MeanPerClassAccuracy(), labels, {"mean_per_class_accuracy": mean_per_class_accuracy(scores, labels)}),
        (MeanAveragePrecision(), lists, {"mean_average_precision": mean_average_precision(scores, padded)}),
    ]
    for metric, references, expected in cases:
        assert isinstance(metric, evaluate.Metric)
        assert metric.compute(predictions=scores, references=references) == pytest.approx(expected)
        for start in (0, 10, 20):
            metric.add_batch(predictions=scores[start : start + 10], references=references[start : start + 10])
        assert metric.compute() == pytest.approx(expected)
    metric = TopKAccuracy()
    assert metric.compute(predictions=scores, references=labels, k=2) == pytest.approx(
        {"top_2_accuracy": top_k_accuracy(scores, labels, 2)}
    )
    assert not list(tmp_path.iterdir())


def test_scores_keep_the_precision_of_float32():
    scores = [[1.0, 1.0 + 2**-20]]
    assert TopKAccuracy().compute(predictions=scores, references=[1], k=1) == {"top_1_accuracy": 1.0}
