from __future__ import annotations

import gzip
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseServer
from typing import Any

import numpy as np
import pytest

from annotary.errors import UnreachableImage, UsageError
from annotary.records import Item
from annotary.sources import Reader, SourceOptions
from annotary.sources._download import _retry_after

CONTENT = b"\xff\xd8\xff" + bytes(range(256)) * 40


class Server(ThreadingHTTPServer):
    """A web server of this machine that counts what it is asked."""

    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: Counter[str] = Counter()
        self.is_over = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def __init__(self, request: Any, address: Any, server: BaseServer) -> None:
        super().__init__(request, address, server)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        getattr(self, "on_" + self.path.strip("/").split("/")[0].replace("-", "_"))()

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def first(self, count: int) -> bool:
        return self.server.asked[self.path] <= count

    def on_ok(self) -> None:
        self.answer(200, CONTENT)

    def on_redirect(self) -> None:
        self.answer(302, b"moved", Location="/ok")

    def on_hop(self) -> None:
        left = int(self.path.rsplit("/", 1)[1])
        self.answer(301, Location=f"/hop/{left - 1}" if left > 1 else "/ok")

    def on_circle(self) -> None:
        self.answer(302, Location="/circle")

    def on_elsewhere(self) -> None:
        self.answer(302, Location="file:///etc/hostname")

    def on_nonsense(self) -> None:
        self.answer(302, Location="http://host:port/")

    def on_missing(self) -> None:
        self.answer(404, b"no")

    def on_odd(self) -> None:
        self.answer(499, b"no")

    def on_busy(self) -> None:
        self.answer(503) if self.first(2) else self.answer(200, CONTENT)

    def on_broken(self) -> None:
        self.answer(500)

    def on_limited(self) -> None:
        if self.first(1):
            self.answer(429, Retry_After="0")
        else:
            self.answer(200, CONTENT)

    def on_tomorrow(self) -> None:
        self.answer(429, Retry_After="86400")

    def on_silent(self) -> None:
        self.server.is_over.wait(10)

    def on_drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        while not self.server.is_over.wait(0.01):
            self.wfile.write(b"x")

    def on_truncated(self) -> None:
        self.close_connection = True
        self.answer(200, CONTENT[:100], Content_Length=str(len(CONTENT)))

    def on_truncated_once(self) -> None:
        if self.first(1):
            self.on_truncated()
        else:
            self.on_ok()

    def on_hang_up(self) -> None:
        self.close_connection = True

    def on_endless(self) -> None:
        self.close_connection = True
        self.answer(200, Content_Length="")
        while not self.server.is_over.is_set():
            self.wfile.write(b"x" * 1000)

    def on_gzip(self) -> None:
        self.answer(200, gzip.compress(CONTENT), Content_Encoding="gzip")

    def on_cookie(self) -> None:
        self.answer(200, self.headers.get("Cookie", "none").encode(), Set_Cookie="a=b; Path=/")

    def on_agent(self) -> None:
        self.answer(200, self.headers["User-Agent"].encode())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.is_over.set()
        running.shutdown()
        thread.join()


def fetch(url: str, *, patience: float = 10.0, **options: Any) -> bytes:
    with Reader(SourceOptions(**options), backoff=0.001, patience=patience) as reader:
        return reader.read(Item(image=url, url=url))


def why_not(url: str, **options: Any) -> str:
    with pytest.raises(UnreachableImage) as caught:
        fetch(url, **options)
    return str(caught.value)


