"""A release becomes visible at once or not at all: one pull request, read back, merged, read back again, tagged.

Every step looks at the repository first, so that the command of an interrupted release, typed again, goes on where it
stopped. `main` holds the in-tree model, the branch `native` the same model in our own format.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .release_checks import check_release
from .staging import StagedFile, Staging, read_staging

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAIN, NATIVE = "main", "native"
_KEPT = ".gitattributes"  # the Hub's own; says what is a large file
_MARK = re.compile(r" \[maws-hf [0-9a-f]{12}\]$")
_SHOWN = 5


class ReleaseError(RuntimeError):
    """A release was refused or interrupted; the message says what `main` is like now and what to type."""


@dataclass(frozen=True)
class Release:
    """What lies on the Hub now.

    Args:
        commit: that holds the release.
        tag: that points there.
        pull_request: number of the one that brought it to `main` just now; None if it was there already.
        native_commit: of the branch `native`, if that was released too.
    """

    repo_id: str
    commit: str
    tag: str | None = None
    pull_request: int | None = None
    native_commit: str | None = None

    def __str__(self) -> str:
        how = f"merged into main by pull request {self.pull_request}" if self.pull_request else "was there already"
        lines = [f"{self.repo_id}: commit {self.commit[:12]} {how}; every file read back and equal"]
        if self.native_commit:
            lines.append(f"  {NATIVE}: {self.native_commit[:12]}")
        if self.tag:
            lines.append(f"  tag {self.tag}: from_pretrained({self.repo_id!r}, revision={self.tag!r})")
        return "\n".join(lines)


def push_release(
    staging: Path,
    repo_id: str,
    *,
    tag: str | None = None,
    native: Path | None = None,
    api: "HfApi | None" = None,
    private: bool = False,
) -> Release:
    """Makes `main` of a model repository exactly what a folder holds; the same call again continues or does nothing.

    Args:
        staging: as `build_staging` makes it; checked again, all of it, before the first request.
        repo_id: `organisation/name`; created if it is not there. Files on `main` that are not in `staging` go away in
            the same commit, `.gitattributes` excepted.
        tag: set last, on the verified commit; one that exists must hold the same files, and then nothing is changed.
        native: the model in our own format, for the branch `native` and the tag `<tag>-native`.
        api: a client; the token is its own or that of the login, and is never written anywhere.
        private: of a repository that is created; one that exists must be private already.

    Raises:
        ReleaseError: no network, no token, a tag that holds something else, a branch that moved meanwhile, files that
            came back different.
        ReleaseCheckError, StagingError: the folder must not be released.
    """
    check_repo_id(repo_id)
    check_tag(tag)
    api = usable_api(api)
    wanted = read_staging(staging)
    check_release(wanted.folder)
    native_wanted = read_staging(native) if native else None
    if native_wanted:
        check_release(native_wanted.folder, native=True)
    title = _title(tag)
    with _hub_errors(repo_id):
        repository = _Repository(api, repo_id)
        repository.create(private)
        tagged = repository.commit_of_tag(tag, wanted)
        native_tag = f"{tag}-{NATIVE}" if tag else None
        native_commit = repository.commit_of_tag(native_tag, native_wanted) if native_wanted else None
        if tagged:  # both branches may be a later release by now, and stay so
            return Release(repo_id, tagged, tag, None, native_commit)
        commit, number = _release_main(repository, wanted, title)
        if native_wanted and native_commit is None:
            native_commit = _release_native(repository, native_wanted, title)
            repository.set_tag(native_tag, native_commit)
        repository.set_tag(tag, commit)
    return Release(repo_id, commit, tag, number, native_commit)


def usable_api(api: "HfApi | None" = None) -> "HfApi":
    """A client that may write, as far as can be known without asking.

    Raises:
        ReleaseError: offline mode is on, or there is no token.
    """
    from huggingface_hub import HfApi, constants, get_token

    if constants.is_offline_mode():
        raise ReleaseError(
            "HF_HUB_OFFLINE is set, so nothing can be pushed: type `unset HF_HUB_OFFLINE` and try again"
        )
    api = HfApi() if api is None else api
    if api.token is False or not (api.token if isinstance(api.token, str) else get_token()):
        raise ReleaseError(
            "There is no token of the Hub: type `hf auth login`, with one that may write, from "
            "https://huggingface.co/settings/tokens"
        )
    return api


def check_repo_id(repo_id: str) -> None:
    """Raises `ReleaseError` for anything but `organisation/name`, as the Hub spells them."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError(f"{repo_id!r} is not organisation/name")
    except HFValidationError as error:
        raise ReleaseError(f"--repo_id {repo_id}: {_first_line(error)}") from error


