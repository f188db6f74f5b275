r"""How fast is a step of masked pre-training (forward, backward, AdamW), against the public implementations?

    OMP_NUM_THREADS=1 python scripts/bench_mae.py --peers transformers
    git clone https://github.com/facebookresearch/mae
    pip install -c constraints.txt timm lightly
    OMP_NUM_THREADS=1 python scripts/bench_mae.py --original mae
    python scripts/bench_mae.py --original mae --device cuda --size vit_l16 --batch 256

All hold the same weights, get the same images and hide the same patches, so their losses must agree; a loss that
differs is printed beside the ratio. Peers run with fused AdamW and the attention that they choose by themselves,
transformers also with its plain one, and the original also as its authors run it, with the default AdamW. Ours gets
uint8 pixels and normalises them itself, the peers get normalised floats.
Memory is the peak of a process of its own that runs two steps, above what it held before the model was built; on a
GPU, of this process's tensors. There ours is timed with one peer after the other, so that no more than two models are
on it; its row has all of its turns.
"of product" compares with the rate of a large matrix product alone, measured before each table: operations a second of
the matrix products that ours computes; what a peer computes besides is of no use.
`--profile` prints instead on which operations a step of each form spends its time. On a GPU it adds up kernels, which
only have names: the products of eager attention are matrix products like others there.
"""

import argparse
import gc
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path

import peers_mae
import torch
from side_by_side import (
    WARM_UPS,
    add_device_options,
    describe_machine,
    forget_peak,
    let_go,
    markdown_table,
    memory_now,
    memory_peak,
    on_gpu,
    positive,
    ratio,
    take_turns,
    unit_of_time,
    use_device,
    usual_batch,
    wait_for,
)
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg

from maws_hf import MawsMAEForPreTraining, MawsViTConfig
from maws_hf.evaluation.flops import mae_training_flops, measure_matmul_peak
from maws_hf.models.configuration_maws_vit import SIZES

OURS = "maws_hf"
PEERS = ("transformers", "lightly", "original")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Names of torch's operations (a part of them) -> what a profile calls them; the first that fits.
KINDS = {
    "attention": ("scaled_dot_product", "softmax", "bmm", "_flash", "_efficient"),
    "matrix products": ("mm", "linear_pointwise", "convolution"),
    "optimizer": ("adamw", "_foreach", "addcdiv", "addcmul", "lerp"),
    "copies and casts": ("copy", "cat", "index", "gather", "clone"),
    "GELU": ("gelu",),
    "LayerNorm": ("layer_norm",),
}
# The same for CUDA's kernels.
KERNELS = {
    "attention": ("flash", "fmha", "sdpa", "softmax"),
    "matrix products": ("gemm", "gemv", "nvjet", "xmma", "cutlass", "cublas", "cudnn", "triton_tem", "triton_mm"),
    "optimizer": ("multi_tensor_apply", "adam"),
    "compiled": ("triton_",),
    "copies and casts": ("copy", "memcpy", "catarray", "index", "gather", "scatter"),
    "GELU": ("gelu",),
    "LayerNorm": ("layer_norm", "gammabeta", "rowwisemoments"),
}
TINY = {
    **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64},
    **{"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 1},
    "decoder_intermediate_size": 64,
}

Step = Callable[[], Tensor]


def main() -> None:
    arguments = parse_arguments()
    use_device(arguments.device, arguments.tf32)
    print(describe_machine(arguments.device))
    print(
        f"\nMAE step: {arguments.size}, batch {arguments.batch}, {arguments.image_size} pixels, forward + backward + "
        f"AdamW, {arguments.rounds} rounds"
    )
    for dtype in arguments.dtype:
        print(f"\n{dtype}{' autocast' if dtype != 'float32' else ''}{', compiled' if arguments.compile else ''}\n")
        print(profile_table(arguments, dtype) if arguments.profile else table(arguments, dtype))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--size", default="vit_b16", choices=[*SIZES], help="default: vit_b16")
    parser.add_argument("--image_size", type=positive, default=224, help="pixels (default: 224)")
    parser.add_argument(
        "--batch", type=positive, help="images (default: 8; 128 on a GPU, which would wait for the host)"
    )
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=[*DTYPES], help="default: both")
    parser.add_argument("--rounds", type=positive, default=7, help="each form once a round (default: 7)")
    add_device_options(parser)
    parser.add_argument("--compile", action="store_true", help="torch.compile all of them")
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="default: transformers, lightly; original if given")
    parser.add_argument("--original", type=Path, metavar="DIR", help="a clone of github.com/facebookresearch/mae")
    parser.add_argument("--profile", action="store_true", help="shares of kinds of operations, instead of ratios")
    parser.add_argument("--no_memory", action="store_true", help="do not measure peaks, which takes a process each")
    arguments = parser.parse_args()
    if arguments.batch is None:
        arguments.batch = usual_batch(arguments.device)
    if arguments.peers is None:
        arguments.peers = [peer for peer in PEERS if peer != "original" or arguments.original]
    patch = SIZES[arguments.size]["patch_size"]
    if arguments.image_size % patch:
        parser.error(f"--image_size {arguments.image_size} is no multiple of the patch of {patch}")
    if "original" in arguments.peers and not arguments.original:
        parser.error("--peers original wants --original DIR, a clone of github.com/facebookresearch/mae")
    return arguments


