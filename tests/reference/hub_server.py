"""A stand-in for the Hub: the parts of its API that huggingface_hub speaks, on a local port, with faults on demand.

One repository, `owner/model`, with one or more commits. Every request is kept, so that a test can see what was asked
for. What it answers follows the Hub: model info with sizes, the tree of a commit, HEAD and GET of a file with ETag,
X-Repo-Commit, Accept-Ranges and ranges, errors with X-Error-Code.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REPO = "owner/model"
PIECE = 1 << 20


@dataclass(frozen=True)
class Request:
    """One request: what was asked for, which part of it, and by whom."""

    method: str
    path: str
    range: str | None
    authorization: str | None


class Hub(ThreadingHTTPServer):
    """The server and what a test may change of it."""

    daemon_threads = True

    def __init__(self, commit: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits = {commit: files}
        self.branches = {"main": commit}
        self.requests: list[Request] = []
        self.sent = 0  # bytes of files
        self.cut: dict[str, int] = {}  # file -> how many more times its connection breaks half-way
        self.fails: set[str] = set()  # files that answer 503 to a range request
        self.waits, self.pause = threading.Event(), 0.0  # seconds between two pieces of a file
        self.access = ""  # "gated": files are refused; "private": everything is, as if there were nothing

    def handle_error(self, *_: Any) -> None:
        """A client that went away is what some tests want."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked(self, method: str = "GET") -> list[str]:
        """The names of the files that were asked for."""
        return [request.path.split("/resolve/")[1].split("/", 1)[1] for request in self.resolved(method)]

    def resolved(self, method: str = "GET") -> list[Request]:
        return [request for request in self.requests if "/resolve/" in request.path and request.method == method]


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path, headers = unquote(urlsplit(self.path).path), self.headers
        asked = Request(self.command, path, headers.get("Range"), headers.get("Authorization"))
        self.server.requests.append(asked)
        if self.server.access == "private" or REPO not in path:
            self._refuse(401 if REPO in path else 404, "RepoNotFound")
        elif path.startswith("/api/models/"):
            self._api(path.removeprefix(f"/api/models/{REPO}"))
        elif self.server.access == "gated":
            self._refuse(403, "GatedRepo")
        else:
            commit, _, name = path.removeprefix(f"/{REPO}/resolve/").partition("/")
            self._file(commit, name, body)

    def _refuse(self, status: int, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _api(self, path: str) -> None:
        kind, _, revision = path.removeprefix("/").partition("/")
        commit = self.server.branches.get(revision or "main", revision)
        files = self.server.commits.get(commit)
        if files is None:
            self._refuse(404, "RevisionNotFound")
        elif kind == "tree":
            self._json(
                [{"type": "file", "path": name, "size": len(data), "oid": etag(data)} for name, data in files.items()]
            )
        else:
            siblings = [{"rfilename": name, "size": len(data), "blobId": etag(data)} for name, data in files.items()]
            self._json({"id": REPO, "modelId": REPO, "sha": commit, "siblings": siblings})

    def _json(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _file(self, commit: str, name: str, body: bool) -> None:
        data = self.server.commits[commit][name]
        start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0]) if self.headers["Range"] else 0
        if start and name in self.server.fails:
            self._refuse(503)
            return
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{etag(data)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if body:
            self._send(name, data[start:])

    def _send(self, name: str, data: bytes) -> None:
        if self.server.cut.get(name, 0) > 0:
            self.server.cut[name] -= 1
            data, self.close_connection = data[: len(data) // 2], True
        pieces = [data[at : at + PIECE] for at in range(0, len(data), PIECE)]
        for piece in pieces:
            self.wfile.write(piece)
            self.server.sent += len(piece)
            if len(pieces) > 1:
                self.server.waits.wait(self.server.pause)


@cache
def etag(data: bytes) -> str:
    return sha256(data).hexdigest()[:40]


@contextmanager
def served(commit: str, files: dict[str, bytes]) -> Iterator[Hub]:
    """Runs a Hub with one commit on its `main` for as long as the block lasts."""
    with Hub(commit, files) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
