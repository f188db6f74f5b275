r"""How much faster are few-shot adapters trained together, and on cached tokens, than one by one on images?

    OMP_NUM_THREADS=1 python scripts/bench_low_shot.py --model_name_or_path runs/demo/mae-wsp

Three ways to the same classifiers take turns in one process: one by one through the whole encoder, one by one behind
the frozen prefix, and as members of a batch behind it. Printed are medians of the ratios of a round, CPU time of this
process (wall time on a GPU or with several threads), and the largest difference of the trained classifiers' logits.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from side_by_side import describe_machine, markdown_table, positive, ratio, take_turns, use_device
from torch import Tensor
from transformers.utils import logging

from maws_hf import MawsViTConfig, MawsViTModel
from maws_hf.evaluation.linear_heads import LinearHead
from maws_hf.optim.schedules import warmup_cosine
from maws_hf.training.few_shot_adapters import (
    HEAD,
    RECIPES,
    AdapterRecipe,
    Member,
    Weights,
    plan_updates,
    predict,
    train_members,
)
from maws_hf.training.frozen_prefix import AdaptedTail, TokensBefore, adapted_tail, first_weights

CLASSES = 9
BASELINE = "one by one, whole encoder"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model_name_or_path", help="encoder; random weights of the laptop's size if unset")
    parser.add_argument("--methods", nargs="+", default=list(RECIPES), choices=list(RECIPES), help="default: all")
    parser.add_argument("--members", type=positive, default=9, help="classifiers: 3 rates x 3 folds (default: 9)")
    parser.add_argument("--images", type=positive, default=45, help="labelled images of each (default: 45)")
    parser.add_argument("--updates", type=positive, default=20, help="a real run makes 60 (default: 20)")
    parser.add_argument("--rounds", type=positive, default=3, help="default: 3")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    use_device(device)
    encoder = open_encoder(arguments.model_name_or_path).to(device).eval()
    side = encoder.config.image_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (arguments.images, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.arange(arguments.images) % CLASSES
    print(describe_machine(device))
    print(f"{arguments.members} classifiers, {arguments.updates} updates, {arguments.rounds} rounds, {device}")
    for method in arguments.methods:
        recipe = replace(RECIPES[method], updates=arguments.updates)
        compare(method, encoder, pixels, labels, recipe, arguments)


def open_encoder(name: str | None) -> MawsViTModel:
    if name is not None:
        return MawsViTModel.from_pretrained(name, dtype=torch.float32)
    torch.manual_seed(0)
    return MawsViTModel(
        MawsViTConfig(
            image_size=48,
            patch_size=8,
            hidden_size=128,
            num_hidden_layers=6,
            num_attention_heads=4,
            intermediate_size=512,
        )
    )


def compare(
    method: str,
    encoder: MawsViTModel,
    pixels: Tensor,
    labels: Tensor,
    recipe: AdapterRecipe,
    arguments: argparse.Namespace,
) -> None:
    config = recipe.config(len(encoder.layers))
    start = first_weights(encoder, config, seed=0)
    width = encoder.config.hidden_size
    head = LinearHead(torch.zeros(CLASSES, width), torch.zeros(CLASSES))
    members = [
        Member(torch.arange(len(labels)), recipe.learning_rates[number % 3], 1e-3, head, start, number)
        for number in range(arguments.members)
    ]
    with adapted_tail(encoder, config) as tail:

        def tokens() -> Tensor:
            sides = [TokensBefore(encoder, tail.first, side).all() for side in (pixels, pixels.flip(-1))]
            return torch.stack(sides, dim=1)

        variants: dict[str, Callable[[], list[Weights]]] = {
            BASELINE: lambda: [train_on_pixels(encoder, tail, pixels, labels, one, recipe) for one in members],
            "one by one, frozen prefix": lambda: one_by_one(tail, tokens(), labels, members, recipe),
            "together, frozen prefix": lambda: train_members(tail, tokens(), labels, members, recipe),
        }
        seconds, trained = take_turns(variants, arguments.rounds, str(encoder.device))
        test = TokensBefore(encoder, tail.first, pixels)
        logits = {name: predict(tail, weights, test) for name, weights in trained.items()}
    print(f"\n{method}: {len(tail.layers)} of {len(encoder.layers)} layers behind the prefix\n")
    rows = [
        [
            name,
            f"{statistics.median(times):.2f}",
            f"{ratio(seconds, name, BASELINE):.2f}",
            f"{(logits[name] - logits[BASELINE]).abs().max():.1e}",
        ]
        for name, times in seconds.items()
    ]
    print(markdown_table(["way", "s", "x", "logits differ by"], rows))


def train_on_pixels(
    encoder: MawsViTModel, tail: AdaptedTail, pixels: Tensor, labels: Tensor, member: Member, recipe: AdapterRecipe
) -> Weights:
    """The plain loop."""
    adapter = {name: parameter for name, parameter in tail.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for name, parameter in adapter.items():
            parameter.copy_(member.adapter[name])
    weight, bias = (p.to(encoder.device).clone().requires_grad_() for p in (member.head.weight, member.head.bias))
    optimizer = torch.optim.AdamW([*adapter.values(), weight, bias], weight_decay=0.0)
    rows, mirrored, _ = (plan[0] for plan in plan_updates([member], recipe))
    for step in range(recipe.updates):
        images = pixels[rows[step]]
        images = torch.where(mirrored[step].bool()[:, None, None, None], images.flip(-1), images).to(encoder.device)
        logits = F.linear(F.normalize(encoder(images, class_token_only=True).pooler_output, dim=1), weight, bias)
        loss = F.cross_entropy(logits, labels[rows[step]].to(encoder.device))
        loss = loss + member.decay / 2 * weight.square().sum()
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(
                step, peak=member.learning_rate, warmup_steps=recipe.updates // 10, max_steps=recipe.updates
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return {
        name: p.detach().clone()
        for name, p in zip((*adapter, *HEAD), optimizer.param_groups[0]["params"], strict=True)
    }


def one_by_one(
    tail: AdaptedTail, tokens: Tensor, labels: Tensor, members: list[Member], recipe: AdapterRecipe
) -> list[Weights]:
    return [train_members(tail, tokens, labels, [member], recipe)[0] for member in members]


if __name__ == "__main__":
    main()
