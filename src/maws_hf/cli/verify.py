"""`maws-hf verify`."""

import argparse
from pathlib import Path


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds it to the command line."""
    verify = commands.add_parser(
        "verify",
        help="read a run, checkpoint, model, release or data set through, and say whether all of it is whole",
        description="Reads all that lies in a folder and compares it with what is known of it: the checkpoints of a "
        "run with their manifests, a model's weights with its config and, at the end of a run, their checksums, a "
        "release with what may be released, the shards of a corpus that was built with its manifest, shards of labels "
        "or features with their records. Nothing is changed and nothing is held in memory but one tensor. The exit "
        "status is 1 if something is not whole.",
        epilog="example: maws-hf verify runs/mae",
        allow_abbrev=False,
    )
    verify.add_argument("folder", type=Path, metavar="DIR", help="what to verify")
    verify.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from ..training.verification import newest_usable, verify_folder

    verdicts, looked_for = [], False
    for verdict in verify_folder(arguments.folder):
        verdicts.append(verdict)
        looked_for |= verdict.path.name.startswith("step-")
        print(f"{'FAULT' if verdict.faults else 'ok   '} {verdict.path}: {verdict.checked}", flush=True)
        for fault in verdict.faults:
            print(f"      {fault}", flush=True)
    if looked_for:
        newest = newest_usable(verdicts)
        print(f"the newest whole checkpoint is {newest}" if newest else "no checkpoint is whole")
    faults = sum(len(verdict.faults) for verdict in verdicts)
    print(f"{faults} fault{'s' if faults != 1 else ''}")
    return int(faults > 0)
