"""`maws-hf demo-data` and `maws-hf demo-report`."""

import argparse
from pathlib import Path


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Adds both to the command line."""
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
    _add_report(commands)


def _add_report(commands: argparse._SubParsersAction) -> None:
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
    from ..data.demo_emoji import build_emoji_corpus

    print(build_emoji_corpus(arguments.output_dir, image_size=arguments.image_size, sources_dir=arguments.sources_dir))
    return 0


def _build_fashion_mnist(arguments: argparse.Namespace) -> int:
    from ..data.demo_fashion_mnist import DEBIAN_DIR, build_fashion_mnist_corpus

    print(build_fashion_mnist_corpus(arguments.output_dir, source_dir=arguments.source_dir or DEBIAN_DIR))
    return 0


def _build_report(arguments: argparse.Namespace) -> int:
    from ..reporting.demo_report import build_report

    page = build_report(arguments.runs_dir, arguments.data_dir, arguments.labels_dir, arguments.output)
    print(f"What the demo has done: open {page.resolve().as_uri()}")
    return 0
