from __future__ import annotations

import io
import re
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotary.errors import UnreachableImage
from annotary.records import Failure, Item
from annotary.sources import SourceOptions, _download, open_sources, webdataset
from annotary.sources._download import RemoteFile

SIZE = 10_000


def tarred(mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for number in range(20):
            member = tarfile.TarInfo(f"{number:02}.jpg")
            member.size = SIZE
            archive.addfile(member, io.BytesIO(bytes([number]) * SIZE))
    return file.getvalue()


CONTENT = tarred()


class Server(ThreadingHTTPServer):
    """A web server of this machine that breaks its answers off."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.sent = 0
        self.is_over = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        self.server.ranges.append(self.headers.get("Range", ""))
        getattr(self, "on_" + self.path.strip("/").split(".")[0].replace("-", "_"))()

    def answer(
        self, content: bytes, cut: int | None = None, *, knows_ranges: bool = False, **headers: str
    ) -> None:
        """All of the content, or the range that is asked for, up to a byte where the connection breaks."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and knows_ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content[start : len(content) if cut is None else max(start, cut)])
        self.close_connection = cut is not None

    def number(self) -> int:
        return self.server.asked[self.path]

    def on_whole(self) -> None:
        self.answer(CONTENT)

    def on_packed(self) -> None:
        self.answer(tarred("w:gz"), Content_Encoding="gzip")

    def on_moved(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/ranges.tar")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def on_ranges(self) -> None:
        self.answer(CONTENT, 80_000 * self.number(), knows_ranges=True, ETag='"1"')

    def on_unsure(self) -> None:
        """A server that does not say how long the file is."""
        start = 80_000 * (self.number() - 1)
        end = min(start + 80_000, len(CONTENT))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/*")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%s\r\n" % (end - start, CONTENT[start:end]))
        self.wfile.write(b"0\r\n\r\n" if end == len(CONTENT) else b"")
        self.close_connection = True

    def on_no_ranges(self) -> None:
        self.answer(CONTENT, None if self.number() == 3 else 60_000 * self.number())

    def on_stuck(self) -> None:
        self.answer(CONTENT, 60_000, knows_ranges=True)

    def on_changed(self) -> None:
        self.answer(CONTENT, 60_000 if self.number() == 1 else None, ETag=f'"{self.number()}"')

    def on_shorter(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        length = 60_000 if self.number() == 1 else 30_000
        self.wfile.write(b"%x\r\n%s\r\n" % (length, CONTENT[:length]))
        self.wfile.write(b"" if self.number() == 1 else b"0\r\n\r\n")
        self.close_connection = True

    def on_short(self) -> None:
        self.answer(CONTENT[:60_000])

    def on_wrong_part(self) -> None:
        if self.number() == 1:
            self.answer(CONTENT, 60_000)
            return
        self.send_response(206)
        self.send_header("Content-Range", f"bytes 0-9/{len(CONTENT)}")
        self.send_header("Content-Length", "10")
        self.end_headers()
        self.wfile.write(CONTENT[:10])

    def on_missing(self) -> None:
        self.send_error(404)

    def on_endless(self) -> None:
        """One image, and another that never ends, as far as anybody can tell."""
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        member = tarfile.TarInfo("x.jpg")
        member.size = 10**12
        self.wfile.write(CONTENT[: 512 + 10_240] + member.tobuf())
        while not self.server.is_over.is_set():
            self.wfile.write(bytes(100_000))
            self.server.sent += 100_000

    def on_silent(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:60_000])
        self.server.is_over.wait(10)


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.is_over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(webdataset, "BACKOFF", 0.001)
    running.asked.clear()
    running.ranges.clear()
    return running


def opened(url: str, **options: object) -> list[Item | Failure]:
    return list(open_sources([url], SourceOptions(**options)))  # type: ignore[arg-type]


def check_whole(results: list[Item | Failure], url: str) -> None:
    assert [result.image for result in results] == [f"{url}/{n:02}.jpg" for n in range(20)]
    assert [result.data for result in results] == [bytes([n]) * SIZE for n in range(20)]


@pytest.mark.parametrize(
    ("path", "ranges"),
    [
        ("/whole.tar", [""]),
        ("/packed.tgz?sig=1", [""]),
        ("/moved.tar", ["", "", "bytes=80000-", "bytes=80000-", "bytes=160000-", "bytes=160000-"]),
        ("/ranges.tar", ["", "bytes=80000-", "bytes=160000-"]),
        ("/unsure.tar", ["", "bytes=80000-", "bytes=160000-"]),
        ("/no-ranges.tar", ["", "bytes=60000-", "bytes=120000-"]),
    ],
)
def test_what_arrives(server: Server, path: str, ranges: list[str]) -> None:
    url = server.url(path)
    check_whole(opened(url), url)
    assert server.ranges == ranges


@pytest.mark.parametrize(
    ("path", "asked", "count", "why"),
    [
        ("/stuck.tar", 3, 5, "the answer broke off after 60,000 bytes"),
        ("/changed.tar", 2, 5, "the file on the server changed meanwhile"),
        ("/shorter.tar", 2, 5, "the file on the server changed meanwhile"),
        ("/short.tar", 1, 5, "unexpected end of data"),
        ("/wrong-part.tar", 2, 5, "the server gives another part than was asked for"),
        ("/missing.tar", 1, 0, "404 Not Found"),
    ],
)
def test_what_does_not(server: Server, path: str, asked: int, count: int, why: str) -> None:
    url = server.url(path)
    *images, failure = opened(url)
    assert [image.image for image in images] == [f"{url}/{n:02}.jpg" for n in range(count)]
    told = (
        f"only {count} images of this archive could be read"
        if count
        else "this archive cannot be read"
    )
    message = f"{told}: {why}"
    assert failure == Failure(url, "UnreachableImage", message)
    assert server.asked[path] == asked


def test_no_retries(server: Server) -> None:
    *images, failure = opened(server.url("/ranges.tar"), retries=0)
    assert (len(images), server.asked["/ranges.tar"]) == (7, 1)
    assert failure.message.endswith("the answer broke off after 80,000 bytes")


def test_retries_begin_anew_when_a_connection_brought_much(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_download, "_WORTH_A_TRY", 50_000)
    url = server.url("/ranges.tar")
    check_whole(opened(url, retries=1), url)


def test_a_server_that_falls_silent(server: Server) -> None:
    *images, failure = opened(server.url("/silent.tar"), timeout=0.1, retries=1)
    assert len(images) == 5
    assert failure.message.endswith("took longer than 0.1 s (--timeout)")


def test_nothing_is_downloaded_before_it_is_needed(server: Server) -> None:
    items = webdataset.items(server.url("/endless.tar"), SourceOptions())
    assert server.asked["/endless.tar"] == 0
    assert next(items).data == bytes(SIZE)
    items.close()
    # What the buffers between two processes hold, not the whole.
    assert server.sent < 50_000_000


def test_braces_and_shards_go_on_after_a_failure(server: Server) -> None:
    url = server.url("/{short,missing,whole}.tar")
    results = opened(url)
    failures = [result for result in results if isinstance(result, Failure)]
    assert [failure.image for failure in failures] == [
        server.url("/short.tar"), server.url("/missing.tar"),
    ]  # fmt: skip
    check_whole(results[-20:], server.url("/whole.tar"))


class Unsteady(RemoteFile):
    """A file whose connection breaks where it is told to."""

    def __init__(self, address: str, breaks: list[int], size: int) -> None:
        self.breaks = breaks
        self.size = size
        super().__init__(address, SourceOptions(retries=0), backoff=0)

    def _next_piece(self) -> memoryview:
        if self.breaks and self._position >= self.breaks[0]:
            self.breaks.pop(0)
            self._failed = -1
            raise _download._TryAgain("broken")
        return super()._next_piece()


@settings(max_examples=15)  # each makes a client with its certificates
@given(
    breaks=st.lists(st.integers(0, len(CONTENT)), max_size=6).map(sorted),
    size=st.integers(1000, 99_999),
)
def test_every_byte_once_wherever_connections_break(
    running: Server, breaks: list[int], size: int
) -> None:
    with Unsteady(running.url("/whole.tar"), breaks, size) as file:
        data = b""
        while piece := file.read(size):
            data += piece
            if len(data) > len(CONTENT):
                break
    assert data == CONTENT


@pytest.mark.parametrize("url", ["http:///a.tar", "http://a:b/x.tar", "http://a..b/x.tar"])
def test_no_address(url: str) -> None:
    with (
        RemoteFile(url, SourceOptions()) as file,
        pytest.raises(UnreachableImage, match="not a web"),
    ):
        file.read(1)
