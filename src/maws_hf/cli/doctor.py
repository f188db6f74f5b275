"""`maws-hf doctor`."""

import argparse
import json
from pathlib import Path


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds it to the command line."""
    doctor = commands.add_parser(
        "doctor",
        help="look at this machine, and say what would fail before a long run does",
        description="Looks at versions, devices, speed, attention backends, disks, the login of the Hub and, if it is "
        "named, the data set. Takes a few seconds and no network (but for the login, and a data set on the Hub). The "
        "exit status is 1 if something would fail.",
        epilog="example: maws-hf doctor --output_dir runs/mae --dataset_name data/emoji",
        allow_abbrev=False,
    )
    doctor.add_argument("--output_dir", type=Path, help="folder of the run that is to start, for room on its disk")
    doctor.add_argument("--dataset_name", metavar="NAME", help="data set of the run: a few images of it are decoded")
    doctor.add_argument("--dataset_split", default="train", help="split of it (default: train)")
    doctor.add_argument("--image_column_name", metavar="NAME", help="column of its images, if there are several")
    doctor.add_argument("--size", default="vit_b16", help="of the model to train, vit_b16 (default) to vit_6.5b14")
    doctor.add_argument("--save_total_limit", type=int, default=2, help="checkpoints that are kept (default: 2)")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from ..models.configuration_maws_vit import SIZES
    from ..training.health import Plan, as_json, examine

    if arguments.size not in SIZES:
        raise ValueError(f"--size {arguments.size} is unknown; there are {', '.join(SIZES)}")
    if arguments.save_total_limit < 2:
        raise ValueError(f"--save_total_limit {arguments.save_total_limit} must be at least 2, as in a run")
    names = ("output_dir", "dataset_name", "dataset_split", "image_column_name", "size", "save_total_limit")
    findings = []
    for finding in examine(Plan(**{name: getattr(arguments, name) for name in names})):
        findings.append(finding)
        if not arguments.json:
            advice = f" -> {finding.advice}" if finding.advice else ""
            print(f"{finding.status:8} {finding.what:27} {finding.found}{advice}", flush=True)
    counts = {status: sum(each.status == status for each in findings) for status in ("warning", "fails")}
    if arguments.json:
        print(json.dumps(as_json(findings), indent=1))
    else:
        print(f"{counts['fails']} would fail, {counts['warning']} may")
    return int(counts["fails"] > 0)
