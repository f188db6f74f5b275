"""`maws-hf plan`."""

import argparse
import json
import math


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds it to the command line."""
    plan = commands.add_parser(
        "plan",
        help="say what a training step needs of a device's memory, and which batch fits",
        description="Computes, without building anything, what one training step with AdamW keeps in the memory of "
        "each device: weights, gradients, moments, activations, logits. Tensors only: 8 % of the memory is left for "
        "the CUDA context, workspaces and fragmentation, which is an assumption. Exits with 1 if it does not fit.",
        epilog="example: maws-hf plan --size vit_6.5b14 --task mae --gpus 8 --fsdp --batch 64 --memory 80",
        allow_abbrev=False,
    )
    plan.add_argument("--size", required=True, help="vit_b16, vit_l16, vit_h14, vit_2b14 or vit_6.5b14")
    plan.add_argument("--task", default="mae", help="mae (default), wsp, finetune or lit")
    plan.add_argument("--image_size", type=_count, default=224, metavar="PIXELS", help="side of the image (224)")
    plan.add_argument(
        "--config_overrides", default="", metavar="FIELDS", help="config fields, as the scripts take them"
    )
    plan.add_argument("--batch", type=_count, default=64, metavar="N", help="images a device and forward pass (64)")
    plan.add_argument(
        "--gradient_accumulation_steps",
        type=_count,
        default=1,
        metavar="N",
        help="batches an update (1)",
    )
    plan.add_argument("--labels", type=_count, metavar="N", help="classes (wsp: 28000, finetune: 1000)")
    plan.add_argument(
        "--gpus",
        type=_count,
        default=1,
        metavar="N",
        help="processes, one a device (1); of several sharded copies of the model (examples/accelerate/hsdp.yaml), "
        "those of one",
    )
    plan.add_argument("--memory", type=_gib, default=80.0, metavar="GIB", help="of a device (80)")
    plan.add_argument("--bf16", action="store_true", help="autocast, as the scripts' --bf16")
    plan.add_argument("--checkpointing", action="store_true", help="as the scripts' --gradient_checkpointing")
    plan.add_argument(
        "--fsdp", action="store_true", help="shard over all devices, mae and wsp (examples/accelerate/fsdp2.yaml)"
    )
    plan.add_argument("--ema", action="store_true", help="keep an average of the weights, as the scripts' --ema_decay")
    text = plan.add_argument_group("the text tower, for lit")
    text.add_argument("--text_size", choices=("base", "large"), default="base", help="of XLM-RoBERTa (base)")
    text.add_argument("--text_tokens", type=_count, default=64, metavar="N", help="of a caption (64)")
    plan.add_argument("--json", action="store_true", help="one line of JSON, in bytes")
    plan.set_defaults(run=_plan)


def _count(text: str) -> int:
    number = int(text) if text.strip().isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 1")
    return number


def _gib(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be a number above 0")
    return number


def _plan(arguments: argparse.Namespace) -> int:
    from ..evaluation.memory_plan import GIB, RESERVED, largest_batch, plan_memory
    from ..evaluation.memory_stages import Setting
    from ..models.configuration_maws_vit import SIZES
    from ..training.model import ModelOptions, build_config

    if arguments.size not in SIZES:
        raise ValueError(f"--size {arguments.size} is not possible: it must be one of {', '.join(SIZES)}")
    options = ModelOptions(model_size=arguments.size, config_overrides=arguments.config_overrides)
    config = build_config(options, image_size=arguments.image_size)
    setting = Setting(
        task=arguments.task,
        batch=arguments.batch,
        labels=arguments.labels or (28_000 if arguments.task == "wsp" else 1000),
        gpus=arguments.gpus,
        bf16=arguments.bf16,
        checkpointing=arguments.checkpointing,
        fsdp=arguments.fsdp and arguments.gpus > 1,
        average=arguments.ema,
        accumulation=arguments.gradient_accumulation_steps,
        reads_ahead=True,
        text_size=arguments.text_size,
        text_tokens=arguments.text_tokens,
    )
    plan = plan_memory(config, setting)
    usable = arguments.memory * GIB * (1 - RESERVED)
    largest = largest_batch(config, setting, arguments.memory * GIB)
    if arguments.json:
        print(json.dumps({**plan.as_json(), "usable": usable, "fits": plan.peak <= usable, "largest_batch": largest}))
        return 0 if plan.peak <= usable else 1
    rows = {
        "weights, float32": plan.weights,
        "AdamW moments": plan.moments,
        "average of the weights": plan.average,
        "gradients": plan.gradients,
        "weights gathered or rounded": plan.copies,
        "activations": plan.activations,
        "logits": plan.logits,
        "images and labels": plan.inputs,
        "peak (not all of it is there at once)": plan.peak,
        f"usable of {arguments.memory:g} GiB": usable,
    }
    print(f"{arguments.size}, {arguments.task}: {plan.parameters / 1e6:,.1f} M parameters; GiB on each device\n")
    for name, size in rows.items():
        if size:
            print(f"  {name:<56}{size / GIB:>9.2f}")
    print(f"\n{arguments.batch} images a device {'fit' if plan.peak <= usable else 'do NOT fit'}; ", end="")
    print(f"the most that fit: {largest}" if largest else "not even one fits")
    return 0 if plan.peak <= usable else 1
