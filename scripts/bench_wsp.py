r"""How much faster is a WSP step made by index targets, the in-place gradient and the class-token-only last block?

    OMP_NUM_THREADS=1 python scripts/bench_wsp.py

Variants of the same computation take turns in one process; printed are medians of the ratios of a round, CPU time of
this process, and the largest differences of losses and gradients from the plain form.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from side_by_side import describe_machine, markdown_table, ratio, take_turns
from torch import Tensor

from maws_hf import MawsViTConfig, MawsViTForImageClassification
from maws_hf.losses import weak_label_loss, weak_label_loss_in_place


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--images", type=int, default=512, help="batch of the head (default: 512)")
    parser.add_argument("--classes", type=int, default=28_000, help="default: 28000, as IG-3B")
    parser.add_argument("--width", type=int, default=768, help="default: 768, as ViT-B")
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(describe_machine())
    for dtype in (torch.float32, torch.bfloat16):
        compare_heads(arguments, dtype)
    compare_last_blocks(arguments.rounds)


def compare_heads(arguments: argparse.Namespace, dtype: torch.dtype) -> None:
    features = torch.randn(arguments.images, arguments.width, dtype=dtype, requires_grad=True)
    head = (torch.randn(arguments.classes, arguments.width) * 0.02).to(dtype).requires_grad_()
    labels = torch.stack([torch.randperm(arguments.classes)[:3] for _ in range(arguments.images)])

    def dense(logits: Tensor) -> Tensor:
        targets = torch.zeros(logits.shape).scatter_(1, labels, 1 / labels.shape[1])
        return F.cross_entropy(logits.float(), targets)

    def variant(loss_function: Callable[[Tensor], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        def step() -> tuple[Tensor, ...]:
            loss = loss_function(F.linear(features, head))
            return (loss, *torch.autograd.grad(loss, (features, head)))

        return step

    print(f"\nhead: {arguments.images} images, {arguments.width} -> {arguments.classes} classes, {dtype}\n")
    report(
        {
            "dense targets, cross_entropy": variant(dense),
            "index targets": variant(lambda logits: weak_label_loss(logits, labels)),
            "index targets, gradient in place": variant(lambda logits: weak_label_loss_in_place(logits, labels)),
        },
        arguments.rounds,
    )


def compare_last_blocks(rounds: int) -> None:
    config = MawsViTConfig.from_size("vit_b16", num_hidden_layers=12, num_labels=0)
    model = MawsViTForImageClassification(config).train()
    images = torch.randn(2, 3, 224, 224)

    def variant(class_token_only: bool) -> Callable[[], tuple[Tensor, ...]]:
        def step() -> tuple[Tensor, ...]:
            loss = model.vit(images, class_token_only=class_token_only).pooler_output.square().mean()
            return (loss, *torch.autograd.grad(loss, list(model.parameters())))

        return step

    print("\nencoder: vit_b16, 2 images of 224 pixels, torch.float32\n")
    report({"all tokens": variant(False), "class token only": variant(True)}, rounds)


def report(variants: dict[str, Callable[[], tuple[Tensor, ...]]], rounds: int) -> None:
    seconds, results = take_turns(variants, rounds)
    plain = next(iter(variants))
    plain_loss, *plain_gradients = results[plain]
    rows = []
    for name, (loss, *gradients) in results.items():
        differences = [own - base for own, base in zip(gradients, plain_gradients, strict=True)]
        error = norm(differences) / norm(plain_gradients)  # all together: some gradients are zero but for rounding
        rows.append(
            [
                name,
                f"{statistics.median(seconds[name]):.3f}",
                f"{ratio(seconds, name, plain):.2f}",
                f"{abs((loss - plain_loss).item()):.1e}",
                f"{error:.1e}",
            ]
        )
    print(markdown_table(["form", "s", "x", "loss differs by", "gradients by"], rows))


def norm(tensors: list[Tensor]) -> float:
    return torch.nn.utils.get_total_norm([tensor.float() for tensor in tensors]).item()


if __name__ == "__main__":
    main()
