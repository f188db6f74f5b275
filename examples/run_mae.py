r"""MAE pre-pretraining (paper section 3): learn visual features from images alone.

    accelerate launch examples/run_mae.py --config examples/recipes/mae_laptop.yaml \
        --dataset_name FOLDER_OR_HUB_ID --output_dir runs/mae

Kill it at any time; the same command continues. `output_dir` ends up with the model (`from_pretrained` reads it),
`loss.png`, `reconstruction.png`, `metrics.jsonl` and `checkpoints/`.
"""

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError
from transformers import BitImageProcessorPil
from transformers.utils import logging

from maws_hf import MawsMAEForPreTraining, MawsViTConfig
from maws_hf.data.loader import build_loader
from maws_hf.data.sources import find_image_column, open_stream
from maws_hf.data.streaming import KEY_COLUMNS, ImageStream, prepare_image
from maws_hf.evaluation.flops import mae_training_flops, measure_matmul_peak
from maws_hf.evaluation.reconstruction import reconstruction_losses
from maws_hf.models.configuration_maws_vit import SIZES, as_pair
from maws_hf.processing.transforms import EvalTransform, TrainTransform
from maws_hf.training.arguments import TrainingArguments, option, parse_recipe
from maws_hf.training.distributed import build_accelerator
from maws_hf.training.entry_point import run_script
from maws_hf.training.loop import train
from maws_hf.training.seeding import seed_for
from maws_hf.visualization import plot_curve, reconstruction_grid, save_picture

# ---------------------------------------------------------------- arguments


