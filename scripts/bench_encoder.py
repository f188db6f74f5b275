r"""How fast does an encoder answer, features or class scores, beside timm's and transformers' form of the same model?

    pip install -c constraints.txt timm
    OMP_NUM_THREADS=1 python scripts/bench_encoder.py
    OMP_NUM_THREADS=1 python scripts/bench_encoder.py --size vit_l16 --image_size 224 512
    python scripts/bench_encoder.py --size vit_h14 --image_size 224 518 --device cuda --dtype bfloat16 --batch 256

Same weights, same normalised images, weights in the dtype named, no gradients, attention by PyTorch's
`scaled_dot_product_attention`, but for ours in bfloat16 on some CPUs (`kernels/attention.py`). `ours` computes the
class token alone in the last block; `ours, prepared` has gone through `prepare_for_inference` besides, which concerns
CPUs only. Printed are medians, and the relative distance of the outputs from those of the first peer in float32.
Memory is that of the weights and one pass: the peak of a process of its own above what it held before it built the
model; on a GPU, of this process's tensors, one model at a time.
"""

import argparse
import copy
import gc
import multiprocessing
import statistics
from collections.abc import Callable

import peers  # before maws_hf, which imports transformers
import torch
from side_by_side import (
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
)
from torch import Tensor, nn

from maws_hf import MawsViTConfig, MawsViTForImageClassification, prepare_for_inference
from maws_hf.hub.export import in_tree_model
from maws_hf.models.configuration_maws_vit import SIZES, as_pair
from maws_hf.models.foreign import translate_timm

PEERS = ("timm", "transformers")
TASKS = ("features", "classification")
CLASSES = 1000

Form = Callable[[Tensor], Tensor]


