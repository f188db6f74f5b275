"""The small LiT model and the captions that tests share."""

from typing import Any

import torch
from tiny import tiny_config

from maws_hf import MawsLiTConfig, MawsLiTModel

TEXT = {
    "model_type": "xlm-roberta",
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def tiny_lit_config(text: dict[str, Any] | None = None, **fields: Any) -> MawsLiTConfig:
    return MawsLiTConfig(
        **{"vision_config": tiny_config(), "text_config": {**TEXT, **(text or {})}, "projection_dim": 16, **fields}
    )


def tiny_lit(text: dict[str, Any] | None = None, seed: int = 0, **fields: Any) -> MawsLiTModel:
    """Weights among which no zero hides a mistake."""
    model = MawsLiTModel(tiny_lit_config(text, **fields))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name != "logit_scale":
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model.eval()


def random_captions(count: int, longest: int = 15, vocab_size: int = 99, seed: int = 0) -> list[list[int]]:
    """Token ids of so many captions of 1 to `longest` words, between their two special tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [[0, *torch.randint(3, vocab_size, (length,), generator=generator).tolist(), 2] for length in lengths]


def padded(captions: list[list[int]], length: int | None = None, pad: int = 1) -> dict[str, torch.Tensor]:
    """The same as `input_ids` and `attention_mask`, as a tokenizer pads them."""
    length = length or max(map(len, captions))
    ids = torch.tensor([caption + [pad] * (length - len(caption)) for caption in captions])
    mask = torch.tensor([[1] * len(caption) + [0] * (length - len(caption)) for caption in captions])
    return {"input_ids": ids, "attention_mask": mask}


def random_images(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
