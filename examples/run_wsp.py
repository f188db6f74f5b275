r"""WSP, weakly supervised pretraining (paper section 3): learn from noisy labels, from scratch or from a MAE encoder.

    accelerate launch examples/run_wsp.py --config examples/recipes/wsp_laptop.yaml \
        --dataset_name FOLDER_OR_HUB_ID --model_name_or_path runs/mae --output_dir runs/maws

Labels are synset ids (`scripts/build_wsp_labels.py` makes them from tags or captions) or class indices, one or several
an image. Kill it at any time; the same command continues. `output_dir` ends up with the model (`from_pretrained` reads
it), `loss.png`, `predictions.png`, `metrics.jsonl`, `training.json` (what it has cost) and `checkpoints/`.
"""

import json
import shlex
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import logging

from maws_hf import MawsViTForImageClassification
from maws_hf.data.resampling import RepeatFactors, RepeatRows, count_labels
from maws_hf.data.samples import Sample
from maws_hf.data.targets import NO_LABEL, LabelReader, pad_labels
from maws_hf.evaluation.flops import wsp_training_flops
from maws_hf.evaluation.weak_labels import WeakLabelScores, weak_label_scores
from maws_hf.processing.image_processors import image_processor_of
from maws_hf.training.arguments import option, parse_recipe
from maws_hf.training.distributed import build_accelerator
from maws_hf.training.entry_point import from_here, run_script
from maws_hf.training.image_labels import LabelRecipe, read_all_labels, read_labels
from maws_hf.training.images import build_training_loader, open_images, read_eval_samples
from maws_hf.training.ledger import Stage, describe_ledger, read_ledger
from maws_hf.training.loop import train
from maws_hf.training.model import ModelRecipe, build_model, describe_model, save_trained_model
from maws_hf.training.seeding import seed_for
from maws_hf.visualization import plot_curve, save_predictions

SIGMOID_BIAS = -10.0

# ---------------------------------------------------------------- arguments


