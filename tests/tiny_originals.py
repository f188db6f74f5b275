"""Small original checkpoints: every layout and spelling, with random weights; key lists are written out here."""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden"
WIDTH, DEPTH, HEADS, PATCH, SIDE = 32, 2, 4, 8, 32
TEXT_WIDTH, TEXT_HEADS, VOCABULARY, POSITIONS, DIM = 24, 3, 60, 20, 16
TEXT = "text_encoder.encoder.transformer"
BETTER_TO_OLD = {
    "self_attn.in_proj_weight": "attention.input_projection.weight",
    "self_attn.in_proj_bias": "attention.input_projection.bias",
    "self_attn.out_proj.weight": "attention.output_projection.weight",
    "self_attn.out_proj.bias": "attention.output_projection.bias",
    "linear1.weight": "residual_mlp.mlp.0.weight",
    "linear1.bias": "residual_mlp.mlp.0.bias",
    "linear2.weight": "residual_mlp.mlp.3.weight",
    "linear2.bias": "residual_mlp.mlp.3.bias",
    "norm1.weight": "attention_layer_norm.weight",
    "norm1.bias": "attention_layer_norm.bias",
    "norm2.weight": "final_layer_norm.weight",
    "norm2.bias": "final_layer_norm.bias",
}


def golden(file: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / file)


def golden_weights(file: str) -> dict[str, Tensor]:
    return {name[7:]: value for name, value in golden(file).items() if name.startswith("weight/")}


def drawn(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def block_shapes(name: str, width: int, intermediate: int) -> dict[str, tuple[int, ...]]:
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linear |= {"mlp.fc1": (intermediate, width), "mlp.fc2": (width, intermediate)}
    shapes = {f"{name}.{norm}.{kind}": (width,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
    for part, shape in linear.items():
        shapes |= {f"{name}.{part}.weight": shape, f"{name}.{part}.bias": shape[:1]}
    return shapes


def encoder_shapes(
    *, width: int = WIDTH, depth: int = DEPTH, patch: int = PATCH, patches: int = 16, intermediate: int = 4 * WIDTH
) -> dict[str, tuple[int, ...]]:
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + patches, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for index in range(depth):
        shapes |= block_shapes(f"blocks.{index}", width, intermediate)
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def encoder(**sizes: int) -> dict[str, Tensor]:
    return drawn(encoder_shapes(**sizes))


def classifier(classes: int = 5) -> dict[str, Tensor]:
    return drawn({**encoder_shapes(), "head.weight": (classes, WIDTH), "head.bias": (classes,)})


def text_encoder(
    width: int = TEXT_WIDTH,
    depth: int = 2,
    heads: int = TEXT_HEADS,
    vocabulary: int = VOCABULARY,
    positions: int = POSITIONS,
    intermediate: int = 40,
) -> nn.Module:
    """torchtext's encoder put together from torch's own modules, whose names a checkpoint has."""
    layer = nn.TransformerEncoderLayer(width, heads, intermediate, 0.1, activation="gelu", batch_first=True)
    layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
    embedding = nn.ModuleDict({"embedding": nn.Embedding(positions, width, 1)})
    return nn.ModuleDict(
        {
            "token_embedding": nn.Embedding(vocabulary, width, 1),
            "layers": layers,
            "positional_embedding": embedding,
            "embedding_layer_norm": nn.LayerNorm(width),
        }
    ).eval()


def two_towers(text: nn.Module | None = None, dim: int = DIM, **sizes: int) -> dict[str, Tensor]:
    text = text or text_encoder()
    shapes = {f"vision_encoder.{name}": shape for name, shape in encoder_shapes(**sizes).items()}
    shapes |= {f"{TEXT}.{name}": tuple(value.shape) for name, value in text.state_dict().items()}
    width = shapes["vision_encoder.cls_token"][2]
    text_width = shapes[f"{TEXT}.token_embedding.weight"][1]
    shapes |= {"vision_projection": (width, dim), "text_projection": (text_width, dim)}
    return {**drawn(shapes), "logit_scale": torch.tensor(2.5)}


def spelt_as_before(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of torchtext 0.12."""
    renamed = {}
    for name, value in state.items():
        for new, old in BETTER_TO_OLD.items():
            if ".layers.layers." in name and name.endswith(f".{new}"):
                name = name.replace(".layers.layers.", ".layers.").replace(f".{new}", f".{old}")
                break
        renamed[name] = value
    return renamed


def training_checkpoint(state: dict[str, Tensor], **arguments: object) -> dict[str, object]:
    """What main_pretrain.py saves."""
    return {
        "model": state,
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 1e-3}]},
        "epoch": 799,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
        "args": argparse.Namespace(batch_size=64, blr=1.5e-4, output_dir="./job", resume="", **arguments),
    }


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path
