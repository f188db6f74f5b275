"""What a Hub remembers of one repository: commits, branches, tags, pull requests and large files, all in memory."""

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

MAIN = "main"
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.parquet filter=lfs diff=lfs merge=lfs -text\n"
LARGE_SUFFIXES = (".safetensors", ".parquet", ".bin", ".png", ".model", ".arrow")
_SERIAL = itertools.count(1)


class Refused(Exception):
    """What the Hub answers instead: a status, a code for the header `X-Error-Code`, a message."""

    def __init__(self, status: int, code: str | None, message: str):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class Blob:
    content: bytes
    large: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """The name that git gives it; of a large file, to the pointer that stands for it."""
        content = f"sha256:{self.sha256} {len(self.content)}".encode() if self.large else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid

    def info(self, path: str) -> dict:
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.oid}
        if self.large:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}
        return entry


@dataclass(frozen=True)
class Commit:
    parent: str | None
    title: str
    files: Mapping[str, Blob]
    # Two commits with equal files are still two commits.
    oid: str = field(default_factory=lambda: hashlib.sha1(b"commit %d" % next(_SERIAL)).hexdigest())


@dataclass
class PullRequest:
    number: int
    title: str
    author: str
    base: str
    head: str
    status: str = "open"
    merged_as: str | None = None


class Repository:
    """Named `org/name`; born with one commit that holds `.gitattributes`, as on the Hub."""

    def __init__(self, name: str, kind: str, private: bool = False):
        self.name, self.kind, self.private = name, kind, private
        first = Commit(None, "initial commit", {".gitattributes": Blob(ATTRIBUTES)})
        self.commits = {first.oid: first}
        self.branches = {MAIN: first.oid}
        self.tags: dict[str, str] = {}
        self.pulls: dict[int, PullRequest] = {}
        self.large_files: dict[str, bytes] = {}

    def commit_at(self, revision: str) -> Commit:
        name = revision.removeprefix("refs/heads/")
        oid = self.branches.get(name) or self.tags.get(revision.removeprefix("refs/tags/"))
        if revision.startswith("refs/pr/") and int(revision.split("/")[2]) in self.pulls:
            oid = self.pulls[int(revision.split("/")[2])].head
        if oid is None and len(revision) >= 7:
            oid = next((known for known in self.commits if known.startswith(revision)), None)
        if oid is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[oid]

    def history(self, revision: str) -> list[Commit]:
        found: Commit | None = self.commit_at(revision)
        commits = []
        while found:
            commits.append(found)
            found = self.commits.get(found.parent) if found.parent else None
        return commits

    def contents(self, revision: str = MAIN) -> dict[str, bytes]:
        """All files of a revision."""
        return {path: blob.content for path, blob in self.commit_at(revision).files.items()}

    def add_commit(self, parent: Commit, title: str, files: Mapping[str, Blob]) -> Commit:
        made = Commit(parent.oid, title, dict(sorted(files.items())))
        self.commits[made.oid] = made
        return made

    def write(self, files: Mapping[str, bytes], revision: str = MAIN, title: str = "somebody else's commit") -> str:
        """A commit by somebody else."""
        parent = self.commit_at(revision)
        new = {path: Blob(content, path.endswith(LARGE_SUFFIXES)) for path, content in files.items()}
        made = self.add_commit(parent, title, {**parent.files, **new})
        self._move(revision, made)
        return made.oid

    def commit(
        self,
        revision: str,
        title: str,
        files: Mapping[str, Blob | None],
        *,
        parent: str | None,
        create_pr: bool,
        author: str,
    ) -> tuple[Commit, PullRequest | None]:
        """Files that are None are deleted. A pull request starts at `parent`; a branch must still be there."""
        tip = self.commit_at(revision)
        base = self.commit_at(parent) if parent and create_pr else tip
        if parent and not create_pr and not tip.oid.startswith(parent):
            raise Refused(412, None, "A commit has happened since. Please refresh and try again.")
        for path, blob in files.items():
            if blob is None and path not in base.files:
                raise Refused(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
        kept = {path: blob for path, blob in {**base.files, **files}.items() if blob is not None}
        made = self.add_commit(base, title, kept)
        if not create_pr:
            self._move(revision, made)
            return made, None
        pull = PullRequest(len(self.pulls) + 1, title, author, base.oid, made.oid)
        self.pulls[pull.number] = pull
        return made, pull

    def merge(self, number: int) -> None:
        """What the pull request changes, on top of whatever `main` has become, as one new commit."""
        pull = self.pulls[number]
        if pull.status != "open":
            raise Refused(400, None, f"Pull request {number} is {pull.status}")
        base, head, tip = (self.commits[oid].files for oid in (pull.base, pull.head, self.branches[MAIN]))
        changed = [path for path in {*base, *head} if base.get(path) != head.get(path)]
        if any(tip.get(path) != base.get(path) for path in changed):
            raise Refused(409, None, "Pull request has conflicts")
        merged = {path: blob for path, blob in tip.items() if path not in changed}
        merged |= {path: head[path] for path in changed if path in head}
        made = self.add_commit(self.commits[self.branches[MAIN]], f"{pull.title} (#{number})", merged)
        self.branches[MAIN] = pull.merged_as = made.oid
        pull.status = "merged"

    def _move(self, revision: str, made: Commit) -> None:
        if revision.startswith("refs/pr/"):
            self.pulls[int(revision.split("/")[2])].head = made.oid
        elif revision in self.branches:
            self.branches[revision] = made.oid
        else:
            raise Refused(404, "RevisionNotFound", f"{revision} is not a branch")
