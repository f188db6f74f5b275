r"""Fine-tune an encoder, all its weights, on images with one or many labels (paper section 4.4, Tables 3 and 9).

    accelerate launch examples/run_finetune.py --config examples/recipes/finetune_laptop.yaml \
        --model_name_or_path runs/mae-wsp --dataset_name FOLDER_OR_HUB_ID --eval_split test --output_dir runs/finetuned

The paper's settings stand in an appendix that we have not seen; the defaults are MAE's for fine-tuning ViT-B.
`--image_size 512` (518 with patches of 14) is the paper's resolution for MAWS. Kill it at any time; the same command
continues. `output_dir` ends up with the model (`from_pretrained` and pipelines read it), `results.json`,
`predictions.png`, `loss.png`, `evaluation.jsonl`, `metrics.jsonl`, `training.json` and `checkpoints/`.
"""

import json
import shlex
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from datasets import LargeList, List
from transformers.utils import logging

from maws_hf import MawsViTForImageClassification
from maws_hf.data.resampling import RepeatFactors, RepeatRows
from maws_hf.data.samples import Sample
from maws_hf.data.targets import LabelReader
from maws_hf.evaluation.classification import Classified, classify, score_targets
from maws_hf.evaluation.flops import wsp_training_flops
from maws_hf.evaluation.metrics import label_ranks, score_ranks
from maws_hf.models.configuration_maws_vit import as_pair
from maws_hf.optim.groups import parameter_groups
from maws_hf.processing.image_processors import image_processor_of, square_image_processor_of
from maws_hf.processing.mixing import Mixing, erase
from maws_hf.processing.rand_augment import RandAugment
from maws_hf.processing.transforms import EvalTransform
from maws_hf.training.arguments import option, parse_recipe
from maws_hf.training.distributed import build_accelerator
from maws_hf.training.entry_point import from_here, run_script
from maws_hf.training.image_labels import LabelRecipe, read_all_labels, read_labels
from maws_hf.training.images import build_training_loader, open_images, read_eval_samples
from maws_hf.training.ledger import Stage, describe_ledger, read_ledger
from maws_hf.training.loop import train
from maws_hf.training.model import ModelRecipe, build_model, describe_model, save_trained_model
from maws_hf.training.records import JsonLines, write_json
from maws_hf.training.seeding import seed_for
from maws_hf.training.sharding import sharding_wanted
from maws_hf.visualization import plot_curve, save_predictions

HEAD_STD = 2e-5  # of a new head, as in the parent recipe: all classes start as good as equal
WATCHED_IMAGES = 1024  # of the evaluation split, scored during training
BYTES_AT_ONCE = 2**26  # of the scores of other processes that a device holds on their way to the main one

# ---------------------------------------------------------------- arguments


