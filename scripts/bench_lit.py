r"""How much faster is a LiT step without padding, in bfloat16, and with cached image features?

    OMP_NUM_THREADS=1 python scripts/bench_lit.py
    OMP_NUM_THREADS=1 python scripts/bench_lit.py --pairs 64 --rounds 2
    python scripts/bench_lit.py --device cuda --pairs 512

Forms of the same step (forward, backward, AdamW; ViT-B/16 locked, XLM-R base trained; dropout off, learning rate 0)
take turns in one process. Printed are medians of CPU time (wall time on a GPU or with several threads); of the ratios
within a round to the plain form, and to the same in bfloat16 with the fused AdamW (a peer at its best); losses; and
how far the gradients of the projections and of the text tower's first layer are from the plain form's. That form is
the usual one: the image tower in every step, all its patches in all its blocks, by torch's own products and attention;
captions padded to the context of 102, float32, AdamW's default implementation. Captions have random tokens, a median
of 18 of them. Ours packs the locked tower's matrices on a CPU, as run_lit.py does. Needs 8 GB there.
"""

import argparse
import statistics
from collections.abc import Callable
from unittest.mock import patch

import torch
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

from maws_hf import MawsLiTConfig, MawsLiTModel
from maws_hf.kernels.linear import Linear
from maws_hf.models import modeling_maws_vit
from maws_hf.models.configuration_maws_lit import XLM_ROBERTA_BASE
from maws_hf.optim.groups import parameter_groups
from maws_hf.processing.text_batches import pad_captions
from maws_hf.training.pairs import encode_locked

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
COMPARED = (
    "visual_projection.weight",
    "text_projection.weight",
    "text_model.encoder.layer.0.attention.self.value.weight",
)

PLAIN, PLAIN_BF16 = "plain: padded, float32, AdamW", "the same in bfloat16, fused AdamW"

Result = tuple[torch.Tensor, list[torch.Tensor]]  # loss and the gradients of COMPARED


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--pairs", type=positive, help="batch (default: 16; 128 on a GPU, which would wait for the host)"
    )
    parser.add_argument("--rounds", type=positive, default=3, help="default: 3")
    add_device_options(parser)
    arguments = parser.parse_args()
    if arguments.pairs is None:
        arguments.pairs = 128 if on_gpu(arguments.device) else 16
    use_device(arguments.device, arguments.tf32)
    torch.manual_seed(0)
    with torch.device(arguments.device):
        model = MawsLiTModel(MawsLiTConfig(text_config={**XLM_ROBERTA_BASE, **NO_DROPOUT})).train()
    captions = random_captions(arguments.pairs, model.config.max_text_length)
    images = torch.randint(0, 256, (arguments.pairs, 3, 224, 224), dtype=torch.uint8).to(arguments.device)
    real = sum(map(len, captions))
    packed = model.batch_captions(captions)[0]
    print(describe_machine(arguments.device))
    print(
        f"{arguments.pairs} pairs; tokens: {arguments.pairs * model.config.max_text_length} padded to the context, "
        f"{arguments.pairs * max(map(len, captions))} to the longest, {packed.input_ids.numel()} packed, {real} real"
    )
    report(forms(model, captions, images), arguments)


def random_captions(count: int, longest: int) -> list[list[int]]:
    lengths = torch.exp(2.9 + 0.35 * torch.randn(count)).round().clamp(4, longest).int().tolist()
    return [[0, *torch.randint(4, 250_000, (length - 2,)).tolist(), 2] for length in lengths]


def forms(model: MawsLiTModel, captions: list[list[int]], images: torch.Tensor) -> dict[str, Callable[[], Result]]:
    device = images.device
    to_context = pad_captions([*captions, [0] * model.config.max_text_length], pad_token_id=1).to(device)
    padded = {
        "input_ids": to_context.input_ids[:-1],
        "attention_mask": to_context.attention_mask[:-1],
    }
    text_batches = [batch.to(device) for batch in model.batch_captions(captions)]
    with torch.no_grad():
        features = model.vision_model(images, class_token_only=True).pooler_output
    default, fused = (optimizer_of(model, fused) for fused in (False, True))

    def plain_step(optimizer: torch.optim.Optimizer, bf16: bool) -> Result:
        with (
            patch.object(Linear, "forward", torch.nn.Linear.forward),
            patch.object(modeling_maws_vit, "fastest_backend", lambda configured, *projected: configured),
        ):
            # Asked for its hidden states, the image tower computes all patches of its last block, as others do.
            return step(optimizer, bf16, pixel_values=images, output_hidden_states=True, **padded)

    def recomputed(bf16: bool) -> Result:
        if device.type != "cpu":
            return step(fused, bf16, pixel_values=images, text_batches=text_batches)
        again = encode_locked(model.vision_model, images, bf16=bf16)
        return step(fused, bf16, vision_features=again, text_batches=text_batches)

    def step(optimizer: torch.optim.Optimizer, bf16: bool, **inputs) -> Result:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = model(return_loss=True, **inputs).loss
        loss.backward()
        gradients = [model.get_parameter(name).grad for name in COMPARED]  # outlive their parameters' `grad`
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach(), gradients

    return {
        PLAIN: lambda: plain_step(default, False),
        PLAIN_BF16: lambda: plain_step(fused, True),
        "ours, float32": lambda: recomputed(False),
        "ours, bfloat16": lambda: recomputed(True),
        "ours, float32, cached features": lambda: step(
            fused, False, vision_features=features, text_batches=text_batches
        ),
        "ours, bfloat16, cached features": lambda: step(
            fused, True, vision_features=features, text_batches=text_batches
        ),
    }


def optimizer_of(model: MawsLiTModel, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameter_groups(model, 0.1), lr=0.0, fused=fused)


def report(variants: dict[str, Callable[[], Result]], arguments: argparse.Namespace) -> None:
    seconds, results = take_turns(variants, arguments.rounds, arguments.device)
    unit, of_a_second = unit_of_time(arguments.device)
    plain_loss, plain_gradients = results[PLAIN]
    rows = []
    for name, (loss, gradients) in results.items():
        error = max((own - base).norm() / base.norm() for own, base in zip(gradients, plain_gradients, strict=True))
        rows.append(
            [
                name,
                f"{statistics.median(seconds[name]) * of_a_second:.2f}",
                f"{ratio(seconds, name, PLAIN):.2f}",
                f"{ratio(seconds, name, PLAIN_BF16):.2f}",
                f"{loss:.6f} ({loss - plain_loss:+.1e})",
                f"{error:.1e}",
            ]
        )
    header = ["form", unit, "x plain", "x plain bf16", "loss (difference)", "gradients differ by"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