def check_tag(tag: str | None) -> None:
    """Raises `ReleaseError` for a name that is no tag, or that would be taken for a branch."""
    if tag is None:
        return
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", tag) or ".." in tag or tag in (MAIN, NATIVE):
        raise ReleaseError(f"--tag {tag} is no name for a release; one would be v1.0")


def _release_main(repository: "_Repository", wanted: Staging, message: str) -> tuple[str, int | None]:
    """The commit of `main` once it is this release, and the pull request that made it so, if one had to."""
    head = repository.head(MAIN)
    if not repository.differences(head, wanted):
        return head, None
    number = repository.open_pull_request(wanted, head)
    if number is None:
        print(f"Uploading {len(wanted.everything)} files to a pull request of {repository.repo_id}", flush=True)
        title = f"{message} [maws-hf {wanted.digest}]"
        number = repository.commit(wanted, head, title, create_pr=True)
    if wrong := repository.differences(f"refs/pr/{number}", wanted):
        raise ReleaseError(
            f"{repository.repo_id}: pull request {number} came back different ({_listed(wrong)}); main is unchanged: "
            "run the same command again"
        )
    if repository.head(MAIN) != head:
        raise _moved(repository.repo_id, MAIN)
    repository.api.merge_pull_request(repository.repo_id, number)
    merged = repository.head(MAIN)
    if wrong := repository.differences(merged, wanted):
        raise ReleaseError(
            f"{repository.repo_id}: main moved while pull request {number} was merged and is no longer this release "
            f"({_listed(wrong)}); no tag was set: run the same command again to make it so"
        )
    return merged, number


def _release_native(repository: "_Repository", wanted: Staging, message: str) -> str:
    """The commit of the branch `native` once it holds these files; nobody who loads `main` sees it."""
    head = repository.head(NATIVE)
    if head is None:
        first = repository.api.list_repo_commits(repository.repo_id, revision=MAIN)[-1].commit_id
        repository.api.create_branch(repository.repo_id, branch=NATIVE, revision=first, exist_ok=True)
        head = repository.head(NATIVE)
    if repository.differences(head, wanted):
        print(f"Uploading {len(wanted.everything)} files to the branch {NATIVE} of {repository.repo_id}", flush=True)
        repository.commit(wanted, head, f"{message}, native", branch=NATIVE)
        head = repository.head(NATIVE)
        if wrong := repository.differences(head, wanted):
            raise ReleaseError(
                f"{repository.repo_id}: the branch {NATIVE} came back different ({_listed(wrong)}); main is this "
                "release, without a tag yet: run the same command again"
            )
    return head


