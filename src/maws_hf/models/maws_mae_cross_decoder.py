"""CrossMAE's decoder (Fu et al., TMLR 2025, arXiv 2401.14391): `decoder_attention="cross"`, off by default.

Each hidden patch is a query that looks at the encoder's tokens in every block, and at no other hidden patch; so what
is predicted for a patch does not depend on which others are predicted. That is another objective than MAE's, which
MAWS uses. As in the authors' code (`models_cross.py`): keys and values are projected straight from the encoder's
width, and get no positions but those the encoder gave them; the class token is among them; queries are normed, and
what they look at is the encoder's normed output or, with inter-block attention, normed once for each decoder block.
The authors train with inter-block attention and 12 decoder blocks; our defaults stay those of MAE.

Legend: B images, R predicted patches, T = 1 + kept tokens, D encoder width, W decoder width, N decoder blocks.
"""

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from ..kernels.linear import Linear, cast_for_autocast
from .configuration_maws_vit import MawsViTConfig, as_pair
from .modeling_maws_vit import MawsViTAttention, MawsViTMLP, MawsViTModel
from .patch_grid import resample_position_table, sincos_position_table


class MawsMAECrossAttention(MawsViTAttention):
    """Multi-head attention of the decoder's tokens to the encoder's, with the backends of self-attention."""

    def __init__(self, config: MawsViTConfig):
        super().__init__(config, config.decoder_hidden_size, config.decoder_num_attention_heads)
        self.k_proj = Linear(config.hidden_size, config.decoder_hidden_size, bias=config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, config.decoder_hidden_size, bias=config.qkv_bias)

    def forward(
        self, hidden_states: Tensor, encoded: Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[Tensor, Tensor | None]:
        """Queries `(B, R, W)`, keys and values `(B, T, D)` -> `(B, R, W)` and, with eager attention, probabilities."""
        attended, probabilities = self.attend(hidden_states, cast_for_autocast(encoded), **kwargs)
        return self.o_proj(attended), probabilities


class MawsMAECrossLayer(GradientCheckpointingLayer):
    """Pre-norm block without self-attention: x + attention(norm(x), encoded), then x + mlp(norm(x)).

    The attention's name is its own, so that no weights of a self-attention are ever taken for it.
    """

    def __init__(self, config: MawsViTConfig):
        super().__init__()
        width = config.decoder_hidden_size
        self.layernorm_before = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.cross_attention = MawsMAECrossAttention(config)
        self.layernorm_after = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = MawsViTMLP(config, width, config.decoder_intermediate_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, encoded: Tensor, **kwargs: Unpack[TransformersKwargs]) -> Tensor:
        """`(B, R, W)` and `(B, T, D)` -> `(B, R, W)`."""
        attended, _ = self.cross_attention(self.layernorm_before(hidden_states), encoded, **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.layernorm_after(hidden_states)))


class MawsMAECrossDecoder(nn.Module):
    """From the encoder's tokens to the pixels of chosen hidden patches, each read out for itself."""

    def __init__(self, config: MawsViTConfig):
        super().__init__()
        self.config = config
        width, depth = config.decoder_hidden_size, config.decoder_num_hidden_layers
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        # Stored although constant, as in `MawsMAEDecoder`.
        table = sincos_position_table(width, config.grid_size)
        self.register_buffer("position_embeddings", torch.empty(table.shape).copy_(table))
        if config.decoder_inter_block_attention:
            # Of the embeddings and each encoder layer, for each decoder block; drawn with variance 1 / (layers + 1).
            self.feature_weights = nn.Parameter(torch.empty(depth, config.num_hidden_layers + 1))
            self.feature_norms = nn.ModuleList(
                nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in range(depth)
            )
        self.layers = nn.ModuleList(MawsMAECrossLayer(config) for _ in range(depth))
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        patch_height, patch_width = as_pair(config.patch_size)
        self.head = Linear(width, patch_height * patch_width * config.num_channels)

    def forward(
        self, encoded: Tensor | tuple[Tensor, ...], ids_keep: Tensor, ids_predicted: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """
        Args:
            encoded: the encoder's normed output `(B, T, D)`; with inter-block attention its hidden states, embeddings
                first, each `(B, T, D)` and not normed.
            ids_keep: not used; the encoder's tokens know where they are.
            ids_predicted: `(B, R)`.

        Returns:
            `(B, R, values of a patch)`.
        """
        positions = resample_position_table(self.position_embeddings, self.config.grid_size, grid)
        hidden_states = self.mask_token + positions[0, 1:][ids_predicted]
        for layer, features in zip(self.layers, self._features_of_blocks(encoded), strict=True):
            hidden_states = layer(hidden_states, features)
        return self.head(self.layernorm(hidden_states))

    def _features_of_blocks(self, encoded: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
        """What each decoder block looks at, N times `(B, T, D)`."""
        if not self.config.decoder_inter_block_attention:
            return [encoded] * len(self.layers)
        stacked = torch.stack(encoded)
        mixtures = (self.feature_weights @ stacked.flatten(1)).unflatten(1, stacked.shape[1:])
        return [norm(mixture) for norm, mixture in zip(self.feature_norms, mixtures, strict=True)]


def encode_all_layers(
    encoder: MawsViTModel, pixel_values: Tensor, ids_keep: Tensor, **kwargs: Unpack[TransformersKwargs]
) -> tuple[BaseModelOutputWithPooling, tuple[Tensor, ...]]:
    """What inter-block attention reads: the encoder's output with no more hidden states in it than were asked for, and
    all of them: the embeddings and each layer's output, `(B, T, D)`."""
    asked_for = kwargs.get("output_hidden_states", encoder.config.output_hidden_states)
    encoded = encoder(pixel_values, ids_keep=ids_keep, return_dict=True, **{**kwargs, "output_hidden_states": True})
    states = encoded.hidden_states
    if asked_for is None or asked_for is False:
        encoded.hidden_states = None
    elif asked_for is not True:  # indices, as transformers takes them
        chosen = {index % len(states) for index in ([asked_for] if isinstance(asked_for, int) else asked_for)}
        encoded.hidden_states = tuple(state if index in chosen else None for index, state in enumerate(states))
    return encoded, states


__all__ = ["MawsMAECrossDecoder", "MawsMAECrossLayer", "encode_all_layers"]
