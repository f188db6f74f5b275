"""Training objectives, computed in float32 whatever the model's precision.

Legend: B images, C classes, K places for the labels of an image.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

# Of logits that a CPU turns into gradients at once: those of so many images and 28,000 classes stay in its cache.
ROWS_IN_CACHE = 32


def normalize_patches(patches: Tensor) -> Tensor:
    """Each patch by the mean and unbiased variance of its own values, channels together (MAE, section 3).

    Args:
        patches: `(..., values)`.
    """
    patches = patches.float()
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()  # as in the original's `forward_loss`


def masked_pixel_loss(predictions: Tensor, targets: Tensor, norm_pix: bool = True) -> Tensor:
    """Mean squared error on the masked patches (MAWS section 3; MAE `forward_loss`).

    Of every sample equally many patches are predicted, so the mean over all values equals the original's mean over the
    pixels of a patch followed by the mean over the masked patches.

    Args:
        predictions: `(B, M, values)`, one row a masked patch that is predicted.
        targets: `(B, M, values)`, the pixels of the same patches.
        norm_pix: compare with patches normalised by `normalize_patches`.

    Returns:
        A float32 scalar.
    """
    targets = normalize_patches(targets) if norm_pix else targets.float()
    return F.mse_loss(predictions.float(), targets)


def weak_label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross-entropy against a set of labels: the multi-hot target divided by its number of positives.

    That is the WSP objective (paper section 3) as its authors state it. Images without labels are ignored, and the
    mean is over the others. Labels are index lists, never dense rows: 64 bytes an image instead of 112 kB at 28,000
    classes, with the same value.

    Args:
        logits: `(B, C)`.
        labels: `(B, K)` int64, distinct class indices of each image; what is left of its row is negative (-100).

    Returns:
        A float32 scalar; 0 if no image has a label.
    """
    share, labelled = _shares(labels)
    values = at_least_float32(logits)
    losses = values.logsumexp(dim=1) - (values.gather(1, labels.clamp(min=0)) * share).sum(dim=1)
    return _mean_over_labelled(losses, labelled)


def weak_label_loss_in_place(logits: Tensor, labels: Tensor) -> Tensor:
    """`weak_label_loss` that turns the logits into their own gradient while they are at hand: faster, less memory.

    The logits are lost. They must come straight from an operation that does not need its result again (a linear
    layer), and the gradient can be taken once.
    """
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and logits.requires_grad):
        return weak_label_loss(logits, labels)
    return _InPlaceWeakLabelLoss.apply(logits, labels)


class _InPlaceWeakLabelLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        share, labelled = _shares(labels)
        weight = labelled / labelled.sum().clamp(min=1)
        loss = torch.zeros((), device=logits.device)
        at_once = ROWS_IN_CACHE if logits.device.type == "cpu" else max(len(logits), 1)
        for start in range(0, len(logits), at_once):
            rows = slice(start, start + at_once)
            values, index = logits[rows].float(), labels[rows].clamp(min=0)
            log_total = values.logsumexp(dim=1)
            loss += ((log_total - (values.gather(1, index) * share[rows]).sum(dim=1)) * weight[rows]).sum()
            probabilities = values.sub_(log_total[:, None]).exp_()
            logits[rows] = probabilities.scatter_add_(1, index, -share[rows]).mul_(weight[rows, None])
        ctx.gradient = logits
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor, None]:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(loss_gradient.to(gradient.dtype)), None


def soft_target_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Softmax cross-entropy against dense targets: multi-hot rows are divided by their number of positives.

    Soft targets are divided by their sum, which is 1 already after mixup. Rows without any target are ignored.

    Args:
        logits, targets: `(B, C)`; targets are not negative.

    Returns:
        A float32 scalar; 0 if no row has a target.
    """
    targets = at_least_float32(targets)
    total = targets.sum(dim=1)
    losses = -(targets * at_least_float32(logits).log_softmax(dim=1)).sum(dim=1) / total.where(total > 0, 1.0)
    return _mean_over_labelled(losses, total > 0)


def binary_weak_label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sigmoid cross-entropy against index lists, as `weak_label_loss` has them: summed over classes, mean over images.

    Summed, as in the recipe of "How to train your ViT": the mean over 28,000 classes has gradients below Adam's
    epsilon. Images without labels are ignored here too: one without usable tags is no evidence against all classes.
    """
    values = at_least_float32(logits)
    positives = torch.where(labels >= 0, values.gather(1, labels.clamp(min=0)), 0.0)
    losses = F.softplus(values).sum(dim=1) - positives.sum(dim=1)
    return _mean_over_labelled(losses, (labels >= 0).any(dim=1))