class _Repository:
    """The questions and orders of a release, to one model repository."""

    def __init__(self, api: "HfApi", repo_id: str) -> None:
        self.api, self.repo_id = api, repo_id

    def create(self, private: bool) -> None:
        self.api.create_repo(self.repo_id, private=private or None, exist_ok=True)
        if private and not self.api.model_info(self.repo_id).private:
            raise ReleaseError(f"{self.repo_id} is public: make it private in its settings, or leave out --private")

    def head(self, branch: str) -> str | None:
        """The commit that a branch points to; None without the branch."""
        branches = self.api.list_repo_refs(self.repo_id).branches
        return next((found.target_commit for found in branches if found.name == branch), None)

    def commit_of_tag(self, tag: str | None, wanted: Staging) -> str | None:
        """Where the tag points to if it is there; an error if that holds other files."""
        tags = self.api.list_repo_refs(self.repo_id).tags if tag else []
        commit = next((found.target_commit for found in tags if found.name == tag), None)
        if commit and (wrong := self.differences(tag, wanted)):
            raise ReleaseError(
                f"{self.repo_id}: the tag {tag} holds another release ({_listed(wrong)}), and people rely on it: "
                "choose a new --tag"
            )
        return commit

    def set_tag(self, tag: str | None, commit: str) -> None:
        if tag:
            self.api.create_tag(self.repo_id, tag=tag, revision=commit)

    def differences(self, revision: str, wanted: Staging) -> list[str]:
        """Names of files that a revision lacks, has besides, or has with other content."""
        remote = {path: file for path, file in self._files(revision) if path != _KEPT}
        here = wanted.everything
        wrong = {*remote} ^ {*here}
        wrong |= {name for name in {*remote} & {*here} if not _equal(remote[name], here[name], wanted.folder / name)}
        return sorted(wrong)

    def commit(
        self, wanted: Staging, parent: str, title: str, *, branch: str = MAIN, create_pr: bool = False
    ) -> int | None:
        """One commit after which a branch, or a new pull request, whose number is returned, holds just these files."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        names = wanted.everything
        gone = [path for path, _ in self._files(parent) if path != _KEPT and path not in names]
        if gone:
            print(f"Not part of the release, so they go away: {', '.join(gone)}", flush=True)
        done = self.api.create_commit(
            self.repo_id,
            [CommitOperationAdd(name, wanted.folder / name) for name in names]
            + [CommitOperationDelete(path, is_folder=False) for path in gone],
            commit_message=title,
            revision=branch,
            create_pr=create_pr,
            parent_commit=parent,
        )
        return done.pr_num

    def open_pull_request(self, wanted: Staging, base: str) -> int | None:
        """One of ours that holds these files on top of `base`; others of ours, left by interruptions, are closed."""
        author, found = self.api.whoami()["name"], None
        pulls = self.api.get_repo_discussions(
            self.repo_id, author=author, discussion_type="pull_request", discussion_status="open"
        )
        for pull in [pull for pull in pulls if _MARK.search(pull.title)]:
            revision = f"refs/pr/{pull.num}"
            commits = self.api.list_repo_commits(self.repo_id, revision=revision)
            fits = len(commits) > 1 and commits[1].commit_id == base and not self.differences(revision, wanted)
            if found is None and fits:
                found = pull.num
            else:
                self.api.change_discussion_status(
                    self.repo_id, pull.num, "closed", comment="Left by an interrupted release; replaced."
                )
        return found

    def _files(self, revision: str) -> Iterator[tuple[str, object]]:
        from huggingface_hub import RepoFile

        for entry in self.api.list_repo_tree(self.repo_id, revision=revision, recursive=True):
            if isinstance(entry, RepoFile):
                yield entry.path, entry


def _equal(remote: object, here: StagedFile, path: Path) -> bool:
    """By sha256 for large files; of small ones the Hub tells git's own checksum."""
    if remote.size != here.bytes:
        return False
    if remote.lfs is not None:
        return remote.lfs.sha256 == here.sha256
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != here.sha256:  # changed after it was checked
        return False
    return remote.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Whatever goes wrong between here and the Hub becomes one sentence."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx

    again = "Nothing half-made is visible; the same command, typed again, goes on from here"
    try:
        yield
    except ReleaseError:
        raise
    except (httpx.HTTPError, RuntimeError) as error:
        # A large file that does not arrive is a RuntimeError of huggingface_hub, with what happened as its cause.
        wrapped = isinstance(error, RuntimeError) and isinstance(error.__cause__, httpx.HTTPError)
        cause = error.__cause__ if wrapped else error
        if not isinstance(cause, HfHubHTTPError):
            why = _first_line(cause) or type(cause).__name__
            raise ReleaseError(f"{repo_id}: the connection to the Hub broke ({why}). {again}") from error
        status = getattr(cause.response, "status_code", None)
        if status == 412:
            raise _moved(repo_id, NATIVE) from error
        rights = "; does the token have the right to write there (hf auth whoami)?" if status in (401, 403) else "."
        raise ReleaseError(f"{repo_id}: the Hub answered {status}: {_first_line(cause)}{rights} {again}") from error


def _moved(repo_id: str, branch: str) -> ReleaseError:
    return ReleaseError(
        f"{repo_id}: somebody else changed the branch {branch} meanwhile, so this release was not put there and main "
        "is as they left it: look at their commit, then run the same command again to replace it"
    )


def _title(tag: str | None) -> str:
    return f"Release {tag or ''}".strip()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def describe_plan(wanted: Staging, native: Staging | None, repo_id: str, *, tag: str | None) -> str:
    """What `push_release` would do, as a table; asks nobody."""
    rows = [(name, file, MAIN) for name, file in wanted.everything.items()]
    if native:
        rows += [(name, file, NATIVE) for name, file in native.everything.items()]
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{'file':<{width}}  {'bytes':>13}  {'sha256':<12}  revision"]
    lines += [f"{name:<{width}}  {file.bytes:>13,}  {file.sha256[:12]}  {revision}" for name, file, revision in rows]
    title = _title(tag)
    if native:
        lines.append(f"branch {NATIVE}: commit {f'{title}, native'!r}" + (f", tag {tag}-{NATIVE}" if tag else ""))
    lines.append(f"branch {MAIN}: pull request {f'{title} [maws-hf {wanted.digest}]'!r}, read back, merged, read back")
    lines.append(f"tag {tag} on the merged commit of {repo_id}" if tag else "no tag: --tag v1.0 would set one")
    return "\n".join(lines)


__all__ = ["Release", "ReleaseError", "check_repo_id", "check_tag", "describe_plan", "push_release", "usable_api"]