@dataclass(kw_only=True)
class MAERecipe(TrainingArguments):
    """Data and model of a pre-pretraining run; the defaults are the parent recipe's (MAE on ImageNet)."""

    dataset_name: str = field(
        metadata={"help": "Folder of parquet shards, tar shards or images, or a data set id on the Hub."}
    )
    dataset_config_name: str | None = option(None, "Configuration of a Hub data set that has several.")
    dataset_split: str = option("train", "Split to train on.")
    eval_split: str | None = option(
        None, "Split of the pictures and of the final losses; the training split if unset."
    )
    image_column_name: str | None = option(None, "Column of the images; found by itself if there is just one.")
    shuffle_block_size: int = option(1024, "Images each reader holds as bytes and shuffles; shards are shuffled too.")
    crop_scale: float = option(0.2, "Smallest area of a random crop, as a share of the image.")
    model_name_or_path: str | None = option(None, "Start from these weights instead of new ones.")
    model_size: str = option("vit_b16", f"Size of a new model: {', '.join(SIZES)}.")
    config_overrides: str = option("", "Config fields that differ, as image_size=96,patch_size=[8,8] (JSON values).")
    picture_steps: int = option(500, "Updates between two pictures in output_dir/reconstructions.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("shuffle_block_size", "picture_steps"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        self._require(self.model_size in SIZES, "model_size", f"one of {', '.join(SIZES)}")
        self._require(0 < self.crop_scale <= 1, "crop_scale", "in (0, 1]")


# ---------------------------------------------------------------- model


def parse_overrides(text: str) -> dict[str, object]:
    """`image_size=96,patch_size=[8,8]` -> fields; values are JSON, or text where they are none."""
    overrides = {}
    for item in filter(None, re.split(r",(?![^\[]*\])", text)):
        name, separator, value = item.partition("=")
        if not separator:
            raise ValueError(f"--config_overrides {item!r} must be field=value, several separated by commas")
        try:
            overrides[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            overrides[name.strip()] = value
    return overrides


def build_config(recipe: MAERecipe, fields: Mapping[str, object]) -> MawsViTConfig:
    """`fields` with `config_overrides` on top."""
    try:
        return MawsViTConfig(**{**fields, **parse_overrides(recipe.config_overrides)})
    except StrictDataclassError as error:
        raise ValueError(f"--config_overrides {recipe.config_overrides}: {error}") from error


def build_model(recipe: MAERecipe) -> MawsMAEForPreTraining:
    """New weights that depend on the seed alone, or those of `model_name_or_path`; float32 either way."""
    torch.manual_seed(seed_for("weights", recipe.seed))
    options = {"attn_implementation": recipe.attn_implementation, "dtype": torch.float32}
    if recipe.model_name_or_path is not None:
        config = build_config(recipe, MawsViTConfig.from_pretrained(recipe.model_name_or_path).to_dict())
        model = MawsMAEForPreTraining.from_pretrained(recipe.model_name_or_path, config=config, **options)
    else:
        config = build_config(recipe, SIZES[recipe.model_size])
        model = MawsMAEForPreTraining._from_config(config, **options)
    if recipe.gradient_checkpointing:
        # transformers 5.23 renames the method and warns at the old name.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    if recipe.torch_compile:
        model.compile()
    return model


# ---------------------------------------------------------------- data


def build_stream(recipe: MAERecipe, split: str, transform, block_size: int, **sharing) -> ImageStream:
    dataset = open_stream(
        recipe.dataset_name, split=split, name=recipe.dataset_config_name, image_column=recipe.image_column_name
    )
    column = find_image_column(dataset, recipe.image_column_name)
    names = [name for name in KEY_COLUMNS if name in dataset.features]
    return ImageStream(
        dataset.select_columns([column, *names]),  # captions in a hundred languages take time
        partial(prepare_image, image_column=column, transform=transform),
        seed=recipe.seed,
        block_size=block_size,
        **sharing,
    )


def build_training_loader(recipe: MAERecipe, image_size: int | tuple[int, int], accelerator: Accelerator):
    """Random resized crops and flips, as uint8; nothing else (MAE, appendix A.1)."""
    stream = build_stream(
        recipe,
        recipe.dataset_split,
        TrainTransform(image_size, scale=(recipe.crop_scale, 1.0)),
        recipe.shuffle_block_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=recipe.dataloader_num_workers,
    )
    return build_loader(stream, batch_size=recipe.per_device_train_batch_size)


def read_eval_images(recipe: MAERecipe, image_size: int | tuple[int, int], count: int = 256) -> torch.Tensor:
    """A fixed random sample of the evaluation split, resized and centre-cropped: `(count or fewer, 3, H, W)`."""
    transform = EvalTransform(image_size)
    stream = build_stream(
        recipe, recipe.eval_split or recipe.dataset_split, lambda image, rng: transform(image), count
    )
    images = []
    for sample in stream:
        if len(images) == count or stream.state_dict()["epoch"] > 0:
            break
        images.append(sample["pixel_values"])
    return torch.stack(images)


# ---------------------------------------------------------------- objective


def masked_pixel_objective(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    return model(batch["pixel_values"]).loss


# ---------------------------------------------------------------- main


def main() -> int:
    recipe = parse_recipe(MAERecipe, __doc__)
    logging.disable_progress_bar()  # one bar is enough
    output_dir = Path(recipe.output_dir)
    accelerator = build_accelerator(recipe)

    model = build_model(recipe)
    config = model.config
    loader = build_training_loader(recipe, config.image_size, accelerator)
    images = read_eval_images(recipe, config.image_size).to(accelerator.device)
    patches = config.grid_size[0] * config.grid_size[1]
    generator = torch.Generator().manual_seed(seed_for("evaluation masks", recipe.seed))
    noise = torch.rand(len(images), patches, generator=generator).to(accelerator.device)

    def draw(model: MawsMAEForPreTraining, file: Path) -> None:
        grid = reconstruction_grid(model.reconstruct(images[:6], noise=noise[:6]))
        save_picture(lambda path: grid.save(path, format="png"), file)

    def draw_when_due(step: int, model: MawsMAEForPreTraining) -> None:
        if step % recipe.picture_steps == 0:
            draw(model, output_dir / "reconstructions" / f"step-{step:08d}.png")

    accelerator.print(
        f"encoder {config.hidden_size} wide, {config.num_hidden_layers} deep; {config.image_size} px in patches of "
        f"{config.patch_size}; {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters with the decoder"
    )
    outcome = train(
        model,
        masked_pixel_objective,
        loader,
        recipe,
        accelerator,
        flops_per_image=mae_training_flops(config),
        matmul_peak=measure_matmul_peak(accelerator.device, torch.bfloat16 if recipe.bf16 else torch.float32),
        after_step=draw_when_due,
    )
    if outcome.exit_code:
        accelerator.print(f"stopped after step {outcome.step}; the same command continues")
        accelerator.end_training()
        return outcome.exit_code
    if accelerator.is_main_process:
        model.save_pretrained(output_dir)
        save_processor(config, output_dir)
        losses = reconstruction_losses(model, images, noise)
        draw(model, output_dir / "reconstruction.png")
        plot_curve(
            output_dir / "metrics.jsonl",
            output_dir / "loss.png",
            references={
                "every patch's mean": losses["patch_mean_loss"],
                "every patch's own mean colour": losses["patch_colour_loss"],
            },
        )
        report(output_dir, outcome.step, losses)
    accelerator.end_training()
    return 0


def save_processor(config: MawsViTConfig, output_dir: Path) -> None:
    """Evaluation preprocessing of the released models: shortest side bicubic, centre crop, normalise."""
    height, width = as_pair(config.image_size)
    BitImageProcessorPil(
        size={"shortest_edge": max(height, width)},
        crop_size={"height": height, "width": width},
        resample=3,
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
    ).save_pretrained(output_dir)


def report(output_dir: Path, steps: int, losses: dict[str, float]) -> None:
    python = Path(os.path.relpath(sys.executable))  # of the environment, which need not be activated
    print(f"""
MAE pre-pretraining: {steps} steps done.

  loss on masked patches                  {losses["loss"]:.4f}
  the same with shuffled positions        {losses["shuffled_positions_loss"]:.4f}
  predicting each patch's mean            {losses["patch_mean_loss"]:.4f}
  predicting each patch's own mean colour {losses["patch_colour_loss"]:.4f}   (it is told the colour; the model is not)

  masked / reconstructed / original       {output_dir / "reconstruction.png"}
  loss curve                              {output_dir / "loss.png"}
  model                                   {output_dir}

Try next:
  {python} -c "import maws_hf; from transformers import AutoModel; print(AutoModel.from_pretrained('{output_dir}'))"
  {python.with_name("accelerate")} launch --config_file examples/accelerate/single_process.yaml examples/run_mae.py \\
      --config examples/recipes/mae_laptop.yaml --dataset_name YOUR_IMAGE_FOLDER --output_dir runs/mine""")


if __name__ == "__main__":
    run_script(main)
