"""What LiT keeps of the text tower in memory; the locked image tower keeps nothing.

Legend: B captions, T tokens, D width of the text tower.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig, XLMRobertaConfig

from ..models.configuration_maws_lit import MawsLiTConfig
from ..models.configuration_maws_vit import MawsViTConfig
from ..models.modeling_maws_lit import MawsLiTModel

TEXT_SIZES = {
    "base": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
}
MOST_TOKENS = 512  # positions from 2 on


def text_config_of(size: str) -> PreTrainedConfig:
    """XLM-RoBERTa's, without anything to download."""
    return XLMRobertaConfig(
        vocab_size=250_002,
        max_position_embeddings=MOST_TOKENS + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        **TEXT_SIZES[size],
    )


def lit_model_without_memory(config: MawsViTConfig, text_size: str) -> nn.Module:
    with torch.device("meta"):
        return MawsLiTModel(MawsLiTConfig(vision_config=config, text_config=text_config_of(text_size).to_dict()))


def text_block_bytes(tokens: int, text: PreTrainedConfig, bf16: bool) -> tuple[int, int]:
    """Bytes that one post-norm block keeps for a caption, and what its backward pass needs besides.

    Kept: the inputs of q, k and v, of attention, of both dense layers, of GELU and of both norms, attention's result,
    and the masks of the two dropouts (one byte a value); under autocast every linear layer casts its own input.
    """
    width, mlp, half = text.hidden_size, text.intermediate_size, 2 if bf16 else 4
    casts = 3 * half + half if bf16 else 0  # for q, k and v together, and for the first dense layer
    own = (4 if not bf16 else 0) + 3 * half + half + 4 + (4 if not bf16 else 0) + 4 + 2
    kept = tokens * (width * (own + casts) + 2 * half * mlp) + 4 * tokens * text.num_attention_heads + 16 * tokens
    return kept, tokens * (4 * width + half * mlp)


def image_work_bytes(config: MawsViTConfig, bf16: bool) -> int:
    """What a forward pass of the image tower needs at once for an image: the stream, and its MLP or its attention."""
    tokens, half = config.grid_size[0] * config.grid_size[1] + 1, 2 if bf16 else 4
    return tokens * (8 * config.hidden_size + 2 * half * config.intermediate_size + half * config.hidden_size)
