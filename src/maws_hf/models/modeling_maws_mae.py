"""Masked autoencoder (MAE) pre-pretraining of the MAWS encoder (paper section 3; He et al. 2022).

The mask is drawn first. The encoder embeds and transforms the kept patches only; the decoder works in the shuffled
order (class token, kept, masked), so that no token is ever moved back; the first decoder block normalises and projects
a mask token once for all images that hide its patch; the last one, the head, the targets and the loss are computed for
masked patches only. None of this changes the loss. Two fields of the config do, and are off: `prediction_ratio` and
`decoder_attention` (CrossMAE, `maws_mae_cross_decoder.py`).

Legend: B images, L patches, K kept, M masked, R of them predicted (all, unless configured), D encoder width, P = patch
height * patch width * channels.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ..kernels.linear import Linear
from ..kernels.lookup import look_up
from ..losses import masked_pixel_loss
from ..masking import (
    draw_noise,
    mask_from_ids,
    num_kept_patches,
    num_predicted_patches,
    shuffle_ids,
    split_by_mask,
    split_by_noise,
)
from .configuration_maws_vit import MawsViTConfig, as_pair
from .maws_mae_cross_decoder import MawsMAECrossDecoder, encode_all_layers
from .modeling_maws_vit import MawsViTLayer, MawsViTModel, MawsViTPreTrainedModel
from .patch_grid import gather_patches, resample_position_table, sincos_position_table


@dataclass
class MawsMAEForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss: scalar, mean squared error on the predicted patches.
        logits: `(B, R, P)` predictions, one row a patch of `ids_predicted`; with `norm_pix_loss` in units of the
            normalised patch.
        mask: `(B, L)` in raster order, 1 where a patch was hidden.
        ids_keep: `(B, K)` kept patches in the order of the encoder's tokens.
        ids_mask: `(B, M)` hidden patches.
        ids_predicted: `(B, R)` those that were predicted: the first of `ids_mask`, or all of them.
        hidden_states, attentions: of the encoder, on request.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    mask: Tensor | None = None
    ids_keep: Tensor | None = None
    ids_mask: Tensor | None = None
    ids_predicted: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class MawsMAEReconstruction(ModelOutput):
    """
    Args:
        original, masked, reconstruction: `(B, C, H, W)` float32 pictures with values in [0, 1].
        mask: `(B, L)`, 1 where a patch was hidden.
        loss: scalar.
    """

    original: Tensor | None = None
    masked: Tensor | None = None
    reconstruction: Tensor | None = None
    mask: Tensor | None = None
    loss: Tensor | None = None


class MawsMAEDecoder(nn.Module):
    """A narrow transformer from kept tokens to the pixels of the masked patches."""

    def __init__(self, config: MawsViTConfig):
        super().__init__()
        self.config = config
        width = config.decoder_hidden_size
        self.embed = Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        # A constant, but stored: a buffer that is not in the checkpoint would be garbage after a careless load.
        # Copied into an empty tensor, which has the dtype and device under construction.
        table = sincos_position_table(width, config.grid_size)
        self.register_buffer("position_embeddings", torch.empty(table.shape).copy_(table))
        self.layers = nn.ModuleList(
            MawsViTLayer(config, width, config.decoder_num_attention_heads, config.decoder_intermediate_size)
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        patch_height, patch_width = as_pair(config.patch_size)
        self.head = Linear(width, patch_height * patch_width * config.num_channels)

    def forward(self, encoded: Tensor, ids_keep: Tensor, ids_mask: Tensor, grid: tuple[int, int]) -> Tensor:
        """Encoder output `(B, 1 + K, D)`, class token first -> predictions `(B, M, P)`."""
        positions = resample_position_table(self.position_embeddings, self.config.grid_size, grid)
        class_position, patch_positions = positions[:, :1], positions[0, 1:]
        encoded = self.embed(encoded)
        class_token = encoded[:, :1] + class_position
        kept = encoded[:, 1:] + patch_positions[ids_keep]
        visible = torch.cat([class_token, kept], dim=1)
        # Until the first attention a mask token knows its position only: there is one for each, whatever the image.
        tokens = torch.cat([visible.flatten(0, 1), self.mask_token[0] + patch_positions])

        def spread(tokens: Tensor) -> Tensor:
            """`(B * (1 + K) + L, *)` -> `(B, 1 + K + M, *)`."""
            of_images, masked = tokens.tensor_split([visible.shape[0] * visible.shape[1]])
            return torch.cat([of_images.unflatten(0, visible.shape[:2]), look_up(masked, ids_mask)], dim=1)

        if len(self.layers) > 1:
            hidden_states = self.layers[0](tokens, spread=spread)
        else:
            hidden_states = spread(tokens)
        for layer in self.layers[1:-1]:
            hidden_states = layer(hidden_states)
        only_masked = slice(visible.shape[1], None)
        if len(self.layers) > 0:
            hidden_states = self.layers[-1](hidden_states, only_masked)
        else:
            hidden_states = hidden_states[:, only_masked]
        return self.head(self.layernorm(hidden_states))


class MawsMAEForPreTraining(MawsViTPreTrainedModel):
    """Encoder, decoder and pixel loss. `.vit` is a plain [`MawsViTModel`]; its position table is fixed here."""

    _may_be_new = ("decoder.",)

    def __init__(self, config: MawsViTConfig):
        super().__init__(config)
        self.vit = MawsViTModel(config)
        self.decoder = MawsMAECrossDecoder(config) if config.decoder_attention == "cross" else MawsMAEDecoder(config)
        # The decoder has its table as a buffer, which only a whole module takes along to a device. Classes that this
        # model has not are not named: Accelerate would look for them to shard by.
        whole = {type(part).__name__ for part in (self.decoder, *self.decoder.layers)}
        self._no_split_modules = whole.union(self._no_split_modules)
        self.post_init()
        self._fix_constants()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        loaded = super().from_pretrained(*args, **kwargs)
        # Loading makes every floating-point parameter trainable again.
        (loaded[0] if isinstance(loaded, tuple) else loaded)._fix_constants()
        return loaded

    def set_image_size(self, image_size: int | tuple[int, int]) -> None:
        """Stores both position tables as images of another size have met them so far, for training at that size.

        Args:
            image_size: pixels, or (height, width); becomes the config's.

        Raises:
            ValueError: it is no multiple of the patch.
        """
        old_grid, table = self.config.grid_size, self.decoder.position_embeddings
        super().set_image_size(image_size)
        self.decoder.position_embeddings = resample_position_table(table, old_grid, self.config.grid_size)

    def _fix_constants(self) -> None:
        self.vit.embeddings.position_embeddings.requires_grad_(False)
        if self.config.decoder_inter_block_attention:  # reads layers only: no gradient would ever reach the last norm
            self.vit.layernorm.requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MawsMAEDecoder | MawsMAECrossDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)
            table = sincos_position_table(self.config.decoder_hidden_size, self.config.grid_size)
            init.copy_(module.position_embeddings, table)
            if self.config.decoder_inter_block_attention:
                init.normal_(module.feature_weights, std=module.feature_weights.shape[1] ** -0.5)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        bool_masked_pos: Tensor | None = None,
        prediction_ratio: float | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MawsMAEForPreTrainingOutput:
        """
        The mask of each sample comes from `bool_masked_pos`, else from `noise`, else is drawn with `generator`, else
        from torch's global generator. Where only some of the hidden patches are predicted, they are those with the
        smallest noise; with `bool_masked_pos` they are drawn as a mask is.

        Args:
            pixel_values: `(B, C, H, W)`, uint8 or normalised float, any multiples of `patch_size`.
            noise: `(B, L)`; the patches with the smallest values stay visible.
            generator: draws the noise, on its own device.
            bool_masked_pos: `(B, L)`, true where a patch is hidden; equally many a sample.
            prediction_ratio: share of the hidden patches to predict; the config's if None.

        Raises:
            ValueError: for a mask of the wrong shape or count, or a share that is none.
        """
        ratio = self.config.prediction_ratio if prediction_ratio is None else prediction_ratio
        if not 0 < ratio <= 1:
            raise ValueError(f"prediction_ratio={ratio!r} is not possible: it must be a share in (0, 1]")
        grid = self.vit.embeddings.grid_of(pixel_values)
        ids_keep, ids_mask = self._draw_mask(pixel_values, grid, noise, generator, bool_masked_pos)
        if ratio < 1 and bool_masked_pos is not None:
            ids_mask = shuffle_ids(ids_mask, generator)  # it is in raster order; noise has shuffled it already
        ids_predicted = ids_mask[:, : num_predicted_patches(ids_mask.shape[1], ratio)]
        if self.config.decoder_inter_block_attention:
            encoded, features = encode_all_layers(self.vit, pixel_values, ids_keep, **kwargs)
        else:
            encoded = self.vit(pixel_values, ids_keep=ids_keep, return_dict=True, **kwargs)
            features = encoded.last_hidden_state
        predictions = self.decoder(features, ids_keep, ids_predicted, grid)
        # The decoder may lie on a device of its own.
        targets = self.target_pixels(pixel_values, ids_predicted).to(predictions.device)
        return MawsMAEForPreTrainingOutput(
            loss=masked_pixel_loss(predictions, targets, self.config.norm_pix_loss),
            logits=predictions,
            mask=mask_from_ids(ids_mask, grid[0] * grid[1]),
            ids_keep=ids_keep,
            ids_mask=ids_mask,
            ids_predicted=ids_predicted,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    @torch.no_grad()
    def reconstruct(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        bool_masked_pos: Tensor | None = None,
    ) -> MawsMAEReconstruction:
        """Pictures of what was hidden and what the model makes of all of it. Arguments as for `forward`.

        Visible patches are kept as they are. A model trained with `norm_pix_loss` predicts only the pattern within a
        patch; its brightness and contrast are taken from the hidden patch itself, as only those make it a picture.
        Every hidden patch is predicted, also by a model that was trained to predict a part (whose decoder, if of
        self-attention, meets more tokens here than it is used to). Dropout is off.
        """
        in_training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            outputs = self(
                pixel_values,
                noise=noise,
                generator=generator,
                bool_masked_pos=bool_masked_pos,
                prediction_ratio=1.0,
                return_dict=True,
            )
        finally:
            for module in in_training:
                module.training = True
        targets = self.target_pixels(pixel_values, outputs.ids_mask)
        predictions = outputs.logits.float()
        if self.config.norm_pix_loss:
            variance, mean = torch.var_mean(targets, dim=-1, keepdim=True)
            predictions = predictions * (variance + 1e-6).sqrt() + mean
        original = self._to_picture(pixel_values)
        painted = self._paint(original, predictions, outputs.ids_mask)
        grey = torch.zeros_like(predictions)  # the mean colour, once normalisation is undone
        return MawsMAEReconstruction(
            original=original,
            masked=self._paint(original, grey, outputs.ids_mask),
            reconstruction=painted,
            mask=outputs.mask,
            loss=outputs.loss,
        )

    def _draw_mask(
        self,
        pixel_values: Tensor,
        grid: tuple[int, int],
        noise: Tensor | None,
        generator: torch.Generator | None,
        bool_masked_pos: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        shape, device = (pixel_values.shape[0], grid[0] * grid[1]), pixel_values.device
        for name, given in (("noise", noise), ("bool_masked_pos", bool_masked_pos)):
            if given is not None and tuple(given.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(given.shape)}; expected (batch, patches) = {shape}")
        if bool_masked_pos is not None:
            return split_by_mask(bool_masked_pos.to(device))
        if noise is None:
            noise = draw_noise(shape, device, generator)
        return split_by_noise(noise.to(device), num_kept_patches(shape[1], self.config.mask_ratio))

    def target_pixels(self, pixel_values: Tensor, ids: Tensor) -> Tensor:
        """Normalised pixels of chosen patches `(B, R)`: `(B, R, P)` float32."""
        patches = gather_patches(pixel_values, ids, as_pair(self.config.patch_size))
        return self.vit.embeddings.normalize(patches, dtype=torch.float32).flatten(2)

    def _to_picture(self, pixel_values: Tensor) -> Tensor:
        if pixel_values.dtype == torch.uint8:
            return pixel_values.float() / 255
        mean, std = self.vit.embeddings.pixel_statistics(pixel_values.device)
        return (pixel_values.float() * std[:, None, None] + mean[:, None, None]).clamp(0, 1)

    def _paint(self, pictures: Tensor, patches: Tensor, ids: Tensor) -> Tensor:
        """Copies of `(B, C, H, W)` pictures with normalised patches `(B, M, P)` put in at `ids`."""
        patch_height, patch_width = as_pair(self.config.patch_size)
        channels, grid = pictures.shape[1], self.vit.embeddings.grid_of(pictures)
        patches = patches.unflatten(2, (patch_height, patch_width, channels)).movedim(-1, 2)
        patches = self._to_picture(patches).movedim(2, -1)
        tiles = gather_patches(
            pictures,
            torch.arange(grid[0] * grid[1], device=ids.device).expand(ids.shape[0], -1),
            (patch_height, patch_width),
        )
        tiles[torch.arange(ids.shape[0], device=ids.device)[:, None], ids] = patches
        tiles = tiles.unflatten(1, grid).permute(0, 5, 1, 3, 2, 4)  # B, C, rows, patch height, columns, patch width
        return tiles.flatten(4).flatten(2, 3)


__all__ = [
    "MawsMAEForPreTraining",
    "MawsMAEForPreTrainingOutput",
    "MawsMAEReconstruction",
]
