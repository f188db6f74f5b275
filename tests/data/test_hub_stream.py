"""A data set id is streamed over HTTP, from a server that speaks as much of the Hub's protocol as reading needs."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

COMMIT, TAGGED = "a" * 40, "b" * 40  # the newest, and that of the tag v1, with the first file alone
API = "/api/datasets/user/images"
FILES = "/datasets/user/images/resolve/"

READ = """
from maws_hf.data.sources import DataSourceError, open_stream

stream = open_stream("user/images")
rows = list(stream)
print(len(rows), stream.num_shards, rows[0]["image"]["path"], len(rows[0]["image"]["bytes"]))
print(open_stream("user/images", revision="v1").num_shards)
try:
    open_stream("user/nothing")
except DataSourceError as error:
    print("refused:", error)
"""


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: dict[str, bytes] = {}

    def do_GET(self) -> None:
        path = self.path.split("?")[0].replace("/v1", f"/{TAGGED}")
        commit = TAGGED if TAGGED in path else COMMIT
        files = dict(list(self.files.items())[: 1 if commit == TAGGED else None])
        if path in (API, f"{API}/revision/{commit}"):
            siblings = [{"rfilename": name} for name in files]
            self.send(200, {"id": "user/images", "sha": commit, "siblings": siblings})
        elif path == f"{API}/tree/{commit}":
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            self.send(200, entries)
        elif path.startswith(FILES) and path.rsplit("/", 1)[1] in self.files:
            self.send_file(self.files[path.rsplit("/", 1)[1]])
        else:
            kind = "EntryNotFound" if path.startswith((FILES, API)) else "RepoNotFound"
            self.send(404, {}, {"X-Error-Code": kind})

    do_HEAD = do_GET

    def send_file(self, content: bytes) -> None:
        headers = {"ETag": f'"{sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted is None:
            return self.send(200, content, headers)
        first, last = (int(bound) for bound in wanted.removeprefix("bytes=").split("-"))
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self.send(206, content[first : last + 1], headers)

    def send(self, status: int, body: bytes | dict | list, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture
def hub(image_shards: Path) -> Iterator[str]:
    Hub.files = {file.name: file.read_bytes() for file in image_shards.glob("*.parquet")}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_hub_data_set_is_streamed_by_its_id(hub: str, tmp_path: Path):
    # The address of the Hub is read when huggingface_hub is imported: another process is needed.
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    finished = subprocess.run(
        [sys.executable, "-c", READ], env=environment, capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    read, tagged, refused = finished.stdout.splitlines()
    count, shards, path, size = read.split()
    assert (count, shards, path) == ("96", "4", "0/0.png")
    assert int(size) > 50
    assert tagged == "1"
    assert refused.startswith("refused: user/nothing (no such folder here, so taken for a data set on the Hub)")
