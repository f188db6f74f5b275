"""The part of a frozen encoder that an adapter does not touch, computed once an image.

What comes before the first adapted layer gives the same tokens in every update and for every adapter: an adapter in
the last two layers of six leaves less than a quarter of the work to be repeated. Where the first layer is adapted,
only the patch embedding comes before it.

Legend: N images, T tokens, D width.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftConfig, get_peft_model
from torch import Tensor, nn

from ..models.modeling_maws_vit import MawsViTModel

KEPT_BYTES = 2**31  # of one set of images; larger ones are computed again each time


class AdaptedTail(nn.Module):
    """The layers from the first adapted one on, and the final norm.

    Attributes:
        first: number of that layer.
        layers, layernorm: the encoder's own, with the adapter in them.

    Raises:
        ValueError: something else than layers is adapted, or nothing is.
    """

    def __init__(self, encoder: MawsViTModel):
        super().__init__()
        places = [name.split(".") for name, parameter in encoder.named_parameters() if parameter.requires_grad]
        if not places or any(place[0] != "layers" for place in places):
            raise ValueError("the adapter must lie in the encoder's layers, and nowhere else")
        self.first = min(int(place[1]) for place in places)
        self.layers = encoder.layers[self.first :]
        self.layernorm = encoder.layernorm

    def forward(self, tokens: Tensor) -> Tensor:
        """`(N, T, D)`, what the first adapted layer reads -> the images' features `(N, D)`.

        As in the encoder, the last layer computes the class token alone.
        """
        *before, last = self.layers
        for layer in before:
            tokens = layer(tokens)
        return self.layernorm(last(tokens, slice(0, 1)))[:, 0]


@contextmanager
def adapted_tail(encoder: MawsViTModel, config: PeftConfig) -> Iterator[AdaptedTail]:
    """Puts an adapter into the encoder, and takes it out at the end: the encoder is then as it was."""
    was_training = encoder.training
    learning = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # PEFT reads it
        model = get_peft_model(encoder, config)
    try:
        yield AdaptedTail(encoder.eval())
    finally:
        model.unload()
        for parameter in learning:
            parameter.requires_grad_()
        encoder.train(was_training)


def first_weights(encoder: MawsViTModel, config: PeftConfig, seed: int) -> dict[str, Tensor]:
    """What such an adapter starts as, by its names in the tail."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with adapted_tail(encoder, config) as tail:
            return {name: p.detach().clone() for name, p in tail.named_parameters() if p.requires_grad}


class TokensBefore:
    """What layer `first` reads of some images, computed when it is first asked for.

    Args:
        pixels: `(N, 3, H, W)`, uint8 or normalised.
        batch_size: images of a batch.
    """

    def __init__(self, encoder: MawsViTModel, first: int, pixels: Tensor, batch_size: int = 64):
        self.encoder, self.first, self.pixels, self.batch_size = encoder, first, pixels, batch_size
        self._kept: list[Tensor] | None = None

    def batches(self) -> Iterator[Tensor]:
        """`(batch, T, D)` on the CPU, in order."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Tensor] = []
        for batch in self.pixels.split(self.batch_size):
            tokens = self._compute(batch)
            if tokens[0].nbytes * len(self.pixels) <= KEPT_BYTES:
                kept.append(tokens)
            yield tokens
        self._kept = kept or None

    @torch.no_grad()
    def _compute(self, pixels: Tensor) -> Tensor:
        """With the encoder's own first layers, which no adapter changes."""
        tokens = self.encoder.embeddings(pixels.to(self.encoder.device))
        for layer in self.encoder.layers[: self.first]:
            tokens = layer(tokens)
        return tokens.cpu()

    def all(self) -> Tensor:
        """`(N, T, D)`."""
        return torch.cat(list(self.batches()))


__all__ = ["AdaptedTail", "TokensBefore", "adapted_tail", "first_weights"]
