"""A small adapter and a head, trained on few labelled images with the encoder frozen (paper section 4, Table 5).

The paper names LoRA, AdaptFormer and VPT and gives none of their settings. Ours, the same for all three: the head
starts as the linear classifier of the same images; then AdamW, batches of 32, 60 epochs, a tenth of them warm-up, a
cosine, mirrored images; a learning rate and a size for each method. They are fixed beforehand and not chosen on test
images.

Legend: N images, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from ..adapters import AdaptFormerConfig, VPTConfig
from ..evaluation.linear_heads import LinearHead
from ..models.modeling_maws_vit import MawsViTForImageClassification
from ..optim.schedules import warmup_cosine
from .seeding import seed_for


@dataclass(frozen=True)
class AdapterRecipe:
    """How one method is trained.

    Attributes:
        config: makes its PEFT config, with the modules trained along with it.
        learning_rate: peak.
    """

    config: Callable[[list[str]], PeftConfig]
    learning_rate: float
    epochs: int = 60
    batch_size: int = 32
    weight_decay: float = 0.01


RECIPES: dict[str, AdapterRecipe] = {
    "lora": AdapterRecipe(
        lambda head: LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], modules_to_save=head), 2e-3
    ),
    "adaptformer": AdapterRecipe(lambda head: AdaptFormerConfig(modules_to_save=head), 2e-3),
    "vpt": AdapterRecipe(lambda head: VPTConfig(num_prompts=10, modules_to_save=head), 5e-3),
}


def train_adapter(
    base: MawsViTForImageClassification,
    head: LinearHead,
    pixels: Tensor,
    labels: Tensor,
    recipe: AdapterRecipe,
    seed: int,
) -> PeftModel:
    """An adapter and a head on `base`, whose encoder stays as it is.

    Args:
        base: a classifier with C classes; its head is replaced.
        head: what the new one starts as, for features as they are.
        pixels: uint8 `(N, 3, H, W)` of the labelled images.
        labels: `(N,)`.
        seed: of the adapter's and head's first weights and of the order of the images.
    """
    torch.manual_seed(seed_for("weights", seed))
    base.reset_classifier([base.config.id2label[index] for index in range(base.num_labels)])
    with torch.no_grad():
        base.classifier.weight.copy_(head.weight)
        base.classifier.bias.copy_(head.bias)
    model = get_peft_model(base, recipe.config(["classifier"]))
    model.eval()  # the encoder is frozen also in what it drops
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.training = True  # for the adapter's own dropout
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], weight_decay=recipe.weight_decay
    )
    steps_per_epoch = -(-len(labels) // recipe.batch_size)
    max_steps = recipe.epochs * steps_per_epoch
    schedule = {"peak": recipe.learning_rate, "warmup_steps": max_steps // 10, "max_steps": max_steps}
    for step in range(max_steps):
        epoch, number = divmod(step, steps_per_epoch)
        rng = np.random.default_rng([seed, epoch])
        chosen = torch.from_numpy(rng.permutation(len(labels)))[number::steps_per_epoch]
        images = pixels[chosen]
        mirrored = torch.from_numpy(rng.random(len(labels)) < 0.5)[chosen]
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, **schedule)
        logits = model(images.to(base.device)).logits
        loss = F.cross_entropy(logits.float(), labels[chosen].to(base.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.inference_mode()
def predict(model: PeftModel, pixels: Tensor, batch_size: int = 256) -> Tensor:
    """Logits `(N, C)` float32 on the CPU."""
    device = next(model.parameters()).device
    return torch.cat([model(batch.to(device)).logits.float().cpu() for batch in pixels.split(batch_size)])


__all__ = ["RECIPES", "AdapterRecipe", "predict", "train_adapter"]
