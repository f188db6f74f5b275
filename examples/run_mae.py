r"""MAE pre-pretraining (paper section 3): learn visual features from images alone.

    accelerate launch examples/run_mae.py --config examples/recipes/mae_laptop.yaml \
        --dataset_name FOLDER_OR_HUB_ID --output_dir runs/mae

`--config_overrides prediction_ratio=0.5` and `decoder_attention=cross` are faster because they change the objective;
the paper uses neither (scripts/README.md, "Cheaper objectives").

Kill it at any time; the same command continues. `output_dir` ends up with the model (`from_pretrained` reads it),
`loss.png`, `reconstruction.png`, `metrics.jsonl` and `checkpoints/`.
"""

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils import logging

from maws_hf import MawsMAEForPreTraining
from maws_hf.evaluation.flops import mae_training_flops
from maws_hf.evaluation.reconstruction import reconstruction_losses
from maws_hf.processing.image_processors import image_processor_of
from maws_hf.training.arguments import option, parse_recipe
from maws_hf.training.distributed import build_accelerator
from maws_hf.training.entry_point import from_here, run_script
from maws_hf.training.images import ImageRecipe, build_training_loader, read_eval_samples
from maws_hf.training.ledger import Stage, read_ledger
from maws_hf.training.loop import train
from maws_hf.training.model import ModelRecipe, build_model, describe_model, save_trained_model
from maws_hf.training.seeding import seed_for
from maws_hf.visualization import plot_curve, reconstruction_grid, save_picture

# ---------------------------------------------------------------- arguments


@dataclass(kw_only=True)
class MAERecipe(ImageRecipe, ModelRecipe):
    """Data and model of a pre-pretraining run; defaults are the parent's (MAE on ImageNet), without its warm-up."""

    picture_steps: int = option(500, "Updates between two pictures in output_dir/reconstructions.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.picture_steps >= 1, "picture_steps", "at least 1")


# ---------------------------------------------------------------- objective


def masked_pixel_objective(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    return model(batch["pixel_values"]).loss


# ---------------------------------------------------------------- main


def main() -> int:
    recipe = parse_recipe(MAERecipe, __doc__)
    logging.disable_progress_bar()  # one bar is enough
    output_dir = Path(recipe.output_dir)
    accelerator = build_accelerator(recipe)

    earlier = read_ledger(recipe.model_name_or_path)
    model = build_model(MawsMAEForPreTraining, recipe)
    config = model.config
    loader = build_training_loader(recipe, config.image_size, accelerator)
    samples = read_eval_samples(recipe, config.image_size, count=256)
    images = torch.stack([sample["pixel_values"] for sample in samples]).to(accelerator.device)
    patches = config.grid_size[0] * config.grid_size[1]
    generator = torch.Generator().manual_seed(seed_for("evaluation masks", recipe.seed))
    noise = torch.rand(len(images), patches, generator=generator).to(accelerator.device)

    def draw(model: MawsMAEForPreTraining, file: Path) -> None:
        grid = reconstruction_grid(model.reconstruct(images[:6], noise=noise[:6]))
        if accelerator.is_main_process:
            save_picture(lambda path: grid.save(path, format="png"), file)

    def draw_when_due(step: int, model: MawsMAEForPreTraining) -> None:
        if step % recipe.picture_steps == 0:
            draw(model, output_dir / "reconstructions" / f"step-{step:08d}.png")

    accelerator.print(describe_model(model))
    flops_per_image = mae_training_flops(config)
    outcome = train(
        model,
        masked_pixel_objective,
        loader,
        recipe,
        accelerator,
        flops_per_image=flops_per_image,
        after_step=draw_when_due,
    )
    if outcome.exit_code:
        accelerator.print(f"stopped after step {outcome.step}; the same command continues")
        accelerator.end_training()
        return outcome.exit_code
    # On every process, because a model whose parameters are sharded needs all of them to compute.
    losses = reconstruction_losses(model, images, noise)
    draw(model, output_dir / "reconstruction.png")
    if accelerator.is_main_process:
        spent = Stage("mae", outcome.images_seen, outcome.images_seen * flops_per_image)
        save_trained_model(model, image_processor_of(model.config), output_dir, [*earlier, spent])
        plot_curve(
            output_dir / "metrics.jsonl",
            output_dir / "loss.png",
            references={
                "every patch's mean": losses["patch_mean_loss"],
                "every patch's own mean colour": losses["patch_colour_loss"],
            },
        )
        report(output_dir, outcome.step, spent, losses)
    accelerator.end_training()
    return 0


def report(output_dir: Path, steps: int, spent: Stage, losses: dict[str, float]) -> None:
    python, here = from_here(sys.executable), Path(__file__).parent
    load = (
        "import maws_hf; from transformers import AutoModel; "
        f"print(AutoModel.from_pretrained({json.dumps(str(output_dir))}))"
    )
    print(f"""
MAE pre-pretraining: {steps} steps done, {spent.images:,} images, {spent.flops:.2e} operations.

  loss on masked patches                  {losses["loss"]:.4f}
  the same with shuffled positions        {losses["shuffled_positions_loss"]:.4f}
  predicting each patch's mean            {losses["patch_mean_loss"]:.4f}
  predicting each patch's own mean colour {losses["patch_colour_loss"]:.4f}   (it is told the colour; the model is not)

  masked / reconstructed / original       {output_dir / "reconstruction.png"}
  loss curve                              {output_dir / "loss.png"}
  model                                   {output_dir}

Try next:
  {python} -c {shlex.quote(load)}
  {from_here(Path(sys.executable).with_name("accelerate"))} launch \\
      --config_file {from_here(here / "accelerate" / "single_process.yaml")} {from_here(__file__)} \\
      --config {from_here(here / "recipes" / "mae_laptop.yaml")} --dataset_name YOUR_IMAGE_FOLDER \\
      --output_dir runs/mine""")


if __name__ == "__main__":
    run_script(main)
