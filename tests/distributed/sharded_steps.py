"""The updates that test_sharded.py takes on one process and its probe on two, and what they are taken on."""

import torch
from tiny import tiny_config
from torch import Tensor
from transformers import PreTrainedModel

from maws_hf import MawsMAEForPreTraining, MawsViTForImageClassification
from maws_hf.optim.ema import WeightAverage
from maws_hf.optim.groups import parameter_groups
from maws_hf.training.sharding import whole_norm

IMAGES, SEED, CLASSES, MAX_NORM = 8, 3, 11, 0.3
MODELS = {"mae": MawsMAEForPreTraining, "wsp": MawsViTForImageClassification, "cross": MawsMAEForPreTraining}
CONFIGS = {task: tiny_config(num_labels=CLASSES) for task in MODELS}
CONFIGS["cross"].update({"decoder_attention": "cross", "decoder_inter_block_attention": True, "prediction_ratio": 0.5})


def batch(task: str, step: int, images: slice = slice(None)) -> dict[str, Tensor]:
    """The chosen ones of this step's images, with the masks or labels that belong to them."""
    generator = torch.Generator().manual_seed(step)
    pixels = torch.randn(IMAGES, 3, 32, 32, generator=generator)[images]
    noise = torch.rand(IMAGES, 16, generator=generator)[images]
    labels = torch.randint(0, CLASSES, (IMAGES, 2), generator=generator)
    labels[:, 1] = torch.where(labels[:, 0] == labels[:, 1], -100, labels[:, 1])
    if task != "wsp":
        return {"pixel_values": pixels, "noise": noise}
    return {"pixel_values": pixels, "labels": labels[images], "skip_logits": True}


def make_optimizer(model: PreTrainedModel, groups: list[dict] | None = None) -> torch.optim.AdamW:
    groups = groups or parameter_groups(model, 0.05)
    return torch.optim.AdamW(groups, lr=1e-2, eps=1e-3, fused=True)


def update(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, average: WeightAverage, inputs: dict, step: int
) -> tuple[float, float]:
    """Loss, and gradient norm before clipping."""
    model.train()
    loss = model(**inputs).loss
    loss.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = whole_norm(torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters]))
    torch.nn.utils.clip_grads_with_norm_(parameters, MAX_NORM, norm)
    optimizer.step()
    optimizer.zero_grad()
    average.update(model, step)
    return float(loss.detach()), float(norm)
