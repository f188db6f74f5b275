"""A Hub on this machine: as much of its protocol as clients of models and data sets use, in memory, with faults.

`Hub.on(pattern, fault)` makes one request go wrong or something happen just before it; `Hub.requests` is the log.
Clients whose library reads the Hub's address on import run in processes of their own: `run_python`.
"""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import RLock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from loopback_answers import (
    USER,
    WHEN,
    card_data,
    discussion,
    information,
    path_info,
    references,
    tree,
    upload_mode,
)
from loopback_repository import MAIN, Blob, Refused, Repository

TOKEN = "hf_" + "LoopbackTokenOfNoWorth" * 2
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
DROP = "drop"  # the connection ends without an answer, before anything was done
LOSE_ANSWER = "lose answer"  # the same, afterwards


@dataclass
class _Fault:
    pattern: re.Pattern
    what: int | str | Callable[[], Any]
    nth: int


@dataclass
class Hub:
    """Attributes: `requests`, "METHOD /path" in their order; `uploads`, sha256 of every large file received."""

    url: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    faults: list[_Fault] = field(default_factory=list)
    lock: Any = field(default_factory=RLock)

    def on(self, pattern: str, what: int | str | Callable[[], Any], nth: int = 1) -> None:
        """At the `nth` request from now that matches: a status, `DROP`, `LOSE_ANSWER`, or a call before it is done."""
        self.faults.append(_Fault(re.compile(pattern), what, nth))

    def repository(self, name: str, kind: str = "model") -> Repository:
        if (kind, name) not in self.repositories:
            raise Refused(404, "RepoNotFound", f"Repository not found: {name}")
        return self.repositories[kind, name]

    def create(self, name: str, kind: str = "model", private: bool = False) -> Repository:
        self.repositories[kind, name] = Repository(name, kind, private)
        return self.repositories[kind, name]

    def due_fault(self, request: str) -> int | str | None:
        for fault in list(self.faults):
            if fault.pattern.search(request):
                fault.nth -= 1
                if fault.nth == 0:
                    self.faults.remove(fault)
                    if not callable(fault.what):
                        return fault.what
                    fault.what()
        return None