@dataclass(kw_only=True)
class WSPRecipe(LabelRecipe, ModelRecipe):
    """Data, labels and model of a WSP run.

    The paper takes its settings from SWAG (both in appendices that we have not seen), and uses the same ones from
    scratch and from MAE without a search. That rule is kept; the values are ours.
    """

    max_labels_per_image: int = option(16, "Of an image with more labels so many are drawn at random each time.")
    resampling_ratio: float = option(
        1.0, "Images an epoch over unique ones: images of rare labels are repeated. The paper has 5/3; 1: no repeats."
    )
    loss: str = option("softmax", "softmax: cross-entropy over the set of labels, as the paper; sigmoid: each class.")

    # Where the parents' defaults are MAE's:
    base_learning_rate: float = option(1.25e-5, "Peak learning rate for 256 images an update; scaled linearly.")
    weight_decay: float = option(0.1, "AdamW weight decay, on matrices only.")
    adam_beta2: float = option(0.999, "AdamW beta2.")
    max_grad_norm: float = option(1.0, "Clip gradients to this global norm; 0 does not clip.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.max_labels_per_image >= 1, "max_labels_per_image", "at least 1")
        self._require(1 <= self.resampling_ratio < float("inf"), "resampling_ratio", "1 or more")
        self._require(self.loss in ("softmax", "sigmoid"), "loss", "softmax or sigmoid")


# ---------------------------------------------------------------- labels


def build_repeats(recipe: WSPRecipe, labels: LabelReader) -> RepeatRows:
    """How often an image is shown an epoch: by its rarest label; never without labels, which teach nothing."""
    ratio = recipe.resampling_ratio
    if labels.vocabulary is not None:
        counts = np.array([label.count for label in labels.vocabulary.classes])
        rarest = np.array([label.rarest for label in labels.vocabulary.classes])
        images = int(rarest.sum())
    elif ratio > 1:
        all_labels = read_all_labels(recipe, recipe.dataset_split, labels, "counting labels")
        counts, rarest, images = count_labels(all_labels, len(labels.names))
    else:
        counts = rarest = np.ones(len(labels.names), dtype=np.int64)
        images = len(counts)
    try:
        factors = RepeatFactors.from_ratio(counts, rarest, images, ratio)
    except ValueError as error:
        raise ValueError(f"--resampling_ratio {ratio} is not possible, 1 always is: {error}") from error
    return RepeatRows(factors, labels)


def add_labels(sample: Sample, rng: np.random.Generator, labels: LabelReader, places: int) -> Sample:
    return {"labels": pad_labels(labels(sample), places, rng)}


def read_eval_images(
    recipe: WSPRecipe, labels: LabelReader, image_size: int | tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A fixed sample of the evaluation split, images with all their labels: uint8 `(N, 3, H, W)`, int64 `(N, K)`.

    Args:
        labels: of the training split.
    """
    dataset, _ = open_images(recipe, recipe.eval_split or recipe.dataset_split, [labels.column])
    labels = labels.of_split(dataset.features)
    samples = read_eval_samples(
        recipe,
        image_size,
        count=1024,
        columns=[labels.column],
        extra=lambda row, _: {"labels": torch.tensor(labels(row))},
        keep=lambda row: bool(labels(row)),
    )
    images = torch.stack([sample["pixel_values"] for sample in samples])
    return images, pad_sequence([sample["labels"] for sample in samples], batch_first=True, padding_value=NO_LABEL)


# ---------------------------------------------------------------- objective


def weak_label_objective(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    return model(batch["pixel_values"], labels=batch["labels"], skip_logits=True).loss


# ---------------------------------------------------------------- model


def build_classifier(recipe: WSPRecipe, labels: LabelReader) -> MawsViTForImageClassification:
    """With the head of the start only if that was made for the very same classes."""
    problem_type = "multi_label_classification" if recipe.loss == "sigmoid" else None
    model = build_model(MawsViTForImageClassification, recipe, problem_type=problem_type)
    if model.config.id2label != dict(enumerate(labels.names)):
        torch.manual_seed(seed_for("head", recipe.seed))
        # Without it, tens of thousands of classes all begin with a probability of one half (as in the recipe of "How
        # to train your ViT", which the paper cites).
        bias = SIGMOID_BIAS if recipe.loss == "sigmoid" else 0.0
        model.reset_classifier(labels.names, bias)
    return model


# ---------------------------------------------------------------- main


def main() -> int:
    recipe = parse_recipe(WSPRecipe, __doc__)
    logging.disable_progress_bar()  # one bar is enough
    output_dir = Path(recipe.output_dir)
    accelerator = build_accelerator(recipe)

    labels, _ = read_labels(recipe)
    earlier = read_ledger(recipe.model_name_or_path)
    model = build_classifier(recipe, labels)
    config = model.config
    repeats = build_repeats(recipe, labels)
    loader = build_training_loader(
        recipe,
        config.image_size,
        accelerator,
        columns=[labels.column],
        extra=partial(add_labels, labels=labels, places=recipe.max_labels_per_image),
        repeats=repeats,
    )
    images, image_labels = read_eval_images(recipe, labels, config.image_size)

    accelerator.print(describe_model(model))
    accelerator.print(f"{config.num_labels} classes; {repeats.factors}")
    flops_per_image = wsp_training_flops(config)
    outcome = train(
        model,
        weak_label_objective,
        loader,
        recipe,
        accelerator,
        flops_per_image=flops_per_image,
    )
    if outcome.exit_code:
        accelerator.print(f"stopped after step {outcome.step}; the same command continues")
        accelerator.end_training()
        return outcome.exit_code
    # On every process, because a model whose parameters are sharded needs all of them to compute.
    scores = weak_label_scores(model, images.to(accelerator.device), image_labels.to(accelerator.device))
    if accelerator.is_main_process:
        spent = Stage("wsp", outcome.images_seen, outcome.images_seen * flops_per_image)
        stages = [*earlier, spent]
        save_trained_model(model, image_processor_of(model.config), output_dir, stages)
        best, truth = scores.predictions[:24, :3].tolist(), [set(row) for row in image_labels[:24].tolist()]
        save_predictions(images[:24], best, truth, labels.names, output_dir / "predictions.png")
        plot_curve(output_dir / "metrics.jsonl", output_dir / "loss.png")
        report(recipe, outcome.step, stages, len(images), scores)
    accelerator.end_training()
    return 0


def report(recipe: WSPRecipe, steps: int, stages: list[Stage], images: int, scores: WeakLabelScores) -> None:
    python, probe = from_here(sys.executable), from_here(Path(__file__).with_name("run_linear_probe.py"))
    output_dir = Path(recipe.output_dir)
    split = recipe.eval_split or f"{recipe.dataset_split} (trained on)"
    start = recipe.model_name_or_path or "new weights"
    classify = (
        "import maws_hf; from transformers import pipeline; "
        f'print(pipeline("image-classification", {json.dumps(str(output_dir))})("PICTURE.png"))'
    )
    print(f"""
WSP from {start}: {steps} steps done.

  training operations                     {describe_ledger(stages)}
  on {images} images of the split {split}:
  loss                                    {scores.loss:.4f}
  the first prediction is a label         {scores.hit_at_1:.1%}
  one of the first five is                {scores.hit_at_5:.1%}
  always the most frequent label          {scores.frequent_hit_at_1:.1%}

  pictures with predictions               {output_dir / "predictions.png"}
  loss curve                              {output_dir / "loss.png"}
  model                                   {output_dir}

Try next:
  {python} -c {shlex.quote(classify)}
  {python} {probe} --model_name_or_path {shlex.quote(str(output_dir))} \\
      --dataset_name YOUR_LABELLED_IMAGES --output_dir runs/evaluation""")


if __name__ == "__main__":
    run_script(main)
