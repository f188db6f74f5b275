import pytest
import torch
from tiny import tiny_config
from transformers.modeling_outputs import ImageClassifierOutput

from maws_hf import MawsViTForImageClassification
from maws_hf.evaluation.weak_labels import weak_label_scores


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> MawsViTForImageClassification:
    """One whose logits are written in the first pixels of the image."""
    model = MawsViTForImageClassification(tiny_config(num_labels=7))
    monkeypatch.setattr(model, "forward", lambda images: ImageClassifierOutput(logits=images[:, 0, 0, :7]))
    return model


def test_hits_count_images_whose_labels_come_first(model: MawsViTForImageClassification):
    images = torch.zeros(4, 3, 8, 8)
    images[:, 0, 0, :7] = torch.tensor([7.0, 6, 5, 4, 3, 2, 1])  # always predicts 0, 1, 2, 3, 4
    labels = torch.tensor([[0, 6, -100], [4, 6, -100], [5, 6, -100], [6, -100, -100]])
    scores = weak_label_scores(model.train(), images, labels, batch_size=3)
    assert scores.hit_at_1 == 0.25
    assert scores.hit_at_5 == 0.5
    assert scores.frequent_hit_at_1 == 1.0  # class 6
    assert scores.predictions.tolist() == [[0, 1, 2, 3, 4]] * 4
    log_probabilities = images[0, 0, 0, :7].log_softmax(0)
    expected = -torch.stack([log_probabilities[row[row >= 0]].mean() for row in labels]).mean()
    assert scores.loss == pytest.approx(expected.item(), rel=1e-6)
    assert model.training


def test_fewer_than_five_classes_are_no_problem():
    model = MawsViTForImageClassification(tiny_config(num_labels=3))
    scores = weak_label_scores(model, torch.rand(2, 3, 32, 32), torch.tensor([[0, -100], [1, 2]]))
    assert scores.predictions.shape == (2, 3)
    assert scores.hit_at_5 == 1.0