class Handler(BaseHTTPRequestHandler):
    """One request; `hub` is set on a subclass for each server."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # or headers and content travel in two packets, the second 40 ms late
    hub: Hub

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        body = self._read_body()
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        with self.hub.lock:
            request = f"{self.command} {unquote(url.path)}"
            self.hub.requests.append(request)
            fault = self.hub.due_fault(request)
            if fault == DROP:
                self.close_connection = True
                return
            try:
                if isinstance(fault, int):
                    raise Refused(fault, None, "injected")
                status, answer, headers = self._answer(parts, body)
            except Refused as refused:
                status, answer = refused.status, {"error": refused.message}
                headers = {"X-Error-Message": refused.message}
                if refused.code:
                    headers["X-Error-Code"] = refused.code
            if fault == LOSE_ANSWER:
                self.close_connection = True
                return
        self._send(status, answer, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def _answer(self, parts: list[str], body: bytes) -> tuple[int, Any, dict[str, str]]:
        if self.command not in ("GET", "HEAD") and parts[0] != "large-files":
            read_only = "paths-info" in parts or parts[:2] == ["api", "validate-yaml"]
            if not read_only and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Refused(401, None, "Invalid credentials in Authorization header")
        if parts[0] == "large-files":
            return self._receive_large_file(parts, body)
        if parts[-4:] == ["info", "lfs", "objects", "batch"]:
            return self._large_file_batch(parts, json.loads(body))
        if parts[0] == "api":
            if parts[1] in KINDS:
                repository = self.hub.repository("/".join(parts[2:4]), KINDS[parts[1]])
                return 200, self._repository_api(repository, parts[4:], body), {}
            return self._general_api(parts[1:], json.loads(body or b"{}"))
        return self._resolve(parts)

    def _general_api(self, parts: list[str], body: dict) -> tuple[int, Any, dict[str, str]]:
        if parts == ["whoami-v2"]:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Refused(401, None, "Invalid user token.")
            role = {"accessToken": {"displayName": "test", "role": "write"}}
            return 200, {"type": "user", "name": USER, "fullname": USER, "orgs": [{"name": "org"}], "auth": role}, {}
        if parts == ["validate-yaml"]:
            try:
                card_data(body["content"])
            except yaml.YAMLError as error:
                return 400, {"errors": [{"message": str(error)}], "warnings": []}, {}
            return 200, {"errors": [], "warnings": []}, {}
        if parts == ["repos", "create"]:
            name = f"{body.get('organization') or USER}/{body['name']}"
            kind = body.get("type") or "model"
            prefix = "" if kind == "model" else f"{kind}s/"
            address = {"url": f"{self.hub.url}/{prefix}{name}", "name": name}
            if (kind, name) in self.hub.repositories:
                return 409, {"error": "You already created this repo", **address}, {}
            self.hub.create(name, kind, private=body.get("visibility") == "private")
            return 200, address, {}
        raise Refused(404, None, f"no such endpoint: {parts}")

    def _repository_api(self, repository: Repository, parts: list[str], body: bytes) -> Any:
        what, *rest = parts or ["revision", MAIN]
        if what == "revision":
            return information(repository, rest[0])
        if what == "refs":
            return references(repository)
        if what == "commits":
            return [
                {"id": c.oid, "title": c.title, "message": "", "authors": [{"user": USER}], "date": WHEN}
                for c in repository.history(rest[0])
            ]
        if what == "tree":
            recursive = self.query.get("recursive", "").lower() in ("1", "true")
            return tree(repository.commit_at(rest[0]).files, "/".join(rest[1:]), recursive)
        if what == "paths-info":
            form = body.decode()
            paths = json.loads(form)["paths"] if form.startswith("{") else parse_qs(form).get("paths", [])
            files = repository.commit_at(rest[0]).files
            return [info for path in paths for info in path_info(files, path.strip("/"))]
        if what == "preupload":
            files = repository.commit_at(rest[0]).files
            return {"files": [upload_mode(entry, files) for entry in json.loads(body)["files"]]}
        if what == "commit":
            return self._commit(repository, rest[0], body)
        if what in ("branch", "tag"):
            return self._point(repository, what, rest[0], json.loads(body or b"{}"))
        if what == "discussions":
            return self._discussions(repository, rest, json.loads(body or b"{}"))
        raise Refused(404, None, f"no such endpoint: {what}")

    def _commit(self, repository: Repository, revision: str, body: bytes) -> dict:
        header: dict = {}
        files: dict[str, Blob | None] = {}
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                header = value
            elif entry["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]))
            elif entry["key"] == "lfsFile":
                if value["oid"] not in repository.large_files:
                    raise Refused(400, None, f"the content of {value['path']} was never uploaded")
                files[value["path"]] = Blob(repository.large_files[value["oid"]], large=True)
            elif entry["key"] == "deletedFile":
                files[value["path"]] = None
            else:
                raise Refused(400, None, f"unknown operation {entry['key']}")
        made, pull = repository.commit(
            revision,
            header["summary"],
            files,
            parent=header.get("parentCommit"),
            create_pr=self.query.get("create_pr") == "1",
            author=USER,
        )
        prefix = "" if repository.kind == "model" else f"{repository.kind}s/"
        address = f"{self.hub.url}/{prefix}{repository.name}"
        answer = {"commitOid": made.oid, "commitUrl": f"{address}/commit/{made.oid}"}
        return answer | ({"pullRequestUrl": f"{address}/discussions/{pull.number}"} if pull else {})

    def _point(self, repository: Repository, what: str, name: str, body: dict) -> dict:
        """Creates and deletes branches and tags; a new tag stands in the body, its target in the address."""
        pointers = repository.branches if what == "branch" else repository.tags
        new, target = (name, body.get("startingPoint", MAIN)) if what == "branch" else (body.get("tag", ""), name)
        if self.command == "DELETE":
            if pointers.pop(name, None) is None:
                raise Refused(404, "RevisionNotFound", f"no {what} {name}")
        elif new in pointers:
            raise Refused(409, None, f"{what} {new} exists already")
        else:
            pointers[new] = repository.commit_at(target).oid
        return {}

    def _discussions(self, repository: Repository, rest: list[str], body: dict) -> dict:
        if not rest and self.command == "GET":
            wanted, author = self.query.get("status", "all"), self.query.get("author")
            found = [
                discussion(repository, pull)
                for pull in repository.pulls.values()
                if wanted in ("all", "open" if pull.status in ("open", "draft") else "closed")
                and author in (None, pull.author)
            ]
            return {"discussions": found, "count": len(found), "start": 0}
        if not rest or int(rest[0]) not in repository.pulls:
            raise Refused(404, None, "no such discussion")
        pull = repository.pulls[int(rest[0])]
        if rest[1:] == ["merge"]:
            repository.merge(pull.number)
        elif rest[1:] == ["status"]:
            pull.status = body["status"]
            event = {"id": "1", "type": "status-change", "createdAt": WHEN, "author": {"name": USER}}
            return {"newStatus": {**event, "data": {"status": pull.status}}}
        changes = {"base": f"refs/heads/{MAIN}", "mergeCommitId": pull.merged_as}
        return {**discussion(repository, pull), "changes": changes, "filesWithConflicts": [], "events": []}

    def _large_file_batch(self, parts: list[str], body: dict) -> tuple[int, Any, dict[str, str]]:
        repository = self._repository_of(parts[:-4])
        objects = []
        for wanted in body["objects"]:
            if wanted["oid"] not in repository.large_files:
                address = f"{self.hub.url}/large-files/{repository.kind}/{repository.name}/{wanted['oid']}"
                wanted = {**wanted, "actions": {"upload": {"href": address, "header": {}}}}
            objects.append(wanted)
        return 200, {"transfer": "basic", "objects": objects}, {}

    def _receive_large_file(self, parts: list[str], body: bytes) -> tuple[int, Any, dict[str, str]]:
        _, kind, organization, name, oid = parts
        if sha256(body).hexdigest() != oid:
            raise Refused(400, None, "the content has another sha256")
        self.hub.repository(f"{organization}/{name}", kind).large_files[oid] = body
        self.hub.uploads.append(oid)
        return 200, b"", {}

    def _resolve(self, parts: list[str]) -> tuple[int, Any, dict[str, str]]:
        where = next((place for place, part in enumerate(parts) if part in ("resolve", "raw")), None)
        if where is None:
            raise Refused(404, "RepoNotFound", "no such page")
        commit = self._repository_of(parts[:where]).commit_at(parts[where + 1])
        path = "/".join(parts[where + 2 :])
        if path not in commit.files:
            raise Refused(404, "EntryNotFound", f"Entry not found: {path}")
        blob = commit.files[path]
        headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if blob.large:
            headers |= {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return 200, blob.content, headers
        first, last = int(asked[1]), min(int(asked[2] or len(blob.content)), len(blob.content) - 1)
        if first > last:
            return 416, b"", {"Content-Range": f"bytes */{len(blob.content)}"}
        headers["Content-Range"] = f"bytes {first}-{last}/{len(blob.content)}"
        return 206, blob.content[first : last + 1], headers

    def _repository_of(self, parts: list[str]) -> Repository:
        kind = KINDS[parts.pop(0)] if parts[0] in KINDS else "model"
        return self.hub.repository("/".join(parts[:2]).removesuffix(".git"), kind)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, answer: Any, headers: dict[str, str]) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Keeps the test's output clean."""


def start_hub() -> tuple[Hub, ThreadingHTTPServer]:
    """A Hub that listens on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HandlerOfHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return hub, server


def run_python(
    code: str, hub: Hub, home: Path, *arguments: str, with_ours: bool = False, check: bool = True, **variables: str
) -> str:
    """What the code prints in a fresh process whose Hub is this one; all that it says, where it may fail.

    Args:
        home: the process' cache.
        with_ours: whether `maws_hf` can be imported there.
        check: whether a failure is one of the test.
        variables: further environment variables; an empty one is taken away.
    """
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(home)}
    environment |= {"HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "", **variables}
    environment = {name: value for name, value in environment.items() if value}
    if not with_ours:
        code = f"import sys\nsys.modules['maws_hf'] = None\n{code}"
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )
    assert finished.returncode == 0 or not check, f"{finished.stdout}\n{finished.stderr}"
    return finished.stdout if check else finished.stdout + finished.stderr
