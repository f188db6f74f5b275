"""The MAWS vision transformer (paper section 3 and Table 1): encoder, classifier, backbone.

The released models are timm 0.9.7's plain `VisionTransformer`: pre-norm blocks, a class token with its own position,
qkv biases, a final LayerNorm, and the normed class token as the image's feature. This file computes exactly that.

Legend: B images, C channels, (H, W) pixels, L patches, K kept patches, D width, T tokens.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..kernels.attention import fastest_backend
from ..kernels.eligibility import is_listened_to
from ..kernels.linear import Linear, cast_for_autocast
from ..losses import classification_loss
from .configuration_maws_vit import MawsViTConfig, as_pair
from .loading import CheckedLoading
from .patch_grid import gather_patches, resample_position_table, sincos_position_table
from .prepared import RefusesWhenPrepared

Spread = Callable[[Tensor], Tensor]


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[Tensor, Tensor]:
    """Plain attention, the reference of every backend; the only one that returns its probabilities."""
    scores = (query * scaling) @ key.transpose(-2, -1)
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    probabilities = F.dropout(probabilities, p=dropout, training=module.training)
    return (probabilities @ value).transpose(1, 2), probabilities


class MawsViTAttention(nn.Module):
    """Multi-head self-attention with separate projections (adapters and exports address them by name)."""

    is_causal = False

    def __init__(self, config: MawsViTConfig, hidden_size: int, num_attention_heads: int):
        super().__init__()
        # The very config object, so that `set_attn_implementation` also reaches the decoder.
        self.config = config
        self.head_dim = hidden_size // num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.q_proj = Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.k_proj = Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.v_proj = Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.o_proj = Linear(hidden_size, hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        queries: slice = slice(None),
        spread: Spread | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        """`(B, T, D)`, or distinct tokens `(N, D)` to `spread` -> the attended tokens of `queries` `(B, T', D)` and,
        with eager attention, probabilities."""
        hidden_states = cast_for_autocast(hidden_states)
        attended, probabilities = self.attend(hidden_states[:, queries], hidden_states, spread, **kwargs)
        return self.o_proj(attended), probabilities

    def attend(
        self,
        queries: Tensor,
        hidden_states: Tensor,
        spread: Spread | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        """What the tokens of `queries` `(B, T', D)` read from the others `(B, T, D)`, before the last projection: the
        heads' results side by side, `(B, T', D)`; and the probabilities."""
        projected = [self.q_proj(queries), self.k_proj(hidden_states), self.v_proj(hidden_states)]
        if spread is not None:
            projected = map(spread, projected)
        query, key, value = (tokens.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for tokens in projected)
        attended, probabilities = self._attention_function(query, key, value, kwargs)(
            self,
            query,
            key,
            value,
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return attended.flatten(2), probabilities

    def _attention_function(self, query: Tensor, key: Tensor, value: Tensor, kwargs: TransformersKwargs):
        # No fused backend can hand out probabilities: a call that asks for them gets the eager form for that call.
        if kwargs.get("output_attentions"):
            return eager_attention_forward
        backend = fastest_backend(self.config._attn_implementation, query, key, value)
        return ALL_ATTENTION_FUNCTIONS.get_interface(backend, eager_attention_forward)


class MawsViTMLP(nn.Module):
    def __init__(self, config: MawsViTConfig, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.fc1 = Linear(hidden_size, intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class MawsViTDropPath(nn.Module):
    """Stochastic depth a sample: a residual branch is dropped whole, the kept ones are scaled by 1 / (1 - rate)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return branch
        kept = branch.new_empty(branch.shape[0], *[1] * (branch.dim() - 1)).bernoulli_(1 - self.rate)
        return branch * kept.div_(1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class MawsViTLayer(GradientCheckpointingLayer):
    """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)). Encoder and decoder share it."""

    def __init__(
        self,
        config: MawsViTConfig,
        hidden_size: int,
        num_attention_heads: int,
        intermediate_size: int,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = MawsViTAttention(config, hidden_size, num_attention_heads)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = MawsViTMLP(config, hidden_size, intermediate_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = MawsViTDropPath(drop_path_rate)

    def forward(
        self,
        hidden_states: Tensor,
        queries: slice = slice(None),
        spread: Spread | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Tensor:
        """`(B, T, D)` -> `(B, T', D)`. Both arguments leave out work and change no result.

        Args:
            queries: the tokens to return; the others still serve as keys and values. Fits a last block of which only
                some tokens are read.
            spread: lays out distinct tokens `(N, D)`, which `hidden_states` then are, as `(B, T, D)`; what depends on
                a token alone is computed before. Fits a first block whose images have tokens in common. All tokens
                are queries then.
        """
        attended, _ = self.attention(self.layernorm_before(hidden_states), queries, spread, **kwargs)
        hidden_states = hidden_states[:, queries] if spread is None else spread(hidden_states)
        hidden_states = hidden_states + self.drop_path(self.dropout(attended))
        transformed = self.mlp(self.layernorm_after(hidden_states))
        return hidden_states + self.drop_path(self.dropout(transformed))


class MawsViTPatchEmbeddings(nn.Module):
    """Pixels of each patch -> D, by one matrix stored as a convolution (as timm and transformers store it)."""

    def __init__(self, config: MawsViTConfig):
        super().__init__()
        self.patch_size = as_pair(config.patch_size)
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=self.patch_size, stride=self.patch_size
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`(B, C, H, W)` -> `(B, L, D)`, or patches already cut out, `(B, K, patch height, patch width, C)`, ->
        `(B, K, D)`."""
        if pixel_values.dim() == 4:
            return self.projection(pixel_values).flatten(2).transpose(1, 2)
        # Whoever has put something around the projection (an adapter, a hook, weights kept elsewhere) wants it called.
        if type(self.projection) is not nn.Conv2d or is_listened_to(self.projection):
            return self.projection(pixel_values.flatten(0, 1).movedim(-1, 1)).view(*pixel_values.shape[:2], -1)
        weight = self.projection.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(pixel_values.flatten(2), weight, self.projection.bias)


class MawsViTEmbeddings(nn.Module):
    """Image -> class token and patch tokens with their positions."""

    def __init__(self, config: MawsViTConfig):
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(
            torch.empty(1, 1 + config.grid_size[0] * config.grid_size[1], config.hidden_size)
        )
        self.patch_embeddings = MawsViTPatchEmbeddings(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """`(B, C, H, W)`, uint8 or normalised float -> `(B, 1 + L, D)`, or `(B, 1 + K, D)` for `ids_keep` `(B, K)`."""
        grid = self.grid_of(pixel_values)
        positions = resample_position_table(self.position_embeddings, self.config.grid_size, grid)
        if ids_keep is None:
            patches = self.patch_embeddings(self.normalize(pixel_values, channel_dim=1)) + positions[:, 1:]
        else:
            if ids_keep.dim() != 2 or ids_keep.shape[0] != pixel_values.shape[0]:
                raise ValueError(
                    f"ids_keep has shape {tuple(ids_keep.shape)}; expected ({pixel_values.shape[0]}, kept patches)"
                )
            pixels = gather_patches(pixel_values, ids_keep, self.patch_embeddings.patch_size)
            patches = self.patch_embeddings(self.normalize(pixels)) + positions[0, 1:][ids_keep]
        class_token = (self.cls_token + positions[:, :1]).expand(patches.shape[0], -1, -1)
        return self.dropout(torch.cat([class_token, patches], dim=1))

    def set_image_size(self, image_size: int | tuple[int, int]) -> None:
        """See [`MawsViTPreTrainedModel.set_image_size`]."""
        height, width = as_pair(image_size)
        grid = self.grid_of(torch.empty(1, self.config.num_channels, height, width, device="meta"))
        old = self.position_embeddings
        table = resample_position_table(old.detach(), self.config.grid_size, grid)
        self.position_embeddings = nn.Parameter(table.clone(), requires_grad=old.requires_grad)
        self.config.image_size = height if height == width else [height, width]

    def normalize(self, pixels: Tensor, channel_dim: int = -1, dtype: torch.dtype | None = None) -> Tensor:
        """uint8 -> (pixel / 255 - mean) / std, computed in float32; float input is taken as normalised already.

        Args:
            pixels: any shape, channels along `channel_dim`.
            dtype: of the result; the projection's by default.

        Raises:
            ValueError: for other integers, whose range nobody knows.
        """
        dtype = dtype or self.patch_embeddings.projection.weight.dtype
        if pixels.is_floating_point():
            return pixels.to(dtype)
        if pixels.dtype != torch.uint8:
            raise ValueError(f"pixel_values is {pixels.dtype}; expected uint8 (0 to 255) or normalised floating point")
        mean, std = self.pixel_statistics(pixels.device)
        shape = [1] * pixels.dim()
        shape[channel_dim] = -1
        return ((pixels.float() / 255 - mean.view(shape)) / std.view(shape)).to(dtype)

    def pixel_statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """`image_mean` and `image_std`, `(C,)` float32: no buffers, which a bfloat16 model would round.

        Filled on the device: a copy from the host would wait until the device has done all that it was given.
        """
        mean, std = (
            torch.cat([torch.full((1,), value, dtype=torch.float32, device=device) for value in values])
            for values in (self.config.image_mean, self.config.image_std)
        )
        return mean, std

    def grid_of(self, pixel_values: Tensor) -> tuple[int, int]:
        """Patches (rows, columns) of these images.

        Raises:
            ValueError: if the images have another number of dimensions or channels, or are no whole number of patches.
        """
        channels, (patch_height, patch_width) = self.config.num_channels, self.patch_embeddings.patch_size
        shape = tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != channels:
            raise ValueError(f"pixel_values has shape {shape}; expected (batch, {channels}, height, width)")
        if shape[2] % patch_height or shape[3] % patch_width or 0 in shape[2:]:
            raise ValueError(
                f"pixel_values is {shape[2]} x {shape[3]} pixels; height and width must be multiples of "
                f"patch_size={self.config.patch_size!r}"
            )
        return shape[2] // patch_height, shape[3] // patch_width


class MawsViTPreTrainedModel(RefusesWhenPrepared, CheckedLoading, PreTrainedModel):
    """Initialisation and capabilities of all MAWS vision models.

    One class and one `base_model_prefix` for every head, so that each head's checkpoint loads into every other.
    """

    config: MawsViTConfig
    config_class = MawsViTConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["MawsViTEmbeddings", "MawsViTLayer"]
    _other_image_size = "for another image size load it as it is, then call set_image_size"
    accepts_loss_kwargs = False  # losses are means over images, which transformers' Trainer then averages itself
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": MawsViTLayer, "attentions": MawsViTAttention}
    # Whole, as in _no_split_modules: Accelerate shards it after those, and cannot shard a part of what it has sharded.
    _input_embed_layer = "embeddings"
    # A checkpoint of another head is welcome; only what the class at hand lacks is worth a report.
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^classifier\."]

    def set_image_size(self, image_size: int | tuple[int, int]) -> None:
        """Stores the position table for another size, resampled once; features at that size do not change.

        Fine-tuning at a higher resolution then trains the larger table, as the released classifiers have it. A
        processor keeps the size that it was made for.

        Args:
            image_size: pixels, or (height, width); becomes the config's.

        Raises:
            ValueError: it is no multiple of the patch.
        """
        self.base_model.embeddings.set_image_size(image_size)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The original MAE's initialisation (`models_mae.py`): Xavier-uniform matrices, the patch projection as one
        flattened matrix, zero biases, sine-cosine positions. For a classifier trained from scratch the paper names no
        initialisation; starting it from the same tables is our choice."""
        if isinstance(module, nn.Conv2d):
            fan_in, fan_out = module.weight[0].numel(), module.weight.shape[0]
            bound = (6 / (fan_in + fan_out)) ** 0.5
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, MawsViTEmbeddings):
            init.normal_(module.cls_token, std=self.config.initializer_range)
            init.copy_(
                module.position_embeddings,
                sincos_position_table(self.config.hidden_size, self.config.grid_size),
            )


class MawsViTModel(MawsViTPreTrainedModel):
    """The encoder. `last_hidden_state` is normed; `pooler_output` is its class token: the image's feature.

    There is no pooling layer with weights, and nothing is masked unless `ids_keep` asks for it.
    """

    def __init__(self, config: MawsViTConfig):
        super().__init__(config)
        self.embeddings = MawsViTEmbeddings(config)
        depth = config.num_hidden_layers
        self.layers = nn.ModuleList(
            MawsViTLayer(
                config,
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                drop_path_rate=config.drop_path_rate * index / max(depth - 1, 1),
            )
            for index in range(depth)
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor,
        ids_keep: Tensor | None = None,
        class_token_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: `(B, C, H, W)`; float is taken as normalised, uint8 is normalised with the config's
                `image_mean` and `image_std`. H and W may be any multiples of `patch_size`; the position table is
                interpolated where they differ from `image_size`.
            ids_keep: `(B, K)` indices of the only patches to encode; the rest costs nothing.
            class_token_only: the last block computes the class token alone, which then is all of
                `last_hidden_state`. Exact, and 7 % (ViT-B) to 3 % (ViT-6.5B) less work for whoever reads only that.
            output_hidden_states, output_attentions: as everywhere in transformers. `hidden_states[-1]` is the last
                block's output before the final norm.

        Returns:
            `last_hidden_state` `(B, 1 + L or K, D)`, class token first, and `pooler_output` `(B, D)`.
        """
        hidden_states = self.embeddings(pixel_values, ids_keep)
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            queries = slice(0, 1) if class_token_only and index == last else slice(None)
            hidden_states = layer(hidden_states, queries, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


class MawsViTForImageClassification(MawsViTPreTrainedModel):
    """Encoder and one linear layer on the normed class token, as the released fine-tuned models have it.

    The last block computes the class token alone, and hooks on it see no more; with `output_hidden_states=True` all.
    """

    _may_be_new = ("classifier.",)

    def __init__(self, config: MawsViTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = MawsViTModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels else nn.Identity()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.classifier and isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: as for [`MawsViTModel`].
            labels: integers `(B,)`, one class an image (negative: none); integers `(B, K)`, the set of an image's
                classes padded with -100; or floating point `(B, num_labels)`, multi-hot or soft targets (after mixup).
                The loss is softmax cross-entropy, against a set or a multi-hot row divided by its number of positives
                (the authors' WSP loss); images without labels are ignored.
                `config.problem_type="multi_label_classification"` asks for sigmoid cross-entropy (of floating point
                labels as transformers has it: the mean over all classes and images; of integers the sum over
                classes), "regression" for squared error on floating point.
            skip_logits: for training; index labels only. The loss then overwrites the logits with their gradient
                (faster, less memory) and none are returned.

        Returns:
            `logits` `(B, num_labels)`, and `loss` where labels are given.

        Raises:
            ValueError: the labels fit none of these forms. That a class is below `num_labels` is not looked at, which
                would wait for the device: torch's own error there.
        """
        kwargs["return_dict"] = True
        outputs = self.vit(pixel_values, class_token_only=self._reads_only_class_token(kwargs), **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self._loss(logits, labels, skip_logits, kwargs)
        return ImageClassifierOutput(
            loss=loss,
            logits=None if skip_logits else logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def reset_classifier(self, names: Sequence[str], bias: float = 0.0, std: float | None = None) -> None:
        """Puts a new head for other classes in place; its weights come from torch's generator.

        Args:
            names: of the classes, each once.
            bias: of every class, at the start.
            std: of the weights; the config's `initializer_range` if None.
        """
        config, device = self.config, self.vit.layernorm.weight.device
        if device.type == "meta":  # under construction: what is drawn here and now needs memory
            device = torch.device("cpu")
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
        self.num_labels = len(names)
        self.classifier = nn.Linear(
            config.hidden_size, len(names), device=device, dtype=self.vit.layernorm.weight.dtype
        )
        std = config.initializer_range if std is None else std
        nn.init.trunc_normal_(self.classifier.weight, std=std)
        nn.init.constant_(self.classifier.bias, bias)

    def _reads_only_class_token(self, kwargs: TransformersKwargs) -> bool:
        """Whether the shortcut gives the same result: nothing else is handed out, no dropout draws other numbers."""
        recorded = any(
            kwargs.get(name, getattr(self.config, name)) for name in ("output_hidden_states", "output_attentions")
        )
        drops = self.training and (self.config.hidden_dropout_prob or self.config.attention_probs_dropout_prob)
        return not recorded and not drops

    def _loss(self, logits: Tensor, labels: Tensor, skip_logits: bool, kwargs: TransformersKwargs) -> Tensor:
        problem_type = self.config.problem_type
        binary = problem_type == "multi_label_classification"
        regression = problem_type == "regression" or self.num_labels == 1
        if regression or hasattr(self, "_loss_function"):  # transformers' own, or one that somebody has set
            return self.loss_function(labels, logits, self.config, **kwargs)
        return classification_loss(logits, labels.to(logits.device), binary=binary, logits_are_needed=not skip_logits)


class MawsViTBackbone(BackboneMixin, MawsViTPreTrainedModel):
    """Feature maps for detection and segmentation heads; `config.out_features` chooses the stages."""

    def __init__(self, config: MawsViTConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.vit = MawsViTModel(config)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """
        Returns:
            `feature_maps`, one a stage of `out_features`: `(B, D, H / patch height, W / patch width)`, or
            `(B, 1 + L, D)` with `config.reshape_hidden_states=False`.
        """
        kwargs["output_hidden_states"] = True
        outputs = self.vit(pixel_values, return_dict=True, **kwargs)
        grid = self.vit.embeddings.grid_of(pixel_values)
        feature_maps = []
        for stage, hidden_state in zip(self.stage_names, outputs.hidden_states, strict=True):
            if stage not in self.out_features:
                continue
            if self.config.apply_layernorm:
                hidden_state = self.vit.layernorm(hidden_state)
            if self.config.reshape_hidden_states:
                hidden_state = hidden_state[:, 1:].transpose(1, 2).unflatten(2, grid).contiguous()
            feature_maps.append(hidden_state)
        return BackboneOutput(
            feature_maps=tuple(feature_maps),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["MawsViTBackbone", "MawsViTForImageClassification", "MawsViTModel", "MawsViTPreTrainedModel"]
