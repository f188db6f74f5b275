"""Configuration of the MAWS vision transformer: encoder, classifier, backbone and masked autoencoder."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin

from .configuration_fields import refuse_unknown_fields
from .configuration_limits import MOST_PATCHES, MOST_PIXELS_A_SIDE, refuse_odd_labels, refuse_vast_sizes
from .foreign import format_of, vit_fields
from .loading import CheckedConfig

# Table 1 of the paper (arXiv 2303.13496): width, MLP width, depth, heads; patch size from section 3.
SIZES: dict[str, dict[str, int]] = {
    "vit_b16": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 16,
    },
    "vit_l16": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 16,
    },
    "vit_h14": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
    },
    "vit_2b14": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "patch_size": 14,
    },
    "vit_6.5b14": {
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "patch_size": 14,
    },
}


def as_pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """`16` -> `(16, 16)`; a pair is `(height, width)`."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@strict
class MawsViTConfig(CheckedConfig, BackboneConfigMixin, PreTrainedConfig):
    r"""
    One configuration for [`MawsViTModel`], [`MawsViTForImageClassification`], [`MawsViTBackbone`] and
    [`MawsMAEForPreTraining`]. The defaults are the paper's ViT-B (Table 1) with the decoder of the original MAE;
    `MawsViTConfig.from_size("vit_h14")` gives the other sizes.

    Args:
        hidden_size (`int`, defaults to 768): width of the encoder.
        num_hidden_layers (`int`, defaults to 12): depth of the encoder.
        num_attention_heads (`int`, defaults to 12): heads of the encoder; must divide `hidden_size`.
        intermediate_size (`int`, defaults to 3072): width of the encoder's MLP.
        hidden_act (`str`, defaults to `"gelu"`): activation of every MLP.
        hidden_dropout_prob (`float`, defaults to 0.0): dropout after the embeddings and both residual branches.
        attention_probs_dropout_prob (`float`, defaults to 0.0): dropout on the attention probabilities.
        drop_path_rate (`float`, defaults to 0.0): stochastic depth of the last encoder layer; rises linearly from 0.
        initializer_range (`float`, defaults to 0.02): standard deviation of class token, mask token and classifier.
        layer_norm_eps (`float`, defaults to 1e-6): epsilon of every LayerNorm.
        qkv_bias (`bool`, defaults to `True`): biases in the query, key and value projections.
        image_size (`int` or `(height, width)`, defaults to 224): pixels for which the position table is stored. Other
            sizes are accepted at run time; the table is then interpolated.
        patch_size (`int` or `(height, width)`, defaults to 16): pixels of a patch; must divide `image_size`.
        num_channels (`int`, defaults to 3): channels of the image.
        image_mean, image_std (`list[float]`): channel statistics (of pixels in [0, 1]) with which uint8 input is
            normalised inside the model, and which `reconstruct()` undoes. Defaults: ImageNet's, as released.
        mask_ratio (`float`, defaults to 0.75): share of the patches that the autoencoder hides (paper section 3).
        norm_pix_loss (`bool`, defaults to `True`): normalise each target patch by its own mean and variance.
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads, decoder_intermediate_size
            (`int`, default 512, 8, 16, 2048): the decoder of the original MAE. That ViT-2B and ViT-6.5B use the same
            decoder is inferred from the paper's "same hyperparameters as [33]".
        decoder_attention (`str`, defaults to `"self"`): `"cross"` is CrossMAE's decoder (arXiv 2401.14391), in which
            the hidden patches attend to the encoder's tokens and not to each other. Cheaper, but another objective:
            the paper does not use it.
        decoder_inter_block_attention (`bool`, defaults to `False`): with `"cross"`, each decoder block attends to its
            own learned mixture of the embeddings and all encoder layers, instead of to the encoder's output.
        prediction_ratio (`float`, defaults to 1.0): share of the hidden patches that are predicted, a random choice a
            sample; the others cost nothing. Below 1 the loss is a sample of the paper's, which does not do this.
            CrossMAE's prediction ratio counts against all patches: it is this one times `mask_ratio`.
        out_features, out_indices: stages that [`MawsViTBackbone`] returns: `"stem"`, `"stage1"`, ...
        apply_layernorm (`bool`, defaults to `True`): apply the encoder's final norm to each returned feature map.
        reshape_hidden_states (`bool`, defaults to `True`): feature maps as `(batch, hidden_size, height, width)`;
            otherwise `(batch, 1 + patches, hidden_size)`.

    Raises:
        ValueError: for a configuration that no model can have; names the field, its value and what would do.

    Example:

    ```python
    >>> from maws_hf import MawsViTConfig, MawsViTModel

    >>> model = MawsViTModel(MawsViTConfig.from_size("vit_b16"))
    ```
    """

    model_type = "maws_vit"
    base_model_fsdp_plan = {"layers.*": "free_full_weight", "layernorm": "keep_full_weight"}

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float | int = 0.02
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    image_mean: list[float | int] | tuple[float | int, ...] = (0.485, 0.456, 0.406)
    image_std: list[float | int] | tuple[float | int, ...] = (0.229, 0.224, 0.225)
    mask_ratio: float | int = 0.75
    norm_pix_loss: bool = True
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    decoder_attention: str = "self"
    decoder_inter_block_attention: bool = False
    prediction_ratio: float | int = 1.0
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        refuse_unknown_fields(self, kwargs)
        refuse_odd_labels(self, kwargs)
        self.validate_architecture()
        for name in ("image_size", "patch_size", "image_mean", "image_std"):
            if isinstance(getattr(self, name), list):  # as JSON has it
                setattr(self, name, tuple(getattr(self, name)))
        kwargs.pop("stage_names", None)
        self._validate_stages(kwargs.get("out_indices"))
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> "MawsViTConfig":
        """The configuration of one of the paper's five sizes (Table 1), e.g. `"vit_h14"`.

        Args:
            size: one of `vit_b16`, `vit_l16`, `vit_h14`, `vit_2b14`, `vit_6.5b14`.
            overrides: any other field, e.g. `image_size=518`.

        Raises:
            ValueError: for an unknown size.
        """
        if size not in SIZES:
            raise ValueError(f"size {size!r} is unknown; the sizes of the paper are {', '.join(SIZES)}")
        return cls(**{**SIZES[size], **overrides})

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As everywhere in transformers; an export's or timm's `config.json` comes back as ours would be."""
        found, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        ours = found.get("model_type", cls.model_type) in (cls.model_type, "maws_lit") and not format_of(found)
        return (found if ours else vit_fields(found)), kwargs

    @property
    def stage_names(self) -> list[str]:
        """What `out_features` chooses from: the embeddings and each layer."""
        return ["stem"] + [f"stage{index}" for index in range(1, self.num_hidden_layers + 1)]

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches `(rows, columns)` of an image of `image_size`."""
        height, width = as_pair(self.image_size)
        patch_height, patch_width = as_pair(self.patch_size)
        return height // patch_height, width // patch_width

    def validate_architecture(self) -> None:
        """Refuses what no model can have; `@strict` also calls this from `validate()` and on saving."""
        refuse_vast_sizes(self)
        for name in ("hidden_size", "num_attention_heads", "intermediate_size", "num_channels"):
            self._require(getattr(self, name) >= 1, name, "a whole number >= 1")
            if name != "num_channels":
                self._require(getattr(self, f"decoder_{name}") >= 1, f"decoder_{name}", "a whole number >= 1")
        for name in ("num_hidden_layers", "decoder_num_hidden_layers"):
            self._require(getattr(self, name) >= 0, name, "a depth >= 0")
        for prefix in ("", "decoder_"):
            self._validate_width(prefix)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            self._require(0 <= getattr(self, name) < 1, name, "a probability in [0, 1)")
        self._require(0 < self.mask_ratio < 1, "mask_ratio", "a share in (0, 1); the paper uses 0.75")
        self._require(0 < self.prediction_ratio <= 1, "prediction_ratio", "a share in (0, 1]; the paper has 1.0")
        self._validate_decoder_attention()
        self._require(self.hidden_act in ACT2FN, "hidden_act", "an activation of transformers, for example gelu")
        self._require(0 < self.layer_norm_eps <= 1, "layer_norm_eps", "in (0, 1]; the paper's models use 1e-6")
        self._require(0 <= self.initializer_range < 1, "initializer_range", "in [0, 1); the usual one is 0.02")
        self._validate_pixels()

    def _validate_decoder_attention(self) -> None:
        self._require(self.decoder_attention in ("self", "cross"), "decoder_attention", "self (the paper's) or cross")
        if self.decoder_attention == "self":
            fix = "False, unless decoder_attention=cross"
            self._require(not self.decoder_inter_block_attention, "decoder_inter_block_attention", fix)
        else:
            fix = "a depth >= 1 with decoder_attention=cross: nothing else reads the encoder"
            self._require(self.decoder_num_hidden_layers >= 1, "decoder_num_hidden_layers", fix)

    def _validate_width(self, prefix: str) -> None:
        width, heads = getattr(self, f"{prefix}hidden_size"), getattr(self, f"{prefix}num_attention_heads")
        dividing = [count for count in range(1, min(width, 2 * heads) + 1) if width % count == 0]
        nearest = sorted(dividing, key=lambda count: abs(count - heads))[:3]
        self._require(
            width % heads == 0,
            f"{prefix}num_attention_heads",
            f"a divisor of {prefix}hidden_size={width}, for example {', '.join(map(str, sorted(nearest)))}",
        )
        self._require(
            width % 4 == 0,
            f"{prefix}hidden_size",
            "a multiple of 4 (sine and cosine of two axes share the width)",
        )

    def _validate_pixels(self) -> None:
        for name in ("image_size", "patch_size"):
            value = getattr(self, name)
            pair_like = isinstance(value, int) or len(value) == 2
            self._require(pair_like, name, "a number of pixels or a pair (height, width)")
            self._require(min(as_pair(value)) >= 1, name, "at least one pixel a side")
            self._require(
                max(as_pair(value)) <= MOST_PIXELS_A_SIDE, name, f"at most {MOST_PIXELS_A_SIDE} pixels a side"
            )
        for image_side, patch_side in zip(as_pair(self.image_size), as_pair(self.patch_size), strict=True):
            below, above = image_side // patch_side * patch_side, -(-image_side // patch_side) * patch_side
            choices = " or ".join(str(side) for side in (below, above) if side > 0)
            self._require(
                image_side % patch_side == 0,
                "image_size",
                f"a multiple of patch_size={self.patch_size!r}, for example {choices}",
            )
        rows, columns = self.grid_size
        self._require(rows * columns <= MOST_PATCHES, "image_size", f"of at most {MOST_PATCHES} patches")
        for name in ("image_mean", "image_std"):
            self._require(
                len(getattr(self, name)) == self.num_channels,
                name,
                f"num_channels={self.num_channels} numbers",
            )
        self._require(min(self.image_std) > 0, "image_std", "numbers > 0")

    def _validate_stages(self, indices: Any) -> None:
        stages = self.num_hidden_layers + 1
        for index in indices if isinstance(indices, list | tuple) else ():
            if type(index) is not int or not -stages <= index < stages:
                raise ValueError(f"out_indices={indices!r} is not possible: the stages are numbered 0 to {stages - 1}")

    def _require(self, holds: bool, field: str, wanted: str) -> None:
        if not holds:
            raise ValueError(f"{field}={getattr(self, field)!r} is not possible: it must be {wanted}")


__all__ = ["SIZES", "MawsViTConfig"]