@dataclass(kw_only=True)
class FinetuneRecipe(LabelRecipe, ModelRecipe):
    """Data, augmentation and model of a fine-tuning run.

    The paper names no value. Defaults are the parent recipe's for ViT-B (MAE `FINETUNE.md`) except where marked ours;
    the class token is what is read, as in the released fine-tuned models.
    """

    image_size: int | None = option(
        None,
        "Side in pixels, the model's own if unset: 224 for MAE, 512 or 518 for MAWS in the paper. The position table "
        "is interpolated once and then trained.",
    )
    eval_resize: str = option(
        "square",
        "square: the whole image, squeezed, as released models are evaluated; crop: its centre; a number: the centre "
        "of an image whose shortest side is so many pixels (MAE: 256 for 224).",
    )
    layer_decay: float = option(0.65, "Each block learns with this share of the next one's learning rate.")
    drop_path_rate: float = option(0.1, "Stochastic depth of the last block; rises linearly from 0.")
    rand_augment: float = option(9.0, "Strength of RandAugment, 0 to 10; two operations a crop. 0: none.")
    random_erasing: float = option(0.25, "Share of images of which a rectangle becomes noise.")
    mixup: float = option(0.8, "Alpha of mixup; 0: none.")
    cutmix: float = option(1.0, "Alpha of CutMix; 0: none. With mixup, each batch gets one of them.")
    label_smoothing: float = option(0.1, "Share of every target spread over all classes.")
    hflip: float = option(0.5, "Share of mirrored images; 0 where left and right matter.")
    eval_steps: int = option(500, f"Updates between two scores of {WATCHED_IMAGES} images of --eval_split.")

    # Where the parents' defaults are MAE pretraining's:
    crop_scale: float = option(0.08, "Smallest area of a random crop, as a share of the image.")
    base_learning_rate: float = option(5e-4, "Peak learning rate for 256 images an update; scaled linearly.")
    min_learning_rate: float = option(1e-6, "Learning rate that the cosine ends at.")
    adam_beta2: float = option(0.999, "AdamW beta2.")
    max_steps: int = option(125_114, "Updates in all: 100 epochs of ImageNet-1k in batches of 1024.")
    warmup_steps: int = option(6_256, "Updates over which the learning rate rises from 0: 5 epochs.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.image_size is None or self.image_size >= 1, "image_size", "at least 1")
        possible = self.eval_resize in ("square", "crop") or self.eval_resize.isdecimal()
        self._require(possible and self.eval_resize != "0", "eval_resize", "square, crop or pixels")
        self._require(0 < self.layer_decay <= 1, "layer_decay", "in (0, 1]")
        self._require(0 <= self.rand_augment <= 10, "rand_augment", "0 to 10")
        for name in ("drop_path_rate", "label_smoothing"):
            self._require(0 <= getattr(self, name) < 1, name, "in [0, 1)")
        for name in ("random_erasing", "hflip"):
            self._require(0 <= getattr(self, name) <= 1, name, "a probability")
        for name in ("mixup", "cutmix"):
            self._require(0 <= getattr(self, name) < float("inf"), name, "0 or more")
        self._require(self.eval_steps >= 1, "eval_steps", "at least 1")

    @property
    def resize(self) -> int | Literal["square"] | None:
        """As [`EvalTransform`] has it."""
        if self.eval_resize.isdecimal():
            return int(self.eval_resize)
        return "square" if self.eval_resize == "square" else None


# ---------------------------------------------------------------- labels


def labelled_rows(labels: LabelReader) -> RepeatRows:
    """Shows each image with a label once an epoch and the others never."""
    classes = len(labels.names)
    ones = np.ones(classes, dtype=np.int64)
    return RepeatRows(RepeatFactors(ones, ones, classes, threshold=0), labels)


def add_targets(sample: Sample, rng: np.random.Generator, labels: LabelReader) -> Sample:
    return {"labels": labels.multi_hot(sample)}


# ---------------------------------------------------------------- objective


class MixedObjective:
    """Cross-entropy of normalised, erased and mixed images: softmax, or sigmoid where an image has many labels."""

    def __init__(self, recipe: FinetuneRecipe, model: MawsViTForImageClassification):
        self.normalize = model.vit.embeddings.normalize
        self.erased = recipe.random_erasing
        self.mixing = Mixing(recipe.mixup, recipe.cutmix, recipe.label_smoothing)

    def __call__(self, model: torch.nn.Module, batch: dict) -> torch.Tensor:
        rng = np.random.default_rng(int(torch.randint(2**62, ())))  # torch's generator is seeded anew in each step
        pixels = self.normalize(batch["pixel_values"], channel_dim=1, dtype=torch.float32)
        pixels = erase(pixels, self.erased, rng)
        pixels, targets = self.mixing(pixels, batch["labels"].float(), rng)
        return model(pixels, labels=targets).loss


# ---------------------------------------------------------------- model


def build_classifier(recipe: FinetuneRecipe, labels: LabelReader, multi_label: bool) -> MawsViTForImageClassification:
    """With the head of the start only if that was made for the very same classes."""
    model = build_model(
        MawsViTForImageClassification,
        recipe,
        problem_type="multi_label_classification" if multi_label else "single_label_classification",
        drop_path_rate=recipe.drop_path_rate,
    )
    if model.config.id2label != dict(enumerate(labels.names)):
        torch.manual_seed(seed_for("head", recipe.seed))
        model.reset_classifier(labels.names, std=HEAD_STD)
    if recipe.image_size is not None:
        try:
            model.set_image_size(recipe.image_size)
        except ValueError as error:
            raise ValueError(f"--image_size {recipe.image_size} is not possible: {error}") from error
    return model


# ---------------------------------------------------------------- evaluation


def split_of(recipe: FinetuneRecipe) -> str:
    return recipe.eval_split or recipe.dataset_split


def check_eval_labels(recipe: FinetuneRecipe, labels: LabelReader) -> None:
    """Reads them all, so that one that is no class is known before hours are spent.

    Raises:
        ValueError: naming it.
    """
    for _ in read_all_labels(recipe, split_of(recipe), labels, "checking labels"):
        pass


class Watch:
    """Scores of a fixed sample of the evaluation split every `eval_steps` updates, in `evaluation.jsonl`."""

    def __init__(
        self, recipe: FinetuneRecipe, labels: LabelReader, multi_label: bool, image_size: int | tuple[int, int]
    ):
        labels = labels.of_split(open_images(recipe, split_of(recipe), [labels.column])[0].features)
        samples = read_eval_samples(
            recipe,
            image_size,
            WATCHED_IMAGES,
            resize=recipe.resize,
            columns=[labels.column],
            extra=partial(add_targets, labels=labels),
            keep=lambda row: bool(labels(row)),
        )
        self.images = torch.stack([sample["pixel_values"] for sample in samples])
        self.targets = torch.stack([torch.from_numpy(sample["labels"]) for sample in samples])
        self.every, self.multi_label = recipe.eval_steps, multi_label
        self.batch_size = recipe.per_device_train_batch_size
        self.lines = JsonLines(Path(recipe.output_dir, "evaluation.jsonl"))

    def __call__(self, step: int, model: MawsViTForImageClassification) -> None:
        if step % self.every == 0:
            self.lines.cut_back(step - 1)  # a killed run may have been here before
            self.lines.append({"step": step, **score_targets(self.logits(model), self.targets, self.multi_label)})

    @torch.inference_mode()
    def logits(self, model: MawsViTForImageClassification) -> torch.Tensor:
        was_training = model.training
        model.eval()
        batches = self.images.split(self.batch_size)
        logits = torch.cat([model(batch.to(model.device)).logits.float().cpu() for batch in batches])
        model.train(was_training)
        return logits


def evaluate(
    recipe: FinetuneRecipe,
    model: MawsViTForImageClassification,
    labels: LabelReader,
    multi_label: bool,
    accelerator: Accelerator,
) -> dict[str, float]:
    """As [`score_parts`], of the whole evaluation split; its shards are shared among the processes."""
    dataset, image_column = open_images(recipe, split_of(recipe), [labels.column])
    readers, rank = min(accelerator.num_processes, dataset.num_shards), accelerator.process_index
    part = dataset.shard(readers, rank) if rank < readers else dataset.take(0)
    found = classify(
        model,
        part,
        EvalTransform(model.config.image_size, recipe.resize),
        labels,
        image_column=image_column,
        batch_size=recipe.per_device_train_batch_size,
        num_workers=recipe.dataloader_num_workers,
        bf16=recipe.bf16,
    )
    return score_parts(found, multi_label, accelerator)


def score_parts(found: Classified, multi_label: bool, accelerator: Accelerator) -> dict[str, float]:
    """Scores of what all processes have classified, on the main one; nothing on the others."""
    counts = torch.tensor([len(found.scores), found.skipped], device=accelerator.device)
    images, skipped = accelerator.reduce(counts, reduction="sum").tolist()
    if multi_label:
        parts = [found.scores, found.targets]
    else:  # a number for each image says it all
        parts = [label_ranks(found.scores, found.targets.int().argmax(dim=1))]
    rows = [gather_rows(part, accelerator) for part in parts]
    if not accelerator.is_main_process:
        return {}
    scores = score_targets(*rows, multi_label) if multi_label else score_ranks(*rows, found.scores.shape[1])
    return {**scores, "images": images, "skipped": skipped}


def gather_rows(rows: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Rows of all processes, which may hold different numbers of them, on the CPU of the main one; none on the others.

    They pass over the devices some at a time: those of a whole split need not fit there.
    """
    counts = accelerator.gather(torch.tensor([len(rows)], device=accelerator.device)).tolist()
    at_once = max(1, BYTES_AT_ONCE // (rows.element_size() * rows.shape[1:].numel()))
    whole = rows.new_empty(sum(counts) if accelerator.is_main_process else 0, *rows.shape[1:])
    end = 0
    for process, count in enumerate(counts):
        for start in range(0, count, at_once):
            part = rows.new_empty(min(at_once, count - start), *rows.shape[1:], device=accelerator.device)
            if process == accelerator.process_index:
                part.copy_(rows[start : start + len(part)])
            broadcast(part, from_process=process)
            if accelerator.is_main_process:
                whole[end : end + len(part)] = part
            end += len(part)
    return whole


# ---------------------------------------------------------------- main


def main() -> int:
    recipe = parse_recipe(FinetuneRecipe, __doc__)
    logging.disable_progress_bar()  # one bar is enough
    output_dir = Path(recipe.output_dir)
    accelerator = build_accelerator(recipe)
    if sharding_wanted():
        raise ValueError("fine-tuning does not shard parameters (FSDP): use examples/accelerate/multi_gpu.yaml")

    labels, columns = read_labels(recipe, texts_are_classes=True)
    multi_label = isinstance(columns[labels.column], List | LargeList)
    earlier = read_ledger(recipe.model_name_or_path)
    model = build_classifier(recipe, labels, multi_label)
    config = model.config
    if isinstance(recipe.resize, int) and recipe.resize < max(as_pair(config.image_size)):
        raise ValueError(
            f"--eval_resize {recipe.resize} is less than the {max(as_pair(config.image_size))} pixels of the model: "
            "pictures would be framed in black"
        )
    loader = build_training_loader(
        recipe,
        config.image_size,
        accelerator,
        repeats=labelled_rows(labels),
        hflip=recipe.hflip,
        augment=RandAugment(recipe.rand_augment) if recipe.rand_augment else None,
        columns=[labels.column],
        extra=partial(add_targets, labels=labels),
    )
    watch = None
    if accelerator.is_main_process:
        check_eval_labels(recipe, labels)
        watch = Watch(recipe, labels, multi_label, config.image_size)

    accelerator.print(describe_model(model))
    flops_per_image = wsp_training_flops(config)
    outcome = train(
        model,
        MixedObjective(recipe, model),
        loader,
        recipe,
        accelerator,
        groups=parameter_groups(
            model, recipe.weight_decay, layer_decay=recipe.layer_decay, depth=config.num_hidden_layers
        ),
        flops_per_image=flops_per_image,
        after_step=watch,
    )
    if outcome.exit_code:
        accelerator.print(f"stopped after step {outcome.step}; the same command continues")
        accelerator.end_training()
        return outcome.exit_code
    stages = [*earlier, Stage("finetune", outcome.images_seen, outcome.images_seen * flops_per_image)]
    if watch is not None:  # the main process
        square = recipe.resize == "square"
        processor = square_image_processor_of(config) if square else image_processor_of(config, recipe.resize)
        save_trained_model(model, processor, output_dir, stages)
        draw_predictions(output_dir / "predictions.png", labels, watch, model)
        plot_curve(output_dir / "metrics.jsonl", output_dir / "loss.png")
    results = evaluate(recipe, model, labels, multi_label, accelerator)
    if accelerator.is_main_process:
        content = {"results": results, "options": asdict(recipe), "classes": list(labels.names)}
        write_json(content, output_dir / "results.json")
        report(recipe, outcome.step, stages, results)
    accelerator.end_training()
    return 0


def draw_predictions(file: Path, labels: LabelReader, watch: Watch, model: MawsViTForImageClassification) -> None:
    best = watch.logits(model)[:24].topk(min(3, len(labels.names)), dim=1).indices.tolist()
    truth = [set(row.nonzero().flatten().tolist()) for row in watch.targets[:24]]
    save_predictions(watch.images[:24], best, truth, labels.names, file)


def report(recipe: FinetuneRecipe, steps: int, stages: list[Stage], results: dict[str, float]) -> None:
    python, maws_hf = from_here(sys.executable), from_here(Path(sys.executable).with_name("maws-hf"))
    output_dir = Path(recipe.output_dir)
    split = recipe.eval_split or f"{recipe.dataset_split} (trained on)"
    skipped = f", {results['skipped']} could not be read" if results["skipped"] else ""
    scores = "\n".join(
        f"  {name:<39} {value:.2%}" for name, value in results.items() if name not in ("images", "skipped")
    )
    classify_one = (
        "import maws_hf; from transformers import pipeline; "
        f'print(pipeline("image-classification", {json.dumps(str(output_dir))})("PICTURE.png"))'
    )
    watched = output_dir / "evaluation.jsonl"
    watched = watched if watched.is_file() else f"none: {steps} steps are fewer than --eval_steps {recipe.eval_steps}"
    print(f"""
Fine-tuned from {recipe.model_name_or_path or "new weights"}: {steps} steps done.

  training operations                     {describe_ledger(stages)}
  on {results["images"]} images of the split {split}{skipped}:
{scores}

  pictures with predictions               {output_dir / "predictions.png"}
  loss curve                              {output_dir / "loss.png"}
  scores during training                  {watched}
  numbers and settings                    {output_dir / "results.json"}
  model                                   {output_dir}

Try next:
  {python} -c {shlex.quote(classify_one)}
  {maws_hf} export {shlex.quote(str(output_dir))} --output_dir {shlex.quote(f"exports/{output_dir.name}")}""")


if __name__ == "__main__":
    run_script(main)