def forms_of(arguments: argparse.Namespace) -> dict[str, tuple[str, bool]]:
    """Name of each row -> whose model, and whether its AdamW is the fused one."""
    rows = {"transformers": "transformers, fused AdamW", "lightly": "lightly, fused AdamW"}
    forms = {rows[peer]: (peer, True) for peer in arguments.peers if peer in rows}
    if "transformers" in arguments.peers:
        forms["transformers, eager attention, fused AdamW"] = ("transformers eager", True)
    if "original" in arguments.peers:
        forms |= {"original": ("original", False), "original, fused AdamW": ("original", True)}
    return {**forms, OURS: (OURS, True)}


def build(implementation: str, arguments: argparse.Namespace, **fields: int) -> tuple[nn.Module, peers_mae.Loss]:
    torch.manual_seed(0)
    config = MawsViTConfig.from_size(arguments.size, image_size=arguments.image_size, norm_pix_loss=True, **fields)
    ours = MawsMAEForPreTraining(config)
    if implementation.startswith("transformers"):
        return peers_mae.transformers_vit_mae(ours, "eager" if implementation.endswith("eager") else "sdpa")
    if implementation == "lightly":
        return peers_mae.lightly_mae(ours)
    if implementation == "original":
        return peers_mae.facebook_mae(ours, arguments.original)
    return ours, lambda images, noise: ours(images, noise=noise).loss


