"""Which tensor of an original checkpoint becomes which of ours.

Original names are those of timm's `VisionTransformer` (image towers), `models_mae.py` (decoder), torchtext's
`RobertaModel` (text tower) and `maws/model.py` (projections). timm and torchtext keep query, key and value in one
matrix, which is three of ours, one below the other; a projection is a bare `(width, dim)` matrix used as `x @ P`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from ..models.configuration_maws_lit import MawsLiTConfig
from ..models.configuration_maws_vit import MawsViTConfig, as_pair
from .original_archive import ConversionError

Layout = Literal["encoder", "classifier", "mae", "clip"]
Shape = tuple[int, ...]

TEXT = "text_encoder.encoder.transformer"
# torchtext before 0.13 -> since; `RobertaEncoder` itself reads both (torchtext/models/roberta/modules.py).
_OLD_LAYER = {
    "attention.input_projection.weight": "self_attn.in_proj_weight",
    "attention.input_projection.bias": "self_attn.in_proj_bias",
    "attention.output_projection": "self_attn.out_proj",
    "residual_mlp.mlp.0": "linear1",
    "residual_mlp.mlp.3": "linear2",
    "attention_layer_norm": "norm1",
    "final_layer_norm": "norm2",
}
# What timm's class can have and MAWS' has not: with these weights our model would compute something else.
_FOREIGN = (
    (r"(^|\.)fc_norm\.", "fc_norm", "the model averages its patches (global pooling) instead of its class token"),
    (r"(^|\.)norm_pre\.", "norm_pre", "the model norms its tokens before the first block, as CLIP's does"),
    (r"\.(ls\d\.gamma|gamma_\d)$", "LayerScale", "the model scales its residual branches"),
    (r"(^|\.)reg_token$", "register tokens", "the model has tokens besides the class token"),
    (r"\.(q|k)_norm\.", "q_norm and k_norm", "the model norms queries and keys"),
    (r"(^|\.)attn_pool\.", "attention pooling", "the model's feature is not its class token"),
    (r"(^|\.)(dist_token$|head_dist\.)", "a distillation token", "the model has a token besides the class token"),
    (r"(^|\.)patch_embed\.norm\.", "a norm of the patches", "the model norms its patches before the first block"),
    (r"rel_pos|relative_position", "relative positions", "the model's attention depends on distances"),
)


@dataclass(frozen=True)
class Piece:
    """One tensor of ours.

    Args:
        target: its name.
        shape: of it.
        source: original name; None for zeros.
        part: (i, n) for the i-th of n equal parts of the source's rows.
        transposed: the source is `(in, out)`.
    """

    target: str
    shape: Shape
    source: str | None
    part: tuple[int, int] = (0, 1)
    transposed: bool = False

    @property
    def source_shape(self) -> Shape:
        if self.transposed:
            return self.shape[::-1]
        return (self.shape[0] * self.part[1], *self.shape[1:]) if self.shape else ()


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Today's original name -> the name in the file, which may be spelt as older versions of torchtext did.

    Raises:
        ConversionError: a tensor is there in both spellings.
    """
    spelt: dict[str, str] = {}
    for name in names:
        today = re.sub(r"^encoder\.transformer\.", f"{TEXT}.", name)
        today = re.sub(r"(\.transformer\.layers\.\d+\.)better_transformer\.", r"\1", today)
        for old, new in _OLD_LAYER.items():
            today = re.sub(rf"(\.transformer\.layers\.\d+\.){re.escape(old)}(?=\.|$)", rf"\g<1>{new}", today)
        today = re.sub(r"\.transformer\.layers\.(?=\d+\.)", ".transformer.layers.layers.", today)
        if today in spelt:
            raise ConversionError(f"{name} and {spelt[today]} are the same tensor in two spellings: which one is it?")
        spelt[today] = name
    return spelt


def layout_of(names: Iterable[str]) -> Layout:
    """What kind of model has tensors of these names.

    Raises:
        ConversionError: one that computes something else than ours does.
    """
    names = list(names)
    for pattern, what, why in _FOREIGN:
        if found := [name for name in names if re.search(pattern, name)]:
            raise ConversionError(
                f"the file has {what} ({found[0]}{f' and {len(found) - 1} more' if found[1:] else ''}): {why}, which "
                "MAWS' models do not, so there is no equal model to convert it to"
            )
    if any(name.startswith(("text_encoder.", "vision_encoder.", "vision_projection")) for name in names):
        return "clip"
    if any(name.startswith(("decoder_", "mask_token")) for name in names):
        return "mae"
    return "classifier" if any(name.startswith("head.") for name in names) else "encoder"


def pieces_of(layout: Layout, config: MawsViTConfig | MawsLiTConfig) -> list[Piece]:
    """Every tensor of our model and where it comes from."""
    if isinstance(config, MawsLiTConfig):
        return list(_lit_pieces(config))
    prefix = "" if layout == "encoder" else "vit."
    pieces = list(_encoder_pieces(config, "", prefix))
    if layout == "mae":
        pieces += _decoder_pieces(config)
    if layout == "classifier":
        pieces += _both("head", "classifier", (config.num_labels, config.hidden_size))
    return pieces


def check_shapes(pieces: Iterable[Piece], shapes: Mapping[str, Shape], what: str) -> None:
    """Every source once, every target filled, every shape as it should be.

    Args:
        pieces: what is wanted.
        shapes: what there is, by today's original names.
        what: the file and the model it should be, for the message.

    Raises:
        ConversionError: with all that is missing, unexpected or of another shape.
    """
    wanted = {piece.source: piece.source_shape for piece in pieces if piece.source is not None}
    wrong = [f"missing: {name} {shape}" for name, shape in wanted.items() if name not in shapes]
    wrong += [f"unexpected: {name} {tuple(shapes[name])}" for name in shapes if name not in wanted]
    wrong += [
        f"of another shape: {name} is {tuple(shapes[name])}, expected {shape}"
        for name, shape in wanted.items()
        if name in shapes and tuple(shapes[name]) != shape
    ]
    if wrong:
        raise ConversionError(f"{what} does not fit: {'; '.join(wrong)}")


