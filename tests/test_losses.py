import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maws_hf.losses import (
    binary_weak_label_loss,
    classification_loss,
    contrastive_loss,
    masked_pixel_loss,
    normalize_patches,
    soft_target_loss,
    weak_label_loss,
    weak_label_loss_in_place,
)


def test_loss_equals_the_closed_form_in_float64():
    rng = np.random.default_rng(0)
    predictions, targets = rng.normal(size=(2, 3, 5, 12))
    normalized = (targets - targets.mean(-1, keepdims=True)) / np.sqrt(targets.var(-1, ddof=1, keepdims=True) + 1e-6)
    for norm_pix, wanted in ((True, normalized), (False, targets)):
        expected = ((predictions - wanted) ** 2).mean(-1).mean()
        loss = masked_pixel_loss(torch.tensor(predictions), torch.tensor(targets), norm_pix)
        assert abs(loss.item() - expected) < 1e-6


def test_bfloat16_predictions_are_compared_in_float32():
    predictions = torch.full((1, 1, 4), 1.0078125, dtype=torch.bfloat16)  # exact in bfloat16, its square is not
    loss = masked_pixel_loss(predictions, torch.zeros(1, 1, 4), norm_pix=False)
    assert loss.dtype == torch.float32
    assert loss.item() == 1.0078125**2


def test_a_flat_patch_normalizes_to_zero_not_to_infinity():
    assert torch.equal(normalize_patches(torch.full((1, 1, 12), 0.7)), torch.zeros(1, 1, 12))


def test_epsilon_is_added_to_the_variance_of_a_patch_that_is_nearly_flat():
    patch = 0.5 + 1e-3 * torch.randn(2, 3, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (patch - patch.mean(-1, keepdim=True)) / (patch.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(normalize_patches(patch).double(), expected, rtol=1e-3, atol=1e-3)


def dense_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The authors' statement, word for word, in float64: multi-hot over its number of positives, then softmax CE."""
    logits = logits.double()
    losses = []
    for row, indices in zip(logits, labels.tolist(), strict=True):
        positives = [index for index in indices if index >= 0]
        if positives:
            target = torch.zeros_like(row)
            target[positives] = 1 / len(positives)
            losses.append(-(target * row.log_softmax(0)).sum())
    return torch.stack(losses).mean()


def random_labels(images: int, places: int, classes: int, generator: torch.Generator) -> torch.Tensor:
    """Distinct indices in each row, a random number of them, -100 behind; the first image has none."""
    labels = torch.stack([torch.randperm(classes, generator=generator)[:places] for _ in range(images)])
    counts = torch.randint(1, places + 1, (images, 1), generator=generator)
    counts[0] = 0
    return labels.masked_fill(torch.arange(places) >= counts, -100)


@pytest.mark.parametrize("loss_function", [weak_label_loss, weak_label_loss_in_place])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_index_lists_equal_the_dense_form_in_float64(loss_function, dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(70, 16, generator=generator).to(dtype)  # three chunks of the in-place form
    weight = torch.randn(50, 16, generator=generator).to(dtype)
    labels = random_labels(70, 5, 50, generator)
    exact = (features.double().requires_grad_(), weight.double().requires_grad_())
    expected = dense_loss(exact[0] @ exact[1].T, labels)
    (3 * expected).backward()
    ours = (features.clone().requires_grad_(), weight.clone().requires_grad_())
    loss = loss_function(ours[0] @ ours[1].T, labels)
    (3 * loss).backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    for mine, theirs in zip(ours, exact, strict=True):
        assert (mine.grad.double() - theirs.grad).norm() <= tolerance * theirs.grad.norm()


@pytest.mark.parametrize("loss_function", [weak_label_loss, weak_label_loss_in_place])
def test_a_batch_without_labels_costs_nothing_and_still_has_gradients(loss_function):
    logits = torch.randn(3, 4, requires_grad=True)
    loss = loss_function(logits * 1, torch.full((3, 2), -100))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(3, 4))


def test_in_place_form_keeps_logits_that_need_no_gradient():
    logits = torch.randn(3, 4)
    before = logits.clone()
    weak_label_loss_in_place(logits, torch.tensor([[0], [1], [2]]))
    assert torch.equal(logits, before)


def test_soft_targets_are_divided_by_their_sum_and_empty_rows_ignored():
    logits = torch.randn(4, 6, dtype=torch.float64)
    targets = torch.tensor([[2.0, 0, 0, 2, 0, 0], [0, 1, 0, 0, 0, 0], [0] * 6, [0.1, 0.2, 0, 0, 0, 0.7]])
    log_probabilities = logits.log_softmax(1)
    expected = (
        -(
            (log_probabilities[0, 0] + log_probabilities[0, 3]) / 2
            + log_probabilities[1, 1]
            + 0.1 * log_probabilities[3, 0]
            + 0.2 * log_probabilities[3, 1]
            + 0.7 * log_probabilities[3, 5]
        )
        / 3
    )
    assert soft_target_loss(logits, targets).item() == pytest.approx(expected.item(), rel=1e-6)


def test_binary_lists_equal_binary_cross_entropy_of_labelled_rows_summed_over_classes():
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(8, 9, generator=generator), random_labels(8, 3, 9, generator)
    targets = torch.zeros(8, 9).scatter_add_(1, labels.clamp(min=0), (labels >= 0).float())
    expected = 9 * F.binary_cross_entropy_with_logits(logits[1:].double(), targets[1:].double())
    assert binary_weak_label_loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_multi_hot_rows_of_integers_are_no_lists():
    logits = torch.randn(2, 5)
    rows = torch.tensor([[0, 1, 0, 1, 0], [1, 0, 0, 0, 1]])
    for binary in (True, False):
        with pytest.raises(ValueError, match=r"int64 of shape \(2, 5\) with nothing but 0 and 1.*labels\.float\(\)"):
            classification_loss(logits, rows, binary=binary)
        assert classification_loss(logits, rows.bool(), binary=binary).isfinite()
    lists = torch.tensor([[0, 1, -100, -100, -100], [1, 0, 2, 3, 4]])
    assert classification_loss(logits, lists) == weak_label_loss(logits, lists)
    both = torch.tensor([[0, 1], [1, -100]])
    assert classification_loss(logits[:, :2], both) == weak_label_loss(logits[:, :2], both)


@pytest.mark.parametrize("binary", [True, False])
def test_dense_targets_of_bfloat16_logits_are_compared_in_float32(binary: bool):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 50, generator=generator).bfloat16()
    targets = torch.rand(16, 50, generator=generator)
    targets /= targets.sum(dim=1, keepdim=True)
    exact = (F.binary_cross_entropy_with_logits if binary else F.cross_entropy)(logits.double(), targets.double())
    loss = classification_loss(logits, targets, binary=binary)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


def test_binary_lists_of_bfloat16_logits_are_compared_in_float32():
    logits = torch.randn(8, 200, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.tensor([[3, 7]] * 8)
    targets = torch.zeros(8, 200, dtype=torch.float64)
    targets[:, [3, 7]] = 1
    exact = 200 * F.binary_cross_entropy_with_logits(logits.double(), targets)
    loss = classification_loss(logits, labels, binary=True)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


def test_a_contrastive_loss_under_autocast_is_that_of_float32():
    generator = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(16, 64, generator=generator), dim=1) for _ in range(2))
    scale, own = torch.tensor(100.0), torch.arange(16)
    logits = 100 * images.double() @ texts.double().T
    exact = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(images, texts, scale)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