def main() -> None:
    arguments = parse_arguments()
    use_device(arguments.device, arguments.tf32)
    print(describe_machine(arguments.device))
    for image_size in arguments.image_size:
        for dtype in arguments.dtype:
            for task in arguments.task:
                heading = f"{task}, {arguments.size}, {image_size} pixels, batch {arguments.batch}, {dtype}"
                print(f"\n{heading}{', compiled' if arguments.compile else ''}, {arguments.rounds} rounds\n")
                print(compare(arguments, image_size, getattr(torch, dtype), task), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--task", nargs="+", default=["features"], choices=TASKS, help="default: features")
    parser.add_argument("--no_memory", action="store_true", help="leave out the peaks, which take a process each")
    return parse_with_models(parser)


def parse_with_models(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """With the options that say which models are compared, and where."""
    parser.add_argument("--size", default="vit_b16", choices=[*SIZES], help="default: vit_b16")
    parser.add_argument("--layers", type=positive, help="fewer blocks than the size has, for a quick look")
    parser.add_argument(
        "--image_size", type=positive, nargs="+", default=[224], help="multiples of the patch (default: 224)"
    )
    parser.add_argument(
        "--batch", type=positive, help="images (default: 8; 128 on a GPU, which would wait for the host)"
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        default=["float32", "bfloat16"],
        choices=["float32", "bfloat16"],
        help="default: both",
    )
    parser.add_argument("--rounds", type=positive, default=5, help="each form once a round (default: 5)")
    add_device_options(parser)
    parser.add_argument("--compile", action="store_true", help="torch.compile them, but for a prepared one")
    parser.add_argument("--peers", nargs="+", default=PEERS, choices=PEERS, help="default: timm transformers")
    arguments = parser.parse_args()
    if arguments.batch is None:
        arguments.batch = usual_batch(arguments.device)
    patch = SIZES[arguments.size]["patch_size"]
    if wrong := [size for size in arguments.image_size if size % patch]:
        parser.error(f"--image_size {wrong[0]} is no multiple of the patch of {patch}")
    return arguments


@torch.inference_mode()
def compare(arguments: argparse.Namespace, image_size: int, dtype: torch.dtype, task: str) -> str:
    let_go()
    torch.manual_seed(0)
    images = torch.randn(arguments.batch, 3, image_size, image_size, device=arguments.device)
    config = config_of(arguments, image_size)
    with images.device:
        ours = MawsViTForImageClassification(config).eval()
    first = peer_of(arguments.peers[0], ours)
    truth = form_of(arguments.peers[0], first, task)(images)
    del first
    ours, images = ours.to(dtype), images.to(dtype)
    models: dict[str, nn.Module] = {name: peer_of(name, ours) for name in arguments.peers}
    models["ours"] = ours
    if images.device.type == "cpu":
        models["ours, prepared"] = prepare_for_inference(copy.deepcopy(ours))
    forms = {name: form_of(name, model, task, arguments.compile) for name, model in models.items()}
    seconds, outputs = take_turns(
        {name: lambda form=form: form(images) for name, form in forms.items()}, arguments.rounds, arguments.device
    )
    unit, of_a_second = unit_of_time(arguments.device)
    rows = []
    for name in forms:
        median = statistics.median(seconds[name])
        rows.append(
            [
                name,
                f"{median * of_a_second:.3f}",
                f"{arguments.batch / median:.2f}",
                *(f"{ratio(seconds, name, peer):.2f}" for peer in arguments.peers),
                f"{relative_distance(outputs[name], truth):.1e}",
            ]
        )
    header = ["", unit, "images/s", *(f"x {peer}" for peer in arguments.peers)]
    header.append(f"from {arguments.peers[0]} in float32")
    if not arguments.no_memory:
        del models, forms, ours
        header.append("peak MB")
        for row in rows:
            row.append(f"{peak_memory(row[0], arguments, image_size, dtype, task) / 1e6:.0f}")
    return markdown_table(header, rows)


def config_of(arguments: argparse.Namespace, image_size: int) -> MawsViTConfig:
    overrides = {} if arguments.layers is None else {"num_hidden_layers": arguments.layers}
    return MawsViTConfig.from_size(
        arguments.size, image_size=image_size, num_labels=CLASSES, attn_implementation="sdpa", **overrides
    )


def peer_of(name: str, ours: MawsViTForImageClassification) -> nn.Module:
    """The same model in another library, on the device and in the dtype of ours."""
    if name == "transformers":
        theirs = in_tree_model(ours, "vit")
        theirs.set_attn_implementation("sdpa")
        return theirs
    config, weights = ours.config, ours.state_dict()
    with ours.device:
        theirs = (
            peers.import_timm()
            .models.VisionTransformer(
                img_size=config.image_size,
                patch_size=as_pair(config.patch_size)[0],
                num_classes=config.num_labels,
                embed_dim=config.hidden_size,
                depth=config.num_hidden_layers,
                num_heads=config.num_attention_heads,
                mlp_ratio=config.intermediate_size / config.hidden_size,
            )
            .to(ours.dtype)
        )
    for name, view in translate_timm(theirs.state_dict()).items():
        view.copy_(weights[name])
    return theirs.eval()


def form_of(name: str, model: nn.Module, task: str, compiled: bool = False) -> Form:
    def features_of_timm(images: Tensor) -> Tensor:
        return model.forward_features(images)[:, 0]

    def features_of_transformers(images: Tensor) -> Tensor:
        return model.vit(images).last_hidden_state[:, 0]

    def features_of_ours(images: Tensor) -> Tensor:
        return model.vit(images, class_token_only=True).pooler_output

    def scores(images: Tensor) -> Tensor:
        output = model(images)
        return output if isinstance(output, Tensor) else output.logits

    form = {"timm": features_of_timm, "transformers": features_of_transformers}.get(name, features_of_ours)
    form = form if task == "features" else scores
    return torch.compile(form, dynamic=False) if compiled and name != "ours, prepared" else form


def relative_distance(output: Tensor, truth: Tensor) -> float:
    return ((output.double() - truth.double()).norm() / truth.double().norm()).item()


def peak_memory(name: str, arguments: argparse.Namespace, image_size: int, dtype: torch.dtype, task: str) -> float:
    """Bytes, measured in a new process, which holds this form alone; on a GPU in this one, which has let others go."""
    if on_gpu(arguments.device):
        let_go()
        return _peak_memory(name, arguments, image_size, dtype, task)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_memory, (name, arguments, image_size, dtype, task))


@torch.inference_mode()
def _peak_memory(name: str, arguments: argparse.Namespace, image_size: int, dtype: torch.dtype, task: str) -> float:
    if name == "timm":
        peers.import_timm()
    images = torch.randn(arguments.batch, 3, image_size, image_size, device=arguments.device, dtype=dtype)
    before = memory_now(arguments.device)
    with images.device:
        model: nn.Module = MawsViTForImageClassification(config_of(arguments, image_size)).eval().to(dtype)
    if name == "ours, prepared":
        prepare_for_inference(model)
    elif name != "ours":
        model = peer_of(name, model)
    form = form_of(name, model, task, arguments.compile)
    if on_gpu(arguments.device):
        form(images)  # a compiler tries kernels
    gc.collect()
    forget_peak(arguments.device)
    form(images)
    return memory_peak(arguments.device) - before


if __name__ == "__main__":
    main()
