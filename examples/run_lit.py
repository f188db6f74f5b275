r"""LiT (paper section 4.1): a text tower learns to describe what a locked MAWS image tower sees. Zero-shot follows.

    accelerate launch examples/run_lit.py --config examples/recipes/lit_laptop.yaml \
        --vision_model_name_or_path runs/maws --text_model_name_or_path FacebookAI/xlm-roberta-base \
        --dataset_name FOLDER_OR_HUB_ID --output_dir runs/lit

Captions come in one or many languages (`--caption_weights en=2,de=1`). The image tower sees every image once; its
features stay in `--feature_cache`. Kill it at any time; the same command continues. `output_dir` ends up with the
model and its processor (`pipeline("zero-shot-image-classification")` reads them), `retrieval.json`, `loss.png`,
`metrics.jsonl`, `training.json` (what it has cost) and `checkpoints/`.
"""

import json
import math
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from maws_hf import MawsLiTModel, MawsLiTProcessor
from maws_hf.evaluation.flops import image_tower_flops, lit_training_flops
from maws_hf.evaluation.retrieval import caption_retrieval
from maws_hf.models.configuration_maws_lit import MAX_LOGIT_SCALE
from maws_hf.models.loading import refuse_adapter
from maws_hf.processing.image_processors import image_processor_of
from maws_hf.training.arguments import option, parse_recipe
from maws_hf.training.distributed import build_accelerator
from maws_hf.training.entry_point import from_here, run_script
from maws_hf.training.ledger import Stage, describe_ledger, read_ledger
from maws_hf.training.loop import train
from maws_hf.training.model import save_trained_model
from maws_hf.training.pairs import (
    PairRecipe,
    build_pair_loader,
    encode_in_parts,
    encode_locked,
    load_tokenizer_of,
    mean_caption_tokens,
    tokenize,
)
from maws_hf.training.retrieval_set import RetrievalSet, read_retrieval_set
from maws_hf.training.seeding import seed_for
from maws_hf.visualization import plot_curve
from maws_hf.whole_files import write_atomically

# ---------------------------------------------------------------- arguments


@dataclass(kw_only=True)
class LiTRecipe(PairRecipe):
    """Towers, captions and images of a LiT run.

    The paper's text gives the towers, the data and one epoch; batch, optimizer, learning rate and the bound of the
    temperature are not in it, and its appendix we have not seen. All of these are ours: those of public LiT and CLIP
    training where there are some.
    """

    vision_model_name_or_path: str | None = option(None, "The trained image tower: a run of this package, a Hub id.")
    text_model_name_or_path: str | None = option(
        None, "The text tower with its tokenizer: any encoder, such as XLM-R."
    )
    model_name_or_path: str | None = option(None, "Start from this LiT model instead of two towers.")
    projection_dim: int | None = option(None, "Width of the common space; the text tower's if unset.")
    gradient_cache_chunks: int = option(
        1, "Parts of a batch whose captions are encoded one after the other: less memory, the same gradients."
    )
    retrieval_splits: list[str] | None = field(
        default=None,
        metadata={"help": "Splits to find captions and images in at the end; the evaluation split if unset."},
    )
    retrieval_languages: list[str] | None = field(
        default=None, metadata={"help": "Languages (or columns) to do it in; those of --caption_weights if unset."}
    )

    # Where the parents' defaults are MAE's:
    base_learning_rate: float = option(3.9e-6, "Peak learning rate for 256 pairs an update; scaled linearly.")
    weight_decay: float = option(0.2, "AdamW weight decay, on matrices only.")
    adam_beta2: float = option(0.98, "AdamW beta2.")
    adam_epsilon: float = option(1e-6, "AdamW epsilon.")
    max_grad_norm: float = option(1.0, "Clip gradients to this global norm; 0 does not clip.")

    def __post_init__(self) -> None:
        super().__post_init__()
        towers = (self.vision_model_name_or_path is not None, self.text_model_name_or_path is not None)
        if all(towers) is (self.model_name_or_path is not None) or any(towers) is not all(towers):
            raise ValueError(
                "give --vision_model_name_or_path and --text_model_name_or_path, or a LiT model alone: "
                "--model_name_or_path"
            )
        for name in ("vision_model_name_or_path", "text_model_name_or_path", "model_name_or_path"):
            start = getattr(self, name)
            other = start is None or Path(start).resolve() != Path(self.output_dir).resolve()
            self._require(other, name, "another folder than --output_dir, which is continued by itself")
        self._require(
            self.gradient_accumulation_steps == 1,
            "gradient_accumulation_steps",
            "1: the mean over small batches has fewer candidates than one large batch; raise "
            "--per_device_train_batch_size and --gradient_cache_chunks instead",
        )
        batch = self.per_device_train_batch_size
        self._require(
            1 <= self.gradient_cache_chunks <= batch, "gradient_cache_chunks", f"from 1 to the batch size, {batch}"
        )
        self._require(self.projection_dim is None or self.projection_dim >= 1, "projection_dim", "at least 1")


