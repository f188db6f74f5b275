r"""How fast is a step of fine-tuning (forward, backward, AdamW), beside timm's and transformers' form of the model?

    pip install -c constraints.txt timm
    OMP_NUM_THREADS=1 python scripts/bench_finetune.py
    OMP_NUM_THREADS=1 python scripts/bench_finetune.py --image_size 224 384 512 --batch 4 --dtype bfloat16
    python scripts/bench_finetune.py --size vit_l16 --image_size 512 --batch 32 --device cuda --compile

Same weights in float32, images, labels and fused AdamW, no dropout, PyTorch's `scaled_dot_product_attention`, but for
ours in bfloat16 on some CPUs (`kernels/attention.py`). Ours computes the class token alone in the last block, as it
does in training: the fewer `--layers`, the more that is. "bfloat16" is autocast. Printed are medians, and losses of
the first step with their differences. All models are held at once, with their AdamW, whose learning rate is zero.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from bench_encoder import CLASSES, config_of, parse_with_models, peer_of  # before maws_hf, which imports transformers
from side_by_side import describe_machine, let_go, markdown_table, ratio, take_turns, unit_of_time, use_device
from torch import Tensor, nn

from maws_hf import MawsViTForImageClassification

OURS = "maws_hf"


def main() -> None:
    arguments = parse_arguments()
    use_device(arguments.device, arguments.tf32)
    print(describe_machine(arguments.device))
    for image_size in arguments.image_size:
        for dtype in arguments.dtype:
            heading = f"fine-tuning {arguments.size}, {image_size} pixels, batch {arguments.batch}, {dtype}"
            print(f"\n{heading}{', compiled' if arguments.compile else ''}, {arguments.rounds} rounds\n")
            print(compare(arguments, image_size, dtype), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    return parse_with_models(parser)


def compare(arguments: argparse.Namespace, image_size: int, dtype: str) -> str:
    let_go()
    torch.manual_seed(0)
    images = torch.randn(arguments.batch, 3, image_size, image_size, device=arguments.device)
    labels = torch.randint(CLASSES, (arguments.batch,), device=arguments.device)
    with images.device:
        ours = MawsViTForImageClassification(config_of(arguments, image_size))
    models = {**{name: peer_of(name, ours) for name in arguments.peers}, OURS: ours}
    forms = {
        name: step_of(model, images, labels, dtype == "bfloat16", arguments.compile) for name, model in models.items()
    }
    seconds, losses = take_turns(forms, arguments.rounds, arguments.device)
    unit, of_a_second = unit_of_time(arguments.device)
    rows = []
    for name, loss in losses.items():
        median = statistics.median(seconds[name])
        rows.append(
            [
                name,
                f"{median * of_a_second:.3f}",
                f"{arguments.batch / median:.2f}",
                "" if name == OURS else f"{ratio(seconds, OURS, name):.2f}",
                f"{loss.item():.6f}",
                f"{(loss - losses[OURS]).item():+.1e}",
            ]
        )
    return markdown_table(["", f"{unit}/step", "images/s", "ours is x as fast", "loss", "loss - ours"], rows)


def step_of(
    model: nn.Module, images: Tensor, labels: Tensor, bf16: bool, compiled: bool = False
) -> Callable[[], Tensor]:
    """One step, which returns its loss. With a learning rate of zero it does all the work and starts where it did."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def loss_of(images: Tensor) -> Tensor:
        output = model(images)
        return F.cross_entropy((output if isinstance(output, Tensor) else output.logits).float(), labels)

    if compiled:
        loss_of = torch.compile(loss_of, dynamic=False)

    def step() -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            loss = loss_of(images)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


if __name__ == "__main__":
    main()