def classification_loss(
    logits: Tensor, labels: Tensor, *, binary: bool = False, logits_are_needed: bool = True
) -> Tensor:
    """The loss that fits the form of the labels.

    Args:
        logits: `(B, C)`.
        labels: integers `(B,)`, one class each (negative: ignored); integers `(B, K)`, index lists padded with -100;
            or floating point or bool `(B, C)`, multi-hot or soft.
        binary: sigmoid instead of softmax cross-entropy: of index lists summed over classes, of dense rows their mean,
            as transformers has it.
        logits_are_needed: False lets the loss overwrite them.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: the labels have another shape, or are multi-hot rows of integers.
    """
    images, classes = logits.shape
    dense = labels.is_floating_point() or labels.dtype == torch.bool
    fits = tuple(labels.shape) == (images, classes) if dense else labels.dim() in (1, 2) and len(labels) == images
    if not fits:
        raise ValueError(
            f"labels is {labels.dtype} of shape {tuple(labels.shape)} for {images} images and {classes} classes; "
            f"expected integers ({images},), integer lists ({images}, K) padded with -100, or floating point "
            f"({images}, {classes})"
        )
    if dense:
        targets = at_least_float32(labels)
        return (
            F.binary_cross_entropy_with_logits(at_least_float32(logits), targets)
            if binary
            else soft_target_loss(logits, targets)
        )
    # As wide as there are classes is no list but by chance; only then the host looks at the values.
    as_wide = tuple(labels.shape) == (images, classes) and images > 0 and classes > 2 and not labels.is_meta
    if as_wide and not torch.compiler.is_compiling() and bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError(
            f"labels is {labels.dtype} of shape {tuple(labels.shape)} with nothing but 0 and 1: multi-hot rows must "
            "be floating point (labels.float()); rows of integers are lists of classes"
        )
    lists = labels.long() if labels.dim() == 2 else labels.long()[:, None]
    if binary:
        return binary_weak_label_loss(logits, lists)
    return weak_label_loss(logits, lists) if logits_are_needed else weak_label_loss_in_place(logits, lists)


def _shares(labels: Tensor) -> tuple[Tensor, Tensor]:
    """1 / positives at each label and 0 at padding `(B, K)`; which images have a label `(B,)`."""
    present = labels >= 0
    positives = present.sum(dim=1, keepdim=True)
    return present.float() / positives.clamp(min=1), positives[:, 0] > 0


def _mean_over_labelled(losses: Tensor, labelled: Tensor) -> Tensor:
    return torch.where(labelled, losses, 0.0).sum() / labelled.sum().clamp(min=1)


def at_least_float32(tensor: Tensor) -> Tensor:
    """float32, or float64 as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class _GatherWithGradient(torch.autograd.Function):
    """`(n, D)` of this process -> `(N, D)` of all, in the order of ranks; gradients of all processes flow back."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor) -> Tensor:
        gathered = embeddings.new_empty(dist.get_world_size() * len(embeddings), *embeddings.shape[1:])
        dist.all_gather_into_tensor(gathered, embeddings.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        own = gradient.new_empty(len(gradient) // dist.get_world_size(), *gradient.shape[1:])
        dist.reduce_scatter_tensor(own, gradient.contiguous())
        return own


def contrastive_loss(
    image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, *, across_ranks: bool = False
) -> Tensor:
    """Cross-entropy of finding each image's caption among all captions and each caption's image (CLIP; MAWS 4.1).

    Args:
        image_embeds, text_embeds: `(B, D)`, normalised; row i of one belongs to row i of the other.
        logit_scale: scalar that multiplies the cosines, float32 or float64.
        across_ranks: all pairs of all processes are candidates, and the mean over processes of the returned loss, and
            of its gradients (as DistributedDataParallel takes it), is exactly that of one process with all the pairs.
            Every process must have equally many.

    Returns:
        A scalar in float32 (of float64 embeddings float64): of this process' pairs.
    """
    image_embeds, text_embeds = at_least_float32(image_embeds), at_least_float32(text_embeds)
    all_images, all_texts, first = image_embeds, text_embeds, 0
    if across_ranks:
        all_images, all_texts = _GatherWithGradient.apply(image_embeds), _GatherWithGradient.apply(text_embeds)
        first = dist.get_rank() * len(image_embeds)
    own = torch.arange(first, first + len(image_embeds), device=image_embeds.device)
    with torch.autocast(image_embeds.device.type, enabled=False):
        of_images = F.cross_entropy(logit_scale * image_embeds @ all_texts.T, own)
        of_texts = F.cross_entropy(logit_scale * text_embeds @ all_images.T, own)
    return (of_images + of_texts) / 2