# ---------------------------------------------------------------- objective


def contrastive_objective(
    model: torch.nn.Module,
    batch: dict,
    encode: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """With `encode` the features of images are computed by that."""
    images = {name: batch[name] for name in ("pixel_values", "vision_features") if name in batch}
    if encode is not None and "pixel_values" in images:
        images = {"vision_features": encode(images["pixel_values"])}
    return model(text_batches=batch["text_batches"], return_loss=True, **images).loss


# ---------------------------------------------------------------- model


def build_model(recipe: LiTRecipe) -> tuple[MawsLiTModel, PreTrainedTokenizerBase]:
    """Both float32; new projections depend on the seed alone."""
    torch.manual_seed(seed_for("weights", recipe.seed))
    options = {"attn_implementation": recipe.attn_implementation, "dtype": torch.float32}
    if recipe.model_name_or_path is not None:
        refuse_adapter(recipe.model_name_or_path)
        model = MawsLiTModel.from_pretrained(recipe.model_name_or_path, **options)
    else:
        fields = {} if recipe.projection_dim is None else {"projection_dim": recipe.projection_dim}
        model = MawsLiTModel.from_vision_text_pretrained(
            recipe.vision_model_name_or_path, recipe.text_model_name_or_path, **options, **fields
        )
    if recipe.gradient_checkpointing:
        # transformers 5.23 renames the method and warns at the old name.
        text = model.text_model
        getattr(text, "activation_checkpointing_enable", text.gradient_checkpointing_enable)({"use_reentrant": False})
    if recipe.torch_compile:
        # Each tower by itself: whole, every part of a divided batch would be another graph, by its number of words.
        model.vision_model.compile()
        model.text_model.compile()
    return model, load_tokenizer_of(recipe.model_name_or_path or recipe.text_model_name_or_path, model)


def describe_model(model: MawsLiTModel) -> str:
    """The sizes of both towers, and how much of them is trained."""
    vision, text = model.config.vision_config, model.text_model.config
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    locked = sum(p.numel() for p in model.parameters() if not p.requires_grad) / 1e6
    return (
        f"image tower {vision.hidden_size} wide, {vision.num_hidden_layers} deep, {vision.image_size} px; text tower "
        f"{text.model_type} {text.hidden_size} wide, {text.num_hidden_layers} deep, {text.vocab_size} pieces\n"
        f"{trained:.1f} M parameters are trained, {locked:.1f} M are locked"
    )


# ---------------------------------------------------------------- evaluation


def read_retrieval_sets(recipe: LiTRecipe, image_size: int | tuple[int, int]) -> list[RetrievalSet]:
    splits = recipe.retrieval_splits or [recipe.eval_split or recipe.dataset_split]
    return [read_retrieval_set(recipe, split, recipe.retrieval_languages, image_size) for split in splits]


def evaluate_retrieval(
    recipe: LiTRecipe, model: MawsLiTModel, tokenizer: PreTrainedTokenizerBase, sets: list[RetrievalSet]
) -> list[dict]:
    """Recall of images and captions, for each split and language."""
    results = []
    for images in sets:
        features = encode_in_parts(model.vision_model, images.pixels, bf16=recipe.bf16)
        for language, texts in images.captions.items():
            captions = [tokenize(text, tokenizer) for text in texts.values()]
            scores = caption_retrieval(model, features[list(texts)], captions)
            results.append({"split": images.split, "language": language, **scores})
    return results


# ---------------------------------------------------------------- main


def main() -> int:
    recipe = parse_recipe(LiTRecipe, __doc__)
    logging.disable_progress_bar()  # one bar is enough
    logging.set_verbosity_error()  # a pooler that is left out is no news
    output_dir = Path(recipe.output_dir)
    accelerator = build_accelerator(recipe)

    model, tokenizer = build_model(recipe)
    accelerator.print(describe_model(model))
    earlier = read_ledger(recipe.model_name_or_path or recipe.vision_model_name_or_path)
    config = model.config
    # What could be wrong with the data shows before the image tower begins.
    flops_per_image = lit_training_flops(
        config.vision_config,
        model.text_model.config,
        text_tokens=mean_caption_tokens(recipe, tokenizer),
        projection_dim=config.projection_dim,
        cached_features=recipe.feature_views > 0,
    )
    retrieval_sets = read_retrieval_sets(recipe, config.vision_config.image_size)  # on all ranks: all stop together
    loader, views = build_pair_loader(recipe, model, tokenizer, accelerator, parts=recipe.gradient_cache_chunks)
    # Only CPUs have packed matrices, and only what is not compiled.
    packs = config.lock_vision_tower and accelerator.device.type == "cpu" and not recipe.torch_compile
    outcome = train(
        model,
        partial(
            contrastive_objective,
            encode=partial(encode_locked, model.vision_model, bf16=recipe.bf16) if packs else None,
        ),
        loader,
        recipe,
        accelerator,
        flops_per_image=flops_per_image,
    )
    if outcome.exit_code:
        accelerator.print(f"stopped after step {outcome.step}; the same command continues")
        accelerator.end_training()
        return outcome.exit_code
    if accelerator.is_main_process:
        spent = outcome.images_seen * flops_per_image + views * image_tower_flops(config.vision_config)
        stages = [*earlier, Stage("lit", outcome.images_seen, spent)]
        model.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)  # the last update may have passed the bound
        processor = MawsLiTProcessor(image_processor_of(config.vision_config), tokenizer)
        save_trained_model(model, processor, output_dir, stages)
        model.eval()
        results = evaluate_retrieval(recipe, model, tokenizer, retrieval_sets)
        write_atomically(output_dir / "retrieval.json", f"{json.dumps({'results': results}, indent=1)}\n".encode())
        plot_curve(output_dir / "metrics.jsonl", output_dir / "loss.png")
        report(recipe, model, outcome.step, stages, results)
    accelerator.end_training()
    return 0


