"""Started on two processes by test_ranks.py: trains a tiny model and prints what each rank saw and has.

Rank 1 meets a NaN in the second update, and a loss that jumps in the last: all ranks must leave them out together.
"""

import hashlib
import json
import sys
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tiny import tiny_config

from maws_hf import MawsMAEForPreTraining
from maws_hf.data.loader import build_loader
from maws_hf.data.samples import prepare_image
from maws_hf.data.sources import open_stream
from maws_hf.data.streaming import ImageStream
from maws_hf.processing.transforms import TrainTransform
from maws_hf.training import spikes
from maws_hf.training.arguments import TrainingArguments
from maws_hf.training.loop import train


def main(corpus: str, output_dir: str) -> None:
    accelerator = Accelerator(cpu=True)
    recipe = TrainingArguments(
        output_dir=output_dir,
        max_steps=4,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        dataloader_num_workers=0,
        skip_loss_spikes=True,
    )
    spikes.LEAST = 1  # of the losses that are needed before one can be called a spike
    stream = ImageStream(
        open_stream(corpus),
        partial(prepare_image, image_column="image", transform=TrainTransform(16)),
        seed=recipe.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    torch.manual_seed(0)
    model = MawsMAEForPreTraining(tiny_config(image_size=16, patch_size=4, drop_path_rate=0.5))
    masks, keys = [], []

    def objective(model: torch.nn.Module, batch: dict) -> torch.Tensor:
        outputs = model(batch["pixel_values"])
        masks.append(outputs.mask.flatten().int().tolist())
        keys.extend(batch["keys"])
        factors = {4: float("nan"), 8: 100.0} if accelerator.process_index == 1 else {}  # of batches, two an update
        return outputs.loss * factors.get(len(masks), 1.0)

    train(model, objective, build_loader(stream, batch_size=4), recipe, accelerator)
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
    finite = all(bool(torch.isfinite(p).all()) for p in model.parameters())
    answers = gather_object([{"masks": masks, "keys": keys, "weights": digest, "finite": finite}])
    if accelerator.is_main_process:
        print("ANSWER " + json.dumps(answers))
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
