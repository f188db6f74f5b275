r"""How much faster is a WSP step made by index targets, the in-place gradient and the class-token-only last block?

    OMP_NUM_THREADS=1 python scripts/bench_wsp.py
    python scripts/bench_wsp.py --device cuda --images 1024

Variants of the same computation take turns in one process; printed are medians of the ratios of a round, CPU time of
this process (wall time on a GPU or with several threads), and the largest differences of losses and gradients from the
plain form. The encoder is compared in float32, and on a GPU also in bfloat16 autocast.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from side_by_side import (
    add_device_options,
    describe_machine,
    markdown_table,
    on_gpu,
    positive,
    ratio,
    take_turns,
    unit_of_time,
    use_device,
)
from torch import Tensor

from maws_hf import MawsViTConfig, MawsViTForImageClassification
from maws_hf.losses import weak_label_loss, weak_label_loss_in_place


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--images", type=positive, default=512, help="batch of the head (default: 512)")
    parser.add_argument("--classes", type=positive, default=28_000, help="default: 28000, as IG-3B")
    parser.add_argument("--width", type=positive, default=768, help="default: 768, as ViT-B")
    parser.add_argument("--rounds", type=positive, default=7, help="default: 7")
    add_device_options(parser)
    arguments = parser.parse_args()
    use_device(arguments.device, arguments.tf32)
    torch.manual_seed(0)
    print(describe_machine(arguments.device))
    for dtype in (torch.float32, torch.bfloat16):
        compare_heads(arguments, dtype)
    for bf16 in (False, True) if on_gpu(arguments.device) else (False,):
        compare_last_blocks(arguments, bf16)


def compare_heads(arguments: argparse.Namespace, dtype: torch.dtype) -> None:
    device = arguments.device
    features = torch.randn(arguments.images, arguments.width, dtype=dtype, device=device, requires_grad=True)
    head = (torch.randn(arguments.classes, arguments.width, device=device) * 0.02).to(dtype).requires_grad_()
    labels = torch.stack([torch.randperm(arguments.classes)[:3] for _ in range(arguments.images)]).to(device)

    def dense(logits: Tensor) -> Tensor:
        targets = torch.zeros(logits.shape, device=device).scatter_(1, labels, 1 / labels.shape[1])
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
        arguments,
    )


def compare_last_blocks(arguments: argparse.Namespace, bf16: bool) -> None:
    device, count = torch.device(arguments.device), 128 if on_gpu(arguments.device) else 2
    with device:
        model = MawsViTForImageClassification(MawsViTConfig.from_size("vit_b16", num_labels=0)).train()
        images = torch.randn(count, 3, 224, 224)

    def variant(class_token_only: bool) -> Callable[[], tuple[Tensor, ...]]:
        def step() -> tuple[Tensor, ...]:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = model.vit(images, class_token_only=class_token_only).pooler_output.float().square().mean()
            return (loss, *torch.autograd.grad(loss, list(model.parameters())))

        return step

    precision = "bfloat16 autocast" if bf16 else "torch.float32"
    print(f"\nencoder: vit_b16, {count} images of 224 pixels, {precision}\n")
    report({"all tokens": variant(False), "class token only": variant(True)}, arguments)


def report(variants: dict[str, Callable[[], tuple[Tensor, ...]]], arguments: argparse.Namespace) -> None:
    seconds, results = take_turns(variants, arguments.rounds, arguments.device)
    unit, of_a_second = unit_of_time(arguments.device)
    plain = next(iter(variants))
    plain_loss, *plain_gradients = results[plain]
    rows = []
    for name, (loss, *gradients) in results.items():
        differences = [own - base for own, base in zip(gradients, plain_gradients, strict=True)]
        error = norm(differences) / norm(plain_gradients)  # all together: some gradients are zero but for rounding
        rows.append(
            [
                name,
                f"{statistics.median(seconds[name]) * of_a_second:.3f}",
                f"{ratio(seconds, name, plain):.2f}",
                f"{abs((loss - plain_loss).item()):.1e}",
                f"{error:.1e}",
            ]
        )
    print(markdown_table(["form", unit, "x", "loss differs by", "gradients by"], rows))


def norm(tensors: list[Tensor]) -> float:
    return torch.nn.utils.get_total_norm([tensor.float() for tensor in tensors]).item()


if __name__ == "__main__":
    main()
