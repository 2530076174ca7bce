"""A small hub on the loopback address: what huggingface_hub asks for, and what can go wrong with it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "a" * 40


@dataclass
class FakeRepository:
    """What one repository holds, by commit, and how it answers.

    Attributes:
        commits: Commit to file name to content.
        revisions: Branch or tag to commit.
        large: Names of files that are kept as large ones: with their sha256 as the ETag.
    """

    commits: dict[str, dict[str, bytes]]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    large: set[str] = field(default_factory=lambda: {"model.onnx", "model.safetensors"})
    licence: str = "apache-2.0"
    is_gated: bool = False


class FakeHub:
    """The server.

    Attributes:
        repositories: `owner/name` to what it holds.
        requests: Every request as `METHOD /path`, and `Range` after a blank where there was one.
        cuts: File name to numbers of bytes after which the next answers break off, first to last.
        damaged: Names of files that arrive with their first byte changed.
        statuses: Statuses that the next requests for files get, first to last.
        no_ranges: Ignore `Range`.
        storage: Another server, where large files really are; this one leads there.
        authorised: The paths of requests that came with a token.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, FakeRepository] = {}
        self.requests: list[str] = []
        self.cuts: dict[str, list[int]] = {}
        self.damaged: set[str] = set()
        self.statuses: list[int] = []
        self.no_ranges = False
        self.storage: FakeHub | None = None
        self.authorised: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign] # clients that leave
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def add(self, name: str, files: dict[str, bytes], **options: object) -> FakeRepository:
        self.repositories[name] = FakeRepository({COMMIT: files}, **options)  # type: ignore[arg-type]
        return self.repositories[name]

    def gets(self, name: str) -> list[str]:
        """The requests for a file's content."""
        return [line for line in self.requests if line.startswith("GET") and f"/{name}" in line]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                hub.answer(self)

            def do_GET(self) -> None:
                hub.answer(self)

        return Handler

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        asked = request.headers.get("Range")
        self.requests.append(f"{request.command} {path}" + (f" {asked}" if asked else ""))
        if request.headers.get("Authorization"):
            self.authorised.append(path)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) in (4, 6):
            self._about(request, "/".join(parts[2:4]), parts[5] if len(parts) == 6 else "main")
        elif len(parts) >= 5 and parts[2] == "resolve":
            self._file(request, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._refuse(request, 404, "NoSuchPage")

    def _commit(
        self, request: BaseHTTPRequestHandler, name: str, revision: str
    ) -> tuple[FakeRepository, str] | None:
        repository = self.repositories.get(name)
        if repository is None:
            self._refuse(request, 401, "RepoNotFound")
            return None
        if repository.is_gated:
            self._refuse(request, 403, "GatedRepo")
            return None
        commit = repository.revisions.get(revision, revision)
        if commit not in repository.commits:
            self._refuse(request, 404, "RevisionNotFound")
            return None
        return repository, commit

    def _about(self, request: BaseHTTPRequestHandler, name: str, revision: str) -> None:
        found = self._commit(request, name, revision)
        if found is None:
            return
        repository, commit = found
        siblings = []
        for file, content in repository.commits[commit].items():
            entry: dict[str, object] = {"rfilename": file, "size": len(content)}
            entry["blobId"] = _git_sha1(content)
            if file in repository.large:
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        about = {"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []}
        about["cardData"] = {"license": repository.licence}
        self._send(request, 200, json.dumps(about).encode(), {"Content-Type": "application/json"})

    def _file(self, request: BaseHTTPRequestHandler, name: str, revision: str, file: str) -> None:
        found = self._commit(request, name, revision)
        if found is None:
            return
        repository, commit = found
        content = repository.commits[commit].get(file)
        if content is None:
            self._refuse(request, 404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        if request.command == "GET" and self.statuses:
            self._refuse(request, self.statuses.pop(0), "Unwell")
            return
        digest = hashlib.sha256(content).hexdigest()
        tag = digest if file in repository.large else _git_sha1(content)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        if self.storage is not None and file in repository.large:
            headers |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(content))}
            headers |= {
                "ETag": '"of-the-redirect"',
                "Location": self.storage.address + request.path,
            }
            self._send(request, 302, b"Found", headers)
            return
        if file in self.damaged:
            content = bytes([content[0] ^ 1]) + content[1:]
        asked, status = request.headers.get("Range"), 200
        if asked and not self.no_ranges:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        cut = self.cuts.get(file)
        is_cut = request.command == "GET" and bool(cut)
        self._send(request, status, content, headers, cut.pop(0) if is_cut and cut else None)

    def _refuse(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        code: str,
        headers: dict[str, str] | None = None,
    ) -> None:
        headers = {**(headers or {}), "X-Error-Code": code, "X-Error-Message": f"it is {code}"}
        self._send(request, status, b"", headers)

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        content: bytes,
        headers: dict[str, str],
        cut: int | None = None,
    ) -> None:
        request.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "HEAD":
            return
        request.wfile.write(content if cut is None else content[:cut])
        if cut is not None:
            request.wfile.flush()
            request.close_connection = True


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving() -> Iterator[FakeHub]:
    """A hub that answers."""
    server = FakeHub()
    thread = threading.Thread(target=server.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.server.shutdown()
        server.server.server_close()
        thread.join()


@contextmanager
def running_hub(monkeypatch: pytest.MonkeyPatch, home: object) -> Iterator[FakeHub]:
    """A hub that this process asks, with a cache of its own and no waiting between attempts."""
    from annotary import hub

    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with serving() as server:
        _point_to(server, monkeypatch, home)
        monkeypatch.setattr(hub, "_PAUSE", 0.0)
        yield server


def _point_to(server: FakeHub, monkeypatch: pytest.MonkeyPatch, home: object) -> None:
    from huggingface_hub import constants

    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": server.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(home),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_TOKEN_PATH": f"{home}/no-token",
    }.items():
        monkeypatch.setattr(constants, name, value)
