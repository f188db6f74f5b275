"""`maws-hf`: what is not training. Each subcommand calls one function of the package."""

import argparse
from collections.abc import Sequence

from ..training.entry_point import run_script
from . import convert, demo, doctor, export, plan, push, text_tower, verify


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    arguments = _parser().parse_args(argv)
    run_script(lambda: arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="maws-hf",
        description="Data sets, text towers and reports for the example scripts (examples/run_*.py); models from and "
        "to other formats and the Hub.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo.add_commands(commands)
    text_tower.add_command(commands)
    convert.add_command(commands)
    export.add_command(commands)
    push.add_command(commands)
    plan.add_command(commands)
    doctor.add_command(commands)
    verify.add_command(commands)
    return parser


__all__ = ["main"]
