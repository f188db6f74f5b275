import pytest
import torch
import torch.nn.functional as F
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


def test_the_loss_of_a_model_of_many_labels_is_the_sum_over_classes(model: MawsViTForImageClassification):
    model.config.problem_type = "multi_label_classification"
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 6], [4, -100], [5, 2]])
    dense = torch.zeros(3, 7)
    dense[[0, 0, 1, 2, 2], [0, 6, 4, 5, 2]] = 1
    losses = F.binary_cross_entropy_with_logits(images[:, 0, 0, :7], dense, reduction="none")
    found = weak_label_scores(model, images, labels).loss
    assert found == pytest.approx(losses.sum(dim=1).mean().item(), rel=1e-5)


def test_dropout_is_off_meanwhile():
    torch.manual_seed(0)
    model = MawsViTForImageClassification(tiny_config(num_labels=7, hidden_dropout_prob=0.5)).train()
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8)[:, None] % 7
    assert weak_label_scores(model, images, labels).loss == weak_label_scores(model.eval(), images, labels).loss
