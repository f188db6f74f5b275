"""`maws-hf convert`."""

import argparse
from pathlib import Path


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds it to the command line."""
    convert = commands.add_parser(
        "convert",
        help="convert an original PyTorch checkpoint (MAWS or MAE) to a folder that from_pretrained reads",
        description="Converts the .pt files released with the MAWS paper, the .pth files of the original MAE "
        "repository and training checkpoints of the same code, or .safetensors files with their tensor names, to a "
        "folder with config, weights and image processor. The file is not trusted: it cannot run code, is checked "
        "before it is read, and is read in a process with limited memory; tensors that are missing, left over, of "
        "another shape or not finite are an error, and no folder is left behind.",
        epilog="example: maws-hf convert vit_b16.pt --model maws-vit-b --output_dir models/maws-vit-b --sha256 HEX",
        allow_abbrev=False,
    )
    convert.add_argument("file", type=Path, help="the checkpoint")
    convert.add_argument("--output_dir", type=Path, required=True, help="folder of the model; must not exist")
    convert.add_argument(
        "--model",
        metavar="NAME",
        help="which released file it is, such as maws-vit-b or maws-vit-b-mae, both of which are called vit_b16.pt "
        "(default: by the file's name; an unknown NAME lists them all)",
    )
    checksum = convert.add_argument_group("checksum; one is needed where no table knows the file's")
    checksum.add_argument("--sha256", metavar="HEX", help="the digest that the file must have")
    checksum.add_argument(
        "--accept_unknown_sha256", action="store_true", help="go on although no digest of this file is known"
    )
    _add_sizes(convert)
    extras = convert.add_argument_group("beside the weights")
    extras.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="names of a classifier's classes: .txt, one a line, or .json (default: LABEL_0, LABEL_1, ...)",
    )
    extras.add_argument(
        "--tokenizer_name_or_path",
        metavar="NAME",
        help="for image and text towers: folder or Hub id of XLM-R's tokenizer, or its sentencepiece.bpe.model",
    )
    verify = extras.add_mutually_exclusive_group()
    verify.add_argument(
        "--verify",
        action="store_true",
        default=None,
        help="run the converted model and the original's arithmetic on the same random input and compare; takes about "
        "twice the file's size in memory (default: for files up to 3 GB)",
    )
    verify.add_argument("--no_verify", dest="verify", action="store_false", help="do not compare")
    convert.set_defaults(run=_convert)


def _add_sizes(convert: argparse.ArgumentParser) -> None:
    sizes = convert.add_argument_group(
        "sizes of a file in no table", "What the shapes of its tensors tell is read from them."
    )
    for name, what in (("patch_size", "a patch"), ("image_size", "the image")):
        sizes.add_argument(
            f"--{name}", type=int, nargs="+", metavar="PIXELS", help=f"side of {what}, or its height and width"
        )
    for name, what in (
        ("num_attention_heads", "the image encoder; always needed"),
        ("decoder_num_attention_heads", "the decoder (default: 16, as in the original)"),
        ("text_num_attention_heads", "the text tower; needed if there is one"),
    ):
        sizes.add_argument(f"--{name}", type=int, metavar="N", help=f"attention heads of {what}")
    sizes.add_argument(
        "--layer_norm_eps", type=float, metavar="EPS", help="of image encoder and decoder (default: 1e-6)"
    )
    sizes.add_argument(
        "--norm_pix_loss",
        choices=("true", "false"),
        help="whether the decoder was trained on normalised patches; needed with a decoder, unless the file tells",
    )


def _convert(arguments: argparse.Namespace) -> int:
    from ..hub.original import Sizes, convert_checkpoint

    sizes = Sizes(
        patch_size=_pixels(arguments.patch_size, "--patch_size"),
        image_size=_pixels(arguments.image_size, "--image_size"),
        num_attention_heads=arguments.num_attention_heads,
        decoder_num_attention_heads=arguments.decoder_num_attention_heads,
        text_num_attention_heads=arguments.text_num_attention_heads,
        layer_norm_eps=arguments.layer_norm_eps,
        norm_pix_loss=None if arguments.norm_pix_loss is None else arguments.norm_pix_loss == "true",
    )
    print(
        convert_checkpoint(
            arguments.file,
            arguments.output_dir,
            model=arguments.model,
            sizes=sizes,
            sha256=arguments.sha256,
            accept_unknown_sha256=arguments.accept_unknown_sha256,
            labels=arguments.labels,
            tokenizer_name_or_path=arguments.tokenizer_name_or_path,
            verify=arguments.verify,
        )
    )
    return 0


def _pixels(values: list[int] | None, option: str) -> int | tuple[int, int] | None:
    if values is None or len(values) == 1:
        return values and values[0]
    if len(values) > 2:
        raise ValueError(f"{option} takes one number of pixels, or height and width, not {len(values)}")
    return values[0], values[1]