def report(recipe: LiTRecipe, model: MawsLiTModel, steps: int, stages: list[Stage], results: list[dict]) -> None:
    python, zero_shot = from_here(sys.executable), from_here(Path(__file__).with_name("run_zero_shot.py"))
    output_dir = Path(recipe.output_dir)
    print(f"""
LiT from {recipe.model_name_or_path or recipe.vision_model_name_or_path}: {steps} steps done.

  training operations                     {describe_ledger(stages)}
  logit scale                             {math.exp(model.logit_scale.item()):.1f}

  recall, %                images   captions   image -> text @1     @5   text -> image @1     @5   chance""")
    for result in results:
        to_text, to_image = result["image_to_text"], result["text_to_image"]
        name = f"{result['split']}, {result['language']}"
        print(
            f"  {name:<22}{result['pairs']:>9}{result['captions']:>11}{100 * to_text['recall@1']:>19.1f}"
            f"{100 * to_text['recall@5']:>7.1f}{100 * to_image['recall@1']:>19.1f}{100 * to_image['recall@5']:>7.1f}"
            f"{100 * result['chance@1']:>9.2f}"
        )
    classify = (
        "import maws_hf; from transformers import pipeline; "
        f'print(pipeline("zero-shot-image-classification", {json.dumps(str(output_dir))})'
        '("PICTURE.png", candidate_labels=["a cat", "un chien"]))'
    )
    print(f"""
  numbers                                 {output_dir / "retrieval.json"}
  loss curve                              {output_dir / "loss.png"}
  model                                   {output_dir}

Try next:
  {python} -c {shlex.quote(classify)}
  {python} {zero_shot} --model_name_or_path {shlex.quote(str(output_dir))} \\
      --dataset_name YOUR_LABELLED_IMAGES --output_dir runs/zero-shot""")


if __name__ == "__main__":
    run_script(main)