def step_of(implementation: str, fused: bool, dtype: str, arguments: argparse.Namespace) -> Step:
    with torch.device(arguments.device):  # a GPU draws the weights of a large model in no time
        model, loss_of = build(implementation, arguments)
    model.train()
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    # A learning rate of zero: all the work of an update, and every round starts from the same weights.
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=fused or None)
    images, noise = inputs(arguments)
    if implementation != OURS:
        config = MawsViTConfig()
        mean, std = (torch.tensor(v).view(3, 1, 1).to(images.device) for v in (config.image_mean, config.image_std))
        images = (images.float() / 255 - mean) / std
    if arguments.compile:
        loss_of = torch.compile(loss_of, dynamic=False)

    def step() -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = loss_of(images, noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def inputs(arguments: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """uint8 images with some structure, and the noise that hides their patches."""
    generator = torch.Generator().manual_seed(0)
    side, patch = arguments.image_size, MawsViTConfig.from_size(arguments.size).patch_size
    coarse = torch.rand(arguments.batch, 3, 16, 16, generator=generator)
    images = nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    images = (images + 0.05 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    noise = torch.rand(arguments.batch, (side // patch) ** 2, generator=generator)
    return (images * 255).to(torch.uint8).to(arguments.device), noise.to(arguments.device)


def table(arguments: argparse.Namespace, dtype: str) -> str:
    forms = forms_of(arguments)
    rate = measure_matmul_peak(torch.device(arguments.device), DTYPES[dtype], seconds=2)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    losses, ratios = {}, {}
    for names in timed_together([*forms], arguments.device):
        let_go()
        times, found = take_turns(
            {name: step_of(*forms[name], dtype, arguments) for name in names}, arguments.rounds, arguments.device
        )
        for name in names:
            seconds[name] += times[name]
            losses[name] = found[name].item()
            ratios[name] = ratio(times, OURS, name)
            if name != OURS:  # at once: on a GPU the whole table can take longer than a job may
                print(f"ours is {ratios[name]:.2f} x as fast as {name}", file=sys.stderr, flush=True)
    unit, of_a_second = unit_of_time(arguments.device)
    config = MawsViTConfig.from_size(arguments.size, image_size=arguments.image_size)
    at_the_rate = mae_training_flops(config) * arguments.batch / rate
    rows = []
    for name, (whose, fused) in forms.items():
        median = statistics.median_high(seconds[name])
        rows.append(
            [
                name,
                f"{median * of_a_second:.3f}",
                f"{arguments.batch / median:.2f}",
                f"{at_the_rate / median:.1%}",
                "" if name == OURS else f"{ratios[name]:.2f}",
                f"{losses[name]:.7f}",
                f"{losses[name] - losses[OURS]:+.1e}",
                "" if arguments.no_memory else f"{peak_gib(whose, fused, dtype, arguments):.2f}",
            ]
        )
    header = ["", f"{unit}/step", "images/s", "of product", "ours is x as fast", "loss", "loss - ours", "peak GiB"]
    return f"A large product: {rate / 1e12:.3g} TFLOP/s\n\n{markdown_table(header, rows)}"


def timed_together(names: list[str], device: str) -> list[list[str]]:
    """All of them; on a GPU, whose memory is dearer, ours and one peer after the other."""
    peers = [name for name in names if name != OURS]
    return [[peer, OURS] for peer in peers] if on_gpu(device) and peers else [names]


def profile_table(arguments: argparse.Namespace, dtype: str) -> str:
    kinds = [*(KERNELS if on_gpu(arguments.device) else KINDS), "other"]
    unit, of_a_second = unit_of_time(arguments.device)
    rows = []
    for name, (whose, fused) in forms_of(arguments).items():
        let_go()
        shares = shares_of(profile(whose, fused, dtype, arguments), on_gpu(arguments.device))
        total = sum(shares.values())
        rows.append([name, f"{total * of_a_second:.2f}", *(f"{shares[kind] / total:.1%}" for kind in kinds)])
    return markdown_table(["", f"{unit}/step", *kinds], rows)


def profile(implementation: str, fused: bool, dtype: str, arguments: argparse.Namespace) -> Iterable[FunctionEventAvg]:
    """What torch notes of a step."""
    step = step_of(implementation, fused, dtype, arguments)
    for _ in range(WARM_UPS if on_gpu(arguments.device) else 1):
        step()
    wait_for(arguments.device)
    with torch.profiler.profile() as profiler:
        step()
    return profiler.key_averages()


def shares_of(events: Iterable[FunctionEventAvg], gpu: bool) -> dict[str, float]:
    """Seconds of each kind: of operations on the CPU, or of a GPU's kernels."""
    kinds = KERNELS if gpu else KINDS
    shares = dict.fromkeys([*kinds, "other"], 0.0)
    for event in events:
        if not gpu:
            shares[kind_of(event.key, kinds)] += event.self_cpu_time_total / 1e6
        # Operations, and ranges that somebody has named, come with the time of their kernels, which are events too.
        elif event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            shares[kind_of(event.key, kinds)] += event.self_device_time_total / 1e6
    return shares


def kind_of(name: str, kinds: dict[str, tuple[str, ...]]) -> str:
    return next((kind for kind, parts in kinds.items() if any(part in name.lower() for part in parts)), "other")


def peak_gib(implementation: str, fused: bool, dtype: str, arguments: argparse.Namespace) -> float:
    if on_gpu(arguments.device):
        return measure_peak(implementation, fused, dtype, arguments)
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_report_peak, args=(send, implementation, fused, dtype, arguments))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        raise SystemExit(f"the process that measured the memory of {implementation} died") from None
    finally:
        process.join()


def _report_peak(
    send: Connection, implementation: str, fused: bool, dtype: str, arguments: argparse.Namespace
) -> None:
    build(implementation, arguments, **TINY)  # what imports and first models take is not counted
    gc.collect()
    forget_peak()
    send.send(measure_peak(implementation, fused, dtype, arguments))


def measure_peak(implementation: str, fused: bool, dtype: str, arguments: argparse.Namespace) -> float:
    """GiB of two steps, above what there was before the model; on a GPU after timing, which loads the libraries."""
    if on_gpu(arguments.device):
        let_go()
    before = memory_now(arguments.device)
    step = step_of(implementation, fused, dtype, arguments)
    if on_gpu(arguments.device):
        step()  # a compiler tries kernels
    gc.collect()
    forget_peak(arguments.device)  # of the weights that a peer was given
    for _ in range(2):
        step()
    return (memory_peak(arguments.device) - before) / 2**30


if __name__ == "__main__":
    main()
