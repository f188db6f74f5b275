"""MAWS-LiT (paper section 4.1, Table 6): a locked MAWS image tower and a text tower, in one space.

The released models are a timm ViT, XLM-RoBERTa, and two bias-free projections; the image's feature is the normed class
token, the text's the first token of the last layer, without a pooler (maws/model.py). This file computes exactly that.

Legend: B images or captions, R rows of text, T tokens, D width of a tower, P width of the common space.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ..kernels.attention import TORCH_SDPA
from ..losses import at_least_float32, contrastive_loss
from ..processing.text_batches import CaptionBatches, TextBatch
from .configuration_maws_lit import MAX_LOGIT_SCALE, MawsLiTConfig
from .loading import CheckedLoading, explained_for_hub, refuse_adapter
from .modeling_maws_vit import MawsViTModel
from .prepared import RefusesWhenPrepared

# Text towers that with sdpa attention take `position_ids` and a mask of who sees whom; the position of a first token.
_FIRST_POSITION = {
    "xlm-roberta": lambda config: config.pad_token_id + 1,
    "roberta": lambda config: config.pad_token_id + 1,
    "bert": lambda config: 0,
}


@dataclass
class MawsLiTOutput(ModelOutput):
    """
    Args:
        loss: scalar, float32, where `return_loss=True`. In training on several processes, of this process' pairs among
            the candidates of all.
        logits_per_image: float32 `(images, captions)`, scaled cosines.
        logits_per_text: its transpose.
        text_embeds, image_embeds: float32 `(B, P)`, normalised.
        text_model_output, vision_model_output: what the towers gave, where they ran.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    text_model_output: BaseModelOutput | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class MawsLiTPreTrainedModel(RefusesWhenPrepared, CheckedLoading, PreTrainedModel):
    """Initialisation and capabilities."""

    config: MawsLiTConfig
    config_class = MawsLiTConfig
    base_model_prefix = "lit"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["logit_scale"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Projections normal with deviation `width ** -0.5` of their tower (maws/model.py); towers bring their own."""
        if isinstance(module, MawsLiTModel):
            for projection in (module.visual_projection, module.text_projection):
                init.normal_(projection.weight, std=projection.in_features**-0.5)
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)


class MawsLiTModel(MawsLiTPreTrainedModel):
    """Images and captions in one space; their cosines, scaled, are the logits.

    With `config.lock_vision_tower` the image tower's weights are not trained, and it is in evaluation mode whatever
    `train()` is told; its projection is trained, as the released one is no identity. What is put into the locked tower
    to be trained, such as adapters, is trained; from then on the tower follows `train()`.
    """

    def __init__(
        self,
        config: MawsLiTConfig,
        vision_model: MawsViTModel | None = None,
        text_model: PreTrainedModel | None = None,
    ):
        """Towers that are given are taken as they are; `from_vision_text_pretrained` does so."""
        super().__init__(config)
        self.vision_model = vision_model or MawsViTModel(config.vision_config)
        self.text_model = text_model or AutoModel.from_config(
            config.text_config, **_without_pooler(config.text_config)
        )
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value), dtype=torch.float32))
        self.post_init()
        self._lock_vision_tower()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """As everywhere in transformers; the lock is part of the model and comes back with it."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._lock_vision_tower()  # loading replaced the parameters
        return loaded

    @classmethod
    def from_vision_text_pretrained(
        cls, vision_model_name_or_path: str, text_model_name_or_path: str, *, dtype: Any = None, **fields: Any
    ) -> Self:
        """A model of two trained towers; projections and logit scale are new and drawn from torch's generator.

        Args:
            vision_model_name_or_path: folder or Hub id of any MAWS vision model; its encoder is taken.
            text_model_name_or_path: of any text encoder of transformers; a pooler in it is left out.
            dtype: of the weights; as stored if None.
            fields: of [`MawsLiTConfig`]; `projection_dim` is the text tower's width if it is not among them.
                `attn_implementation` is for both towers.

        Raises:
            ModelLoadingError: one is an adapter, or the image tower is not whole.
        """
        for tower in (vision_model_name_or_path, text_model_name_or_path):
            refuse_adapter(tower)
        options = {"dtype": dtype or "auto"}
        if "attn_implementation" in fields:
            options["attn_implementation"] = fields.pop("attn_implementation")
        with explained_for_hub(text_model_name_or_path):  # before anything is loaded for nothing
            text_config = AutoConfig.from_pretrained(text_model_name_or_path)
        vision_model = MawsViTModel.from_pretrained(vision_model_name_or_path, **options)
        with explained_for_hub(text_model_name_or_path):
            text_model = AutoModel.from_pretrained(
                text_model_name_or_path, config=text_config, **_without_pooler(text_config), **options
            )
        fields.setdefault("projection_dim", text_model.config.hidden_size)
        attention = text_model.config._attn_implementation
        config = MawsLiTConfig(vision_config=vision_model.config, text_config=text_model.config, **fields)
        model = cls(config, vision_model, text_model)
        model.set_attn_implementation(attention)  # which building a config of two forgets
        model.visual_projection.to(vision_model.dtype)
        model.text_projection.to(text_model.dtype)
        return model.eval()

    @property
    def dtype(self) -> torch.dtype:
        """Of the text tower: the logit scale, which comes first, is float32 whatever the towers are."""
        return self.text_model.dtype

    def train(self, mode: bool = True) -> "MawsLiTModel":
        """The locked image tower stays in evaluation mode, unless there is something in it to be trained."""
        super().train(mode)
        if self._is_locked():
            self.vision_model.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Tensor, class_token_only: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: `(B, 3, H, W)`, uint8 or normalised float; see [`MawsViTModel`].
            class_token_only: leave out what the feature does not need; `last_hidden_state` then is the class token.

        Returns:
            The image tower's output, whose `pooler_output` `(B, P)` is the projected feature, not normalised.
        """
        outputs = self._encode_images(pixel_values, class_token_only, kwargs)
        outputs.pooler_output = self.visual_projection(outputs.pooler_output)
        return outputs

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """
        Args:
            input_ids: `(B, T)` of the tokenizer, special tokens included.
            attention_mask: `(B, T)`, 0 for padding.

        Returns:
            The text tower's output, whose `pooler_output` `(B, P)` is the projected first token, not normalised.
        """
        outputs = self.text_model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self.text_projection(outputs.last_hidden_state[:, 0]),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_loss: bool | None = None,
        text_batches: Sequence[TextBatch] | None = None,
        vision_features: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | MawsLiTOutput:
        """
        Args:
            input_ids, attention_mask: `(B, T)` captions; or `text_batches`.
            pixel_values: `(B, 3, H, W)` images; or `vision_features`.
            return_loss: also the contrastive loss of pairs, row i of either side; in training under
                `torch.distributed` with the pairs of all processes as candidates, so that all have to call this, each
                with equally many pairs.
            text_batches: the captions as [`batch_captions`] makes them. Several batches are encoded one after the
                other, and again in the backward pass: gradients are those of one batch, with the activations of one
                part in memory at a time (gradient caching, arXiv 2101.06983).
            vision_features: `(B, D)`, the image tower's `pooler_output` computed before.

        Raises:
            ValueError: captions or images are missing, or given twice.
        """
        if (input_ids is None) is (text_batches is None):
            raise ValueError("captions are wanted once: as input_ids (with attention_mask) or as text_batches")
        if (pixel_values is None) is (vision_features is None):
            raise ValueError("images are wanted once: as pixel_values or as vision_features")
        vision_outputs = text_outputs = None
        if vision_features is None:
            vision_outputs = self._encode_images(pixel_values, self.training, kwargs)
            vision_features = vision_outputs.pooler_output
        image_embeds = self.embed_images(vision_features)
        if text_batches is not None:
            text_embeds = torch.cat([self._embed_part(part, len(text_batches) > 1) for part in text_batches])
        else:
            text_outputs = self.text_model(
                input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs
            )
            text_embeds = _normalize(self.text_projection(text_outputs.last_hidden_state[:, 0]))

        # The towers may lie on different devices.
        text_embeds, scale = text_embeds.to(image_embeds.device), self._scale().to(image_embeds.device)
        with torch.autocast(image_embeds.device.type, enabled=False):
            logits_per_image = scale * image_embeds @ text_embeds.T
        loss = None
        if return_loss:
            across_ranks = self.training and dist.is_available() and dist.is_initialized()
            loss = contrastive_loss(image_embeds, text_embeds, scale, across_ranks=across_ranks)
        return MawsLiTOutput(
            loss=loss,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_image.T,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )

    def embed_images(self, vision_features: Tensor) -> Tensor:
        """`(B, D)` of the image tower -> `(B, P)` in the common space, normalised, float32."""
        return _normalize(self.visual_projection(vision_features.to(self.visual_projection.weight.dtype)))

    def embed_captions(self, captions: Sequence[Sequence[int]]) -> Tensor:
        """Token ids of captions -> `(B, P)` in the common space, normalised, float32, on the model's device."""
        (batch,) = self.batch_captions(captions)
        return self._embed_batch(batch.to(self.device))

    @property
    def batch_captions(self) -> CaptionBatches:
        """Called with token ids of captions, makes what `forward` takes for `text_batches`: without padding, as far as
        the text tower can. Several parts are for gradient caching."""
        config = self.text_model.config
        first_position = _FIRST_POSITION.get(config.model_type)
        if first_position is None or config._attn_implementation not in ("sdpa", TORCH_SDPA):
            return CaptionBatches(config.pad_token_id or 0, None)
        return CaptionBatches(config.pad_token_id, first_position(config))

    def _embed_part(self, part: TextBatch, again: bool) -> Tensor:
        """`(B, P)` float32, normalised; `again`: keep nothing for the backward pass but compute it once more."""
        if again and torch.is_grad_enabled():
            return checkpoint(self._embed_batch, part, use_reentrant=False)
        return self._embed_batch(part)

    def _embed_batch(self, batch: TextBatch) -> Tensor:
        hidden_states = self.text_model(**batch.text_inputs(), return_dict=True).last_hidden_state
        return _normalize(self.text_projection(batch.first_tokens(hidden_states)))

    def _encode_images(
        self, pixel_values: Tensor, class_token_only: bool, kwargs: dict[str, Any]
    ) -> BaseModelOutputWithPooling:
        recorded = any(
            kwargs.get(name, getattr(self.config, name)) for name in ("output_hidden_states", "output_attentions")
        )
        # Gradient checkpointing of the whole model has every tower's first output ask for gradients.
        wanted = pixel_values.requires_grad or not self._is_locked()
        with torch.set_grad_enabled(torch.is_grad_enabled() and wanted):
            return self.vision_model(
                pixel_values=pixel_values,
                class_token_only=class_token_only and not recorded,
                return_dict=True,
                **kwargs,
            )

    def _scale(self) -> Tensor:
        """exp of the logit scale, at most 100; float32."""
        if not self.training:
            return at_least_float32(self.logit_scale).clamp(max=MAX_LOGIT_SCALE).exp()
        # The parameter itself, or it would lie at or beyond the bound, where clamping has no gradient, for ever.
        with torch.no_grad():
            self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        # Of a copy, as the next call may clamp the parameter before this one's backward pass.
        return at_least_float32(self.logit_scale.clone()).exp()

    def _is_locked(self) -> bool:
        return self.config.lock_vision_tower and not any(p.requires_grad for p in self.vision_model.parameters())

    def _lock_vision_tower(self) -> None:
        if self.config.lock_vision_tower:
            self.vision_model.requires_grad_(False).eval()


def _normalize(features: Tensor) -> Tensor:
    """To length 1, in float32 at least."""
    return F.normalize(at_least_float32(features), dim=-1)


def _without_pooler(text_config: PreTrainedConfig) -> dict[str, bool]:
    """The option that keeps a text tower from having a pooler, if its class knows one: nothing reads it."""
    model_class = MODEL_MAPPING[type(text_config)]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(model_class).parameters else {}


__all__ = ["MawsLiTModel", "MawsLiTOutput", "MawsLiTPreTrainedModel"]