def _both(source: str, target: str, shape: Shape) -> Iterator[Piece]:
    """Weight and bias."""
    yield Piece(f"{target}.weight", shape, f"{source}.weight")
    yield Piece(f"{target}.bias", shape[:1], f"{source}.bias")


def _block_pieces(source: str, target: str, width: int, intermediate: int) -> Iterator[Piece]:
    yield from _both(f"{source}.norm1", f"{target}.layernorm_before", (width,))
    for index, name in enumerate("qkv"):
        for kind, shape in (("weight", (width, width)), ("bias", (width,))):
            yield Piece(f"{target}.attention.{name}_proj.{kind}", shape, f"{source}.attn.qkv.{kind}", (index, 3))
    yield from _both(f"{source}.attn.proj", f"{target}.attention.o_proj", (width, width))
    yield from _both(f"{source}.norm2", f"{target}.layernorm_after", (width,))
    yield from _both(f"{source}.mlp.fc1", f"{target}.mlp.fc1", (intermediate, width))
    yield from _both(f"{source}.mlp.fc2", f"{target}.mlp.fc2", (width, intermediate))


def _encoder_pieces(config: MawsViTConfig, source: str, target: str) -> Iterator[Piece]:
    width, tokens = config.hidden_size, 1 + config.grid_size[0] * config.grid_size[1]
    yield Piece(f"{target}embeddings.cls_token", (1, 1, width), f"{source}cls_token")
    yield Piece(f"{target}embeddings.position_embeddings", (1, tokens, width), f"{source}pos_embed")
    filters = (width, config.num_channels, *as_pair(config.patch_size))
    yield from _both(f"{source}patch_embed.proj", f"{target}embeddings.patch_embeddings.projection", filters)
    for index in range(config.num_hidden_layers):
        names = f"{source}blocks.{index}", f"{target}layers.{index}"
        yield from _block_pieces(*names, width, config.intermediate_size)
    yield from _both(f"{source}norm", f"{target}layernorm", (width,))


def _decoder_pieces(config: MawsViTConfig) -> Iterator[Piece]:
    width, tokens = config.decoder_hidden_size, 1 + config.grid_size[0] * config.grid_size[1]
    yield from _both("decoder_embed", "decoder.embed", (width, config.hidden_size))
    yield Piece("decoder.mask_token", (1, 1, width), "mask_token")
    yield Piece("decoder.position_embeddings", (1, tokens, width), "decoder_pos_embed")
    for index in range(config.decoder_num_hidden_layers):
        names = f"decoder_blocks.{index}", f"decoder.layers.{index}"
        yield from _block_pieces(*names, width, config.decoder_intermediate_size)
    yield from _both("decoder_norm", "decoder.layernorm", (width,))
    height, columns = as_pair(config.patch_size)
    yield from _both("decoder_pred", "decoder.head", (height * columns * config.num_channels, width))


def _lit_pieces(config: MawsLiTConfig) -> Iterator[Piece]:
    yield from _encoder_pieces(config.vision_config, "vision_encoder.", "vision_model.")
    yield from _text_pieces(config.text_config)
    for name, ours, tower in (
        ("vision_projection", "visual_projection", config.vision_config),
        ("text_projection", "text_projection", config.text_config),
    ):
        yield Piece(f"{ours}.weight", (config.projection_dim, tower.hidden_size), name, transposed=True)
    yield Piece("logit_scale", (), "logit_scale")


def _text_pieces(config) -> Iterator[Piece]:
    width, target = config.hidden_size, "text_model.embeddings"
    yield Piece(f"{target}.word_embeddings.weight", (config.vocab_size, width), f"{TEXT}.token_embedding.weight")
    positions = (config.max_position_embeddings, width)
    yield Piece(f"{target}.position_embeddings.weight", positions, f"{TEXT}.positional_embedding.embedding.weight")
    # XLM-R of transformers adds a vector for the kind of sentence, of which there is one; the original adds none.
    yield Piece(f"{target}.token_type_embeddings.weight", (1, width), None)
    yield from _both(f"{TEXT}.embedding_layer_norm", f"{target}.LayerNorm", (width,))
    for index in range(config.num_hidden_layers):
        source, target = f"{TEXT}.layers.layers.{index}", f"text_model.encoder.layer.{index}"
        for part, name in enumerate(("query", "key", "value")):
            for kind, shape in (("weight", (width, width)), ("bias", (width,))):
                fused = f"{source}.self_attn.in_proj_{kind}"
                yield Piece(f"{target}.attention.self.{name}.{kind}", shape, fused, (part, 3))
        yield from _both(f"{source}.self_attn.out_proj", f"{target}.attention.output.dense", (width, width))
        yield from _both(f"{source}.norm1", f"{target}.attention.output.LayerNorm", (width,))
        intermediate = config.intermediate_size
        yield from _both(f"{source}.linear1", f"{target}.intermediate.dense", (intermediate, width))
        yield from _both(f"{source}.linear2", f"{target}.output.dense", (width, intermediate))
        yield from _both(f"{source}.norm2", f"{target}.output.LayerNorm", (width,))


__all__ = ["TEXT", "Layout", "Piece", "canonical_names", "check_shapes", "layout_of", "pieces_of"]
