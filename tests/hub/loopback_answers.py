"""What a Hub says about a repository, in the words of its protocol."""

import re
from collections.abc import Mapping

import yaml
from loopback_repository import LARGE_SUFFIXES, Blob, PullRequest, Refused, Repository

USER = "tester"
WHEN = "2026-01-01T00:00:00.000Z"


def card_data(text: str) -> dict:
    found = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    return (yaml.safe_load(found[1]) if found else None) or {}


def information(repository: Repository, revision: str) -> dict:
    commit = repository.commit_at(revision)
    card = card_data(commit.files["README.md"].content.decode()) if "README.md" in commit.files else {}
    return {
        "id": repository.name,
        "modelId": repository.name,
        "sha": commit.oid,
        "private": repository.private,
        "disabled": False,
        "gated": False,
        "tags": card.get("tags", []),
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": card.get("library_name"),
        "cardData": card,
        "siblings": [{"rfilename": path} for path in commit.files],
        "createdAt": WHEN,
        "lastModified": WHEN,
        "downloads": 0,
        "likes": 0,
    }


def references(repository: Repository) -> dict:
    def entries(prefix: str, pointers: dict[str, str]) -> list[dict]:
        return [{"name": name, "ref": f"{prefix}{name}", "targetCommit": oid} for name, oid in pointers.items()]

    pulls = {str(number): pull.head for number, pull in repository.pulls.items()}
    return {
        "branches": entries("refs/heads/", repository.branches),
        "tags": entries("refs/tags/", repository.tags),
        "converts": [],
        "pullRequests": entries("refs/pr/", pulls),
    }


def tree(files: Mapping[str, Blob], folder: str, recursive: bool) -> list[dict]:
    prefix = f"{folder}/" if folder else ""
    found: dict[str, dict] = {}
    for path, blob in files.items():
        if not path.startswith(prefix):
            continue
        names = path.removeprefix(prefix).split("/")
        for depth in range(1, len(names) if recursive else min(len(names), 2)):
            parent = prefix + "/".join(names[:depth])
            found[parent] = {"type": "directory", "path": parent, "oid": "0" * 40, "size": 0}
        if recursive or len(names) == 1:
            found[path] = blob.info(path)
    if folder and not found:
        raise Refused(404, "EntryNotFound", f"{folder} does not exist")
    return list(found.values())


def path_info(files: Mapping[str, Blob], path: str) -> list[dict]:
    if path in files:
        return [files[path].info(path)]
    if any(name.startswith(f"{path}/") for name in files):
        return [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0}]
    return []


def upload_mode(entry: dict, files: Mapping[str, Blob]) -> dict:
    path = entry["path"]
    mode = "lfs" if path.endswith(LARGE_SUFFIXES) or entry["size"] > 10_000_000 else "regular"
    answer = {"path": path, "uploadMode": mode, "shouldIgnore": False}
    return answer | ({"oid": files[path].etag} if path in files else {})


def discussion(repository: Repository, pull: PullRequest) -> dict:
    return {
        "title": pull.title,
        "num": pull.number,
        "author": {"name": pull.author},
        "createdAt": WHEN,
        "status": pull.status,
        "repo": {"name": repository.name, "type": repository.kind},
        "isPullRequest": True,
    }