class TestAddresses:
    @pytest.mark.parametrize(
        ("path", "asked"),
        [
            ("/ok", 1), ("/redirect", 1), ("/hop/5", 1), ("/busy", 3), ("/limited", 2),
            ("/truncated-once", 2), ("/gzip", 1),
        ],
    )  # fmt: skip
    def test_what_arrives(self, server: Server, path: str, asked: int) -> None:
        assert fetch(server.url(path)) == CONTENT
        assert server.asked[path] == asked

    @pytest.mark.parametrize(
        ("path", "asked", "message"),
        [
            ("/missing", 1, "404 Not Found"),
            ("/odd", 1, "499"),
            ("/broken", 3, "500 Internal Server Error"),
            ("/tomorrow", 1, "429 Too Many Requests; the server asks to wait 86,400 s"),
            ("/circle", 6, "more than 5 redirects"),
            ("/hop/6", 1, "more than 5 redirects"),
            ("/elsewhere", 1, "redirected to 'file', which is not http or https"),
            ("/nonsense", 1, "redirected to something that is not a web address"),
            ("/truncated", 3, "the answer broke off after 100 of 10,243 bytes"),
            ("/hang-up", 3, "Server disconnected without sending a response."),
        ],
    )
    def test_what_does_not(self, server: Server, path: str, asked: int, message: str) -> None:
        assert why_not(server.url(path)) == message
        assert server.asked[path] == asked

    def test_no_retries(self, server: Server) -> None:
        assert why_not(server.url("/busy"), retries=0) == "503 Service Unavailable"
        assert server.asked["/busy"] == 1

    def test_a_silent_server(self, server: Server) -> None:
        message = why_not(server.url("/silent"), timeout=0.05, retries=1)
        assert message == "took longer than 0.05 s (--timeout)"
        assert server.asked["/silent"] == 2

    def test_a_server_that_drips(self, server: Server) -> None:
        message = why_not(server.url("/drip"), timeout=20, patience=0.01)
        assert message == "took longer than 0.2 s in all"
        assert server.asked["/drip"] == 1

    def test_size(self, server: Server) -> None:
        assert fetch(server.url("/ok"), max_bytes=len(CONTENT)) == CONTENT
        message = "larger than 1,000 bytes (--max-bytes)"
        assert why_not(server.url("/ok"), max_bytes=1000) == message
        assert why_not(server.url("/endless"), max_bytes=1000) == message
        assert why_not(server.url("/gzip"), max_bytes=1000) == message

    def test_nobody_listens(self) -> None:
        with Server() as server:
            url = server.url("/ok")
        assert why_not(url) == "Connection refused"

    @pytest.mark.parametrize(
        "url", ["http://", "http:///a", "http://a:b/", "http://\udcff/", "http://a..b/"]
    )
    def test_no_address(self, url: str) -> None:
        assert why_not(url).startswith("not a web address: ")

    def test_no_cookies(self, server: Server) -> None:
        with Reader(SourceOptions()) as reader:
            item = Item(image="cookie", url=server.url("/cookie"))
            assert [reader.read(item), reader.read(item)] == [b"none", b"none"]

    def test_it_says_who_asks(self, server: Server) -> None:
        assert fetch(server.url("/agent")) == b"annotary"

    def test_many_threads(self, server: Server) -> None:
        with Reader(SourceOptions()) as reader, ThreadPoolExecutor(8) as pool:
            items = [Item(image=str(n), url=server.url(f"/ok/{n}")) for n in range(40)]
            assert list(pool.map(reader.read, items)) == [CONTENT] * 40

    def test_closing_ends_the_wait_for_a_retry(self, server: Server) -> None:
        reader = Reader(SourceOptions(timeout=1000), backoff=1000)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(reader.read, Item(image="x", url=server.url("/broken")))
            while not server.asked["/broken"]:
                time.sleep(0.001)
            reader.close()
            with pytest.raises(UnreachableImage):
                waiting.result()
        reader.close()
        with pytest.raises(ValueError, match="closed"):
            reader.read(Item(image="x", url=server.url("/ok")))

    def test_a_proxy_that_cannot_be(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "nonsense://x")
        with pytest.raises(UsageError, match="proxy"):
            fetch("http://example.org/")

    def test_retry_after(self) -> None:
        assert _retry_after("7") == 7.0
        assert _retry_after(formatdate(0, usegmt=True)) == 0.0
        assert _retry_after(formatdate(time.time() + 1000, usegmt=True)) == pytest.approx(
            1000, abs=60
        )
        assert _retry_after("soon") is None
        assert _retry_after("") is None


class TestFiles:
    def read(self, path: Path | str, **options: int) -> bytes:
        with Reader(SourceOptions(**options)) as reader:  # type: ignore[arg-type]
            return reader.read(Item.from_path(path))

    def why_not(self, path: Path | str, **options: int) -> str:
        with pytest.raises(UnreachableImage) as caught:
            self.read(path, **options)
        return str(caught.value)

    def test_bytes(self, tmp_path: Path) -> None:
        path = tmp_path / os.fsdecode(b"caf\xe9\n.jpg")
        path.write_bytes(CONTENT * 300)
        assert self.read(path) == CONTENT * 300
        assert self.read(path, max_bytes=len(CONTENT) * 300) == CONTENT * 300
        path.write_bytes(b"")
        assert self.read(path) == b""

    def test_why_not(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(CONTENT)
        (tmp_path / "circle").symlink_to("circle")
        os.mkfifo(tmp_path / "pipe")
        too_large = "larger than 1,000 bytes (--max-bytes)"
        assert self.why_not(tmp_path / "a", max_bytes=1000) == too_large
        assert self.why_not(tmp_path / "b") == "No such file or directory"
        assert self.why_not(tmp_path / "a/b") == "Not a directory"
        assert self.why_not(tmp_path / "circle") == "Too many levels of symbolic links"
        assert self.why_not(tmp_path) == "a folder, not a file"
        assert self.why_not(tmp_path / "pipe") == "a pipe or a device, not a file"
        assert self.why_not("/dev/zero") == "a pipe or a device, not a file"
        assert self.why_not("a\0b") == "not a valid file name"
        assert self.why_not("\ud800") == "not a valid file name"
        assert self.why_not("x" * 5000) == "File name too long"

    def test_a_file_that_hides_its_size(self) -> None:
        path = Path("/proc/self/status")
        if not path.exists():
            pytest.skip("no /proc")
        assert self.read(path).startswith(b"Name:")
        assert self.why_not(path, max_bytes=10) == "larger than 10 bytes (--max-bytes)"


def test_memory() -> None:
    with Reader(SourceOptions()) as reader:
        assert reader.read(Item(image="a", data=b"x")) == b"x"
        with pytest.raises(ValueError, match="pixels"):
            reader.read(Item(image="a", pixels=np.zeros((1, 1, 3), np.uint8)))
