"""What CrossMAE's decoder keeps in memory for an image, in bytes; the rest of the plan is in `memory_plan.py`.

Legend: T tokens of the encoder, D their width, R predicted patches, W decoder width, N decoder blocks.
"""

from ..models.configuration_maws_vit import MawsViTConfig


def cross_bridge_bytes(config: MawsViTConfig, tokens: int, bf16: bool, checkpointing: bool) -> tuple[int, int]:
    """What lies between encoder and decoder blocks, and what its backward pass needs besides.

    The encoder's last norm keeps its input, linear layers and checkpoints its result. With inter-block attention
    instead: the stack of all hidden states, the N mixtures of them, and each one's norm as the blocks read it.
    """
    values, half = tokens * config.hidden_size, 2 if bf16 else 4
    read_as_it_is = 0 if bf16 and not checkpointing else 4  # autocast makes a block's own copy
    if not config.decoder_inter_block_attention:
        return values * (4 + read_as_it_is), 4 * values
    depth, maps = config.decoder_num_hidden_layers, config.num_hidden_layers + 1
    return values * (half * maps + (4 + read_as_it_is) * depth), 4 * values * (maps + depth)


def cross_block_bytes(config: MawsViTConfig, tokens: int, predicted: int, bf16: bool) -> tuple[int, int, int]:
    """Of one block: its input, what else it keeps, and what its backward pass needs besides.

    As for a block of self-attention, with keys and values of the encoder's tokens, which autocast casts for each.
    """
    width, mlp, half = config.decoder_hidden_size, config.decoder_intermediate_size, 2 if bf16 else 4
    kept = predicted * (width * (4 + 4 * half) + 2 * half * mlp + 4 * config.decoder_num_attention_heads + 16)
    kept += tokens * (2 * half * width + (2 * half * config.hidden_size if bf16 else 0))
    work = predicted * (4 * width + half * mlp) + 4 * tokens * config.hidden_size
    return 4 * predicted * width, kept, work


def hidden_state_gradient_bytes(config: MawsViTConfig, tokens: int) -> int:
    """Gradients that inter-block attention hands to all encoder layers at once."""
    maps = config.num_hidden_layers + 1 if config.decoder_inter_block_attention else 0
    return 4 * maps * tokens * config.hidden_size


__all__ = ["cross_block_bytes", "cross_bridge_bytes", "hidden_state_gradient_bytes"]
