"""`maws-hf export`."""

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds it to the command line."""
    about = "write a model as an in-tree architecture that plain transformers loads"
    export = commands.add_parser(
        "export",
        help=about,
        description="Writes one of our models as an architecture of transformers itself, which everybody loads "
        "without this package and without remote code: encoders become Pixio (or ViT, DINOv2), classifiers ViT, "
        "autoencoders ViTMAE, LiT models VisionTextDualEncoder. Afterwards a fresh process that cannot import maws_hf "
        "loads it and its outputs are compared with ours. MawsViTModel.from_pretrained and its likes read the folder "
        "back, bit for bit. A checkpoint, sharded or not, or the newest one of a run that has not ended, is exported "
        "with the average of its weights if it has one.",
        epilog="example: maws-hf export runs/mae --output_dir exports/mae-encoder --architecture pixio",
        allow_abbrev=False,
    )
    export.add_argument(
        "model_name_or_path", help="folder of a run, a checkpoint or a conversion, or a Hub id in our format"
    )
    export.add_argument("--output_dir", type=Path, required=True, help="a new folder")
    export.add_argument(
        "--architecture",
        choices=("pixio", "vit", "dinov2", "vit_mae", "vision-text-dual-encoder"),
        help="of transformers; default: the one that keeps all of the model. An encoder's leaves head or decoder out",
    )
    export.add_argument(
        "--no_verify", dest="verify", action="store_false", help="do not load and compare it in a fresh process"
    )
    export.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    from ..training.sharded_export import assemble_model, checkpoint_in

    checkpoint = checkpoint_in(arguments.model_name_or_path)
    if checkpoint is None:
        return _export_model(arguments.model_name_or_path, arguments)
    print(f"the model of {checkpoint}")
    arguments.output_dir.absolute().parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".assembled-", dir=arguments.output_dir.absolute().parent) as assembled:
        assemble_model(checkpoint, Path(assembled))
        return _export_model(assembled, arguments)


def _export_model(model_name_or_path: str, arguments: argparse.Namespace) -> int:
    from transformers.utils import logging

    from ..hub.export import export_model

    logging.disable_progress_bar()
    export = export_model(model_name_or_path, arguments.output_dir, arguments.architecture)
    print(f"{export.folder}: {export.model_class} ({export.architecture})")
    if arguments.verify:
        from ..hub.proof import ProofError, prove_export

        try:
            differences = prove_export(model_name_or_path, export.folder)
        except ProofError:
            shutil.rmtree(export.folder)
            raise
        for name, difference in differences.items():
            print(f"largest difference of {name} in a process without maws_hf: {difference:.2g}")
    print(f'load it with transformers.{export.model_class}.from_pretrained("{export.folder}")')
    if export.model_class in ("ViTForImageClassification", "ViTMAEForPreTraining"):
        print(
            "(AutoModel would give it a new pooler or mask its patches; for features export with --architecture pixio)"
        )
    return 0
