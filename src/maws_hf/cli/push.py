"""`maws-hf push`."""

import argparse
from pathlib import Path


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds it to the command line."""
    push = commands.add_parser(
        "push",
        help="release a model on the Hub, all of it at once or not at all",
        description="Releases one of our models on the Hub. The branch main gets its in-tree export, which everybody "
        "loads with transformers alone; the branch native the model in our own format. First, without network, the "
        "export is compared with the model in a process that cannot import maws_hf, and every file is checked. Then "
        "one pull request holds the release; its files are read back, merged, read back again and tagged. Afterwards "
        "main holds these files and no others. "
        "Interrupted, the same command goes on; repeated, it changes nothing. The token is that of `hf auth login` or "
        "of HF_TOKEN.",
        epilog="example: maws-hf push runs/mae --repo_id me/my-mae --license mit --tag v1.0 --dry_run",
        allow_abbrev=False,
    )
    push.add_argument("model_dir", type=Path, help="folder of a run, or of a conversion")
    push.add_argument("--repo_id", required=True, metavar="ORG/NAME", help="repository; made if it is not there")
    push.add_argument(
        "--card",
        type=Path,
        metavar="FILE.md",
        help="the model card (default: README.md of the folder, or one that is written)",
    )
    push.add_argument(
        "--license", metavar="ID", help="license in the card's metadata, such as mit; a card that is written needs it"
    )
    push.add_argument("--tag", metavar="vX", help="tag of the release, and with -native after it of the other branch")
    push.add_argument(
        "--architecture",
        choices=("pixio", "vit", "dinov2", "vit_mae", "vision-text-dual-encoder"),
        help="of transformers (default: the one that keeps all of the model)",
    )
    push.add_argument("--no_native", dest="native", action="store_false", help="leave the branch native alone")
    push.add_argument("--private", action="store_true", help="make the repository private, or refuse a public one")
    push.add_argument("--dry_run", action="store_true", help="do all but the network, and print what would be done")
    push.add_argument(
        "--staging_dir",
        type=Path,
        help="where the release is laid out and stays, large files as links (default: a folder that goes away)",
    )
    push.set_defaults(run=_push)


def _push(arguments: argparse.Namespace) -> int:
    from tempfile import TemporaryDirectory

    from ..hub.release import check_repo_id, check_tag, usable_api

    check_repo_id(arguments.repo_id)
    check_tag(arguments.tag)
    api = None if arguments.dry_run else usable_api()
    if arguments.staging_dir:
        return _push_from(arguments, arguments.staging_dir, api)
    # On the model's disk, so that its weights can be linked.
    with TemporaryDirectory(prefix=".maws-hf-push-", dir=arguments.model_dir.resolve().parent) as folder:
        return _push_from(arguments, Path(folder), api)


def _push_from(arguments: argparse.Namespace, staging_dir: Path, api: object) -> int:
    from transformers.utils import logging

    from ..hub.prepare import prepare_release
    from ..hub.release import describe_plan, push_release

    logging.disable_progress_bar()
    prepared = prepare_release(
        arguments.model_dir,
        staging_dir,
        repo_id=arguments.repo_id,
        architecture=arguments.architecture,
        card=arguments.card,
        license=arguments.license,
        native=arguments.native,
    )
    for name, difference in prepared.differences.items():
        print(f"largest difference of {name} in a process without maws_hf: {difference:.2g}")
    if prepared.native and prepared.native.left_out:
        print(f"not part of a release: {', '.join(prepared.native.left_out)}")
    print(describe_plan(prepared.main, prepared.native, arguments.repo_id, tag=arguments.tag))
    if arguments.dry_run:
        print("dry run: nothing was sent")
        return 0
    release = push_release(
        prepared.main.folder,
        arguments.repo_id,
        tag=arguments.tag,
        native=prepared.native.folder if prepared.native else None,
        api=api,
        private=arguments.private,
    )
    print(release)
    return 0
