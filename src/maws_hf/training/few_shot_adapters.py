"""Small adapters and heads, trained on few labelled images with the encoder frozen (paper section 4, Table 5).

The paper names LoRA, AdaptFormer and VPT and gives none of their settings. Ours: LoRA of rank 8 for queries and values
and AdaptFormer's branches lie in the last two layers, VPT has a token in every layer; AdamW without weight decay, 60
updates of 16 images, a random half of them mirrored; with many images as many times 60 as let each come up ten times.
The learning rate is chosen (`few_shot_selection.py`).

Many are trained at once, those of several choices of images, folds and learning rates: they are members of one batch
that share the encoder, and each has weights, images and a learning rate of its own. Each ends up as if trained alone.

The head goes on from a linear classifier, with that classifier's own objective: features of length 1, and its weight
decay.

Legend: M members, N images, B images of a batch, T tokens, D features, C classes.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftConfig
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..adapters import AdaptFormerConfig, VPTConfig
from ..evaluation.linear_heads import LinearHead
from ..optim.schedules import warmup_cosine
from .frozen_prefix import AdaptedTail, TokensBefore

# Of an update's activations, of all members together. On a GPU more members cost little more time; on a CPU they push
# each other out of its cache.
ACTIVATION_BYTES = {"cpu": 2**27, "cuda": 2**33}
FLOATS_KEPT = 20  # by a layer, for each of the floats that it reads: those of the MLP alone are half
LEAST_EPOCHS = 10
HEAD = ("head.weight", "head.bias")


@dataclass(frozen=True)
class AdapterRecipe:
    """How one method is trained.

    Attributes:
        config: makes its PEFT config for an encoder of so many layers. Dropout is off, in it and in the encoder.
        learning_rates: of AdamW, at the peak, to choose from.
        updates: a tenth of them warm-up, then half a cosine; see [`long_enough`].
        batch_size: images an update; all where there are fewer.
    """

    config: Callable[[int], PeftConfig]
    learning_rates: tuple[float, ...]
    updates: int = 60
    batch_size: int = 16


def _last_two(layers: int) -> list[int]:
    return list(range(max(layers - 2, 0), layers))


def _lora(layers: int) -> PeftConfig:
    return LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=["q_proj", "v_proj"],
        layers_to_transform=_last_two(layers),
        layers_pattern="layers",
    )


def _adaptformer(layers: int) -> PeftConfig:
    modules = rf"layers\.({'|'.join(map(str, _last_two(layers)))})\.mlp"
    return AdaptFormerConfig(target_modules=modules, dropout=0.0)


def _vpt(layers: int) -> PeftConfig:
    # Random tokens disturb the features at first, five (the reference's default) of 42 more than one of 38.
    return VPTConfig(num_prompts=1, prompt_dropout=0.0)


RECIPES: dict[str, AdapterRecipe] = {
    "lora": AdapterRecipe(_lora, (1e-4, 1e-3, 3e-3)),
    "adaptformer": AdapterRecipe(_adaptformer, (1e-4, 1e-3, 3e-3)),
    "vpt": AdapterRecipe(_vpt, (3e-4, 3e-3, 1e-2)),
}


@dataclass(frozen=True)
class Member:
    """One adapter and head to be.

    Attributes:
        rows: of its images.
        learning_rate: at the peak.
        decay: decay / 2 x the head's squared weights is added to the mean cross-entropy.
        head: what the head starts as.
        adapter: what the adapter starts as.
        seed: of the order of the images and of which are mirrored.
    """

    rows: Tensor
    learning_rate: float
    decay: float
    head: LinearHead
    adapter: dict[str, Tensor]
    seed: int


Weights = dict[str, Tensor]


def train_members(
    tail: AdaptedTail, tokens: Tensor, labels: Tensor, members: Sequence[Member], recipe: AdapterRecipe
) -> list[Weights]:
    """Trained weights of each member, by their names in `tail`, and those of `HEAD`.

    Args:
        tokens: `(N, 2, T, D)`, what the tail reads of every image and of its mirror image.
        labels: `(N,)`.
    """
    at_once = members_at_once(tail, tokens, recipe)
    parts = [members[start : start + at_once] for start in range(0, len(members), at_once)]
    return [weights for part in parts for weights in _train_together(tail, tokens, labels, part, recipe)]


def long_enough(recipe: AdapterRecipe, images: int) -> AdapterRecipe:
    """With as many times its updates as show each of so many images `LEAST_EPOCHS` times."""
    times = -(-LEAST_EPOCHS * images // (recipe.updates * recipe.batch_size))
    return replace(recipe, updates=recipe.updates * max(times, 1))


def members_at_once(tail: AdaptedTail, tokens: Tensor, recipe: AdapterRecipe) -> int:
    """So many that the memory for their activations suffices, and at least one."""
    of_image = FLOATS_KEPT * len(tail.layers) * tokens[0, 0].nbytes
    kind = "cpu" if tail.layernorm.weight.device.type == "cpu" else "cuda"
    return max(1, ACTIVATION_BYTES[kind] // (recipe.batch_size * of_image))


def _train_together(
    tail: AdaptedTail, tokens: Tensor, labels: Tensor, members: Sequence[Member], recipe: AdapterRecipe
) -> list[Weights]:
    device = tail.layernorm.weight.device
    weights = _first_weights(members, device, tokens.dtype)
    decays = torch.tensor([member.decay for member in members], device=device, dtype=tokens.dtype)
    optimizer = _build_optimizer(weights, members)
    rows, mirrored, shares = plan_updates(members, recipe)
    for step in range(recipe.updates):
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(
                step, peak=group["peak"], warmup_steps=recipe.updates // 10, max_steps=recipe.updates
            )
        for weight in weights.values():
            weight.grad.zero_()
        batch = tokens[rows[:, step], mirrored[:, step]].to(device)
        targets = labels[rows[:, step]].to(device)
        losses = F.cross_entropy(member_logits(tail, weights, batch).transpose(1, 2), targets, reduction="none")
        loss = (losses * shares[:, step].to(losses)).sum()  # the sum over members: none is in another's gradient
        loss = loss + (decays / 2 * weights[HEAD[0]].square().sum(dim=(1, 2))).sum()
        loss.backward()
        optimizer.step()
    return [
        {name: weight[place].detach().clone() for name, weight in weights.items()} for place in range(len(members))
    ]


def member_logits(tail: AdaptedTail, weights: Weights, tokens: Tensor) -> Tensor:
    """`(M, N, C)` of members' weights `(M, ...)`.

    Args:
        tokens: `(M, N, T, D)`, what each member reads; or `(N, T, D)`, which all read.
    """

    def of_one(own: Weights, read: Tensor) -> Tensor:
        adapter = {name: weight for name, weight in own.items() if name not in HEAD}
        directions = F.normalize(functional_call(tail, adapter, (read,)), dim=1)
        return F.linear(directions, *(own[name] for name in HEAD))

    # Of the fused attentions, that of CPUs would be called for one member after the other.
    attention = sdpa_kernel(SDPBackend.MATH) if tokens.device.type == "cpu" else nullcontext()
    with attention:
        return torch.vmap(of_one, in_dims=(0, 0 if tokens.dim() == 4 else None))(weights, tokens)


@torch.no_grad()
def predict(tail: AdaptedTail, members: Sequence[Weights], tokens: TokensBefore) -> Tensor:
    """`(M, N, C)` logits of the same images, on the CPU."""
    weights, device = stack(members), tail.layernorm.weight.device
    return torch.cat([member_logits(tail, weights, batch.to(device)).cpu() for batch in tokens.batches()], dim=1)


def stack(members: Sequence[Weights]) -> Weights:
    """Of weights of each member, those of all: `(M, ...)`."""
    return {name: torch.stack([weights[name] for weights in members]) for name in members[0]}


def _first_weights(members: Sequence[Member], device: torch.device, dtype: torch.dtype) -> Weights:
    weights = stack([{**m.adapter, HEAD[0]: m.head.weight, HEAD[1]: m.head.bias} for m in members])
    return {name: weight.to(device, dtype).requires_grad_() for name, weight in weights.items()}


def _build_optimizer(weights: Weights, members: Sequence[Member]) -> torch.optim.Optimizer:
    """A group for each member, of slices that share the memory of all."""
    for weight in weights.values():
        weight.grad = torch.zeros_like(weight)
    groups = []
    for place, member in enumerate(members):
        slices = []
        for weight in weights.values():
            slices.append(weight.detach()[place])
            slices[-1].grad = weight.grad[place]
        groups.append({"params": slices, "peak": member.learning_rate})
    return torch.optim.AdamW(groups, weight_decay=0.0)


def plan_updates(members: Sequence[Member], recipe: AdapterRecipe) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows every update reads, which of them mirrored (1 or 0), and their shares in the mean: `(M, updates, B)`.

    Each member goes through its images in one random order after the other. Where members have fewer images than B
    and not the same number, batches are padded with images that have no share.
    """
    widest = min(recipe.batch_size, max(len(member.rows) for member in members))
    plans = []
    for member in members:
        rng = np.random.default_rng(member.seed)
        images = len(member.rows)
        size = min(recipe.batch_size, images)
        rounds = -(-recipe.updates * size // images)
        order = np.concatenate([rng.permutation(images) for _ in range(rounds)])[: recipe.updates * size]
        mirrored = torch.from_numpy(rng.integers(2, size=(recipe.updates, size)))
        rows = member.rows[torch.from_numpy(order)].view(recipe.updates, size)
        padding = (0, widest - size)
        shares = F.pad(torch.full(rows.shape, 1 / size, dtype=torch.float64), padding)
        plans.append((F.pad(rows, padding, value=int(rows[0, 0])), F.pad(mirrored, padding), shares))
    rows, mirrored, shares = map(torch.stack, zip(*plans, strict=True))
    return rows, mirrored, shares


__all__ = [
    "HEAD",
    "RECIPES",
    "AdapterRecipe",
    "Member",
    "Weights",
    "long_enough",
    "member_logits",
    "members_at_once",
    "plan_updates",
    "predict",
    "stack",
    "train_members",
]
