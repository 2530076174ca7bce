"""Downloads: bounded in size and time, and tried again when that may help."""

from __future__ import annotations

import io
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2

from annotary.errors import UnreachableImage, UsageError
from annotary.sources._options import SourceOptions

MOST_REDIRECTS = 5
"""How many redirects of one address are followed."""

LONGEST_PAUSE = 30.0
"""Seconds that a server may ask to wait (Retry-After); one that asks for more is given up."""

_WORTH_A_TRY = 1024 * 1024
"""Bytes that a connection must bring until it breaks for the retries of a long file to begin anew."""

_HEADERS = {
    "User-Agent": "annotary",
    "Accept": "image/*,*/*;q=0.8",
    # Images are compressed already, and what is sent is then what Content-Length says.
    "Accept-Encoding": "identity",
}


class _TryAgain(Exception):
    """A try failed in a way that another may not.

    Args:
        message: What to say when there is no other try.
        pause: Seconds that the server asks to wait.
    """

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


class Downloader:
    """Fetches addresses over one pool of connections; many threads may share it.

    Args:
        options: Time-out, number of retries and the largest size.
        backoff: Seconds before the first retry; each further pause is twice as long, give or take
            half.
        patience: How many times the time-out one download may take in all.
    """

    def __init__(self, options: SourceOptions, backoff: float, patience: float) -> None:
        self._options = options
        self._backoff = backoff
        self._total = options.timeout * patience
        self._deadline = _Deadline()
        self._closing = threading.Event()
        self._client = _client(options.timeout)

    def close(self) -> None:
        """Close the connections and wake threads that wait for a retry."""
        self._closing.set()
        self._client.close()

    def fetch(self, address: str) -> bytes:
        """The bytes at an address.

        Raises:
            UnreachableImage: They cannot be had.
        """
        request = _request(self._client, address)
        self._deadline.at = time.monotonic() + self._total
        for number in range(self._options.retries + 1):
            try:
                return self._try(request)
            except _TryAgain as failure:
                pause = failure.pause
                if pause is None:
                    pause = _pause(self._backoff, number)
                is_last = number == self._options.retries or self._deadline.left() <= pause
                if is_last or self._closing.wait(pause):
                    raise UnreachableImage(str(failure)) from failure
        raise AssertionError("the last try returns or raises")

    def _try(self, request: httpx2.Request) -> bytes:
        try:
            with _as_tries(self._too_long), closing(_answer(self._client, request)) as response:
                return self._content(response)
        except RuntimeError as error:
            if self._closing.is_set():
                raise UnreachableImage("the download was stopped") from error
            raise

    def _content(self, response: httpx2.Response) -> bytes:
        limit = self._options.max_bytes
        stated = response.headers.get("Content-Length", "")
        size = int(stated) if stated.isascii() and stated.isdigit() else None
        pieces: list[bytes] = []
        received = 0
        if size is None or size <= limit:
            try:
                for piece in response.iter_bytes():
                    pieces.append(piece)
                    received += len(piece)
                    if received > limit:
                        break
                    if self._deadline.left() <= 0:
                        raise _TryAgain(self._too_long())
            except httpx2.RemoteProtocolError as error:
                of_all = f" of {size:,}" if size is not None else ""
                message = f"the answer broke off after {received:,}{of_all} bytes"
                raise _TryAgain(message) from error
        if received > limit or (size is not None and size > limit):
            raise UnreachableImage(f"larger than {limit:,} bytes (--max-bytes)")
        return b"".join(pieces)

    def _too_long(self) -> str:
        if self._deadline.left() <= 0:
            return f"took longer than {self._total:g} s in all"
        return f"took longer than {self._options.timeout:g} s (--timeout)"


class RemoteFile(io.RawIOBase):
    """The bytes at an address as a file that is read from its begin to its end, of any size, and never held whole.

    When a connection breaks, the file goes on where it broke: with a range request where the server knows these, else
    by asking for all of it again and passing over what was read. Reading raises `UnreachableImage` when tries bring
    nothing more, or when the file is another one meanwhile.

    Args:
        address: An http or https address.
        options: Time-out for each piece, and how many tries in a row may fail.
        backoff: Seconds before the first retry; each further pause is twice as long, give or take half.
    """

    def __init__(self, address: str, options: SourceOptions, *, backoff: float = 0.5) -> None:
        super().__init__()
        self._options = options
        self._backoff = backoff
        self._client = _client(options.timeout)
        self._address = address
        self._response: httpx2.Response | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._piece = memoryview(b"")
        self._position = 0  # of the byte that is read next
        self._version: tuple[str, ...] = ()
        self._failed = 0  # tries since the last that brought something
        self._progress = 0  # where the last of these had come to

    def readable(self) -> bool:
        """It can be read."""
        return True

    def close(self) -> None:
        """Close the connection."""
        if not self.closed:
            self._hang_up()
            self._client.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """Some bytes that come next; none at the end.

        Raises:
            UnreachableImage: They cannot be had.
        """
        while not self._piece:
            try:
                with _as_tries(self._too_long):
                    if self._response is None:
                        self._connect()
                    piece = self._next_piece()
            except _TryAgain as failure:
                self._hang_up()
                self._wait(failure)
                continue
            except BaseException:
                self._hang_up()
                raise
            if not piece:
                return 0
            self._piece = piece
        count = min(len(buffer), len(self._piece))
        memoryview(buffer)[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        self._position += count
        return count

    def _connect(self) -> None:
        """Ask for what comes next."""
        request = _request(self._client, self._address)
        request.headers["Accept"] = "*/*"
        if self._position:
            request.headers["Range"] = f"bytes={self._position}-"
        self._response = _answer(self._client, request)
        headers = self._response.headers
        start, length = 0, headers.get("Content-Length", "")
        if self._response.status_code == HTTPStatus.PARTIAL_CONTENT:
            # "bytes 100-199/200": RFC 9110, 14.4
            parts = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
            if not parts or int(parts[1]) != self._position:
                raise UnreachableImage("the server gives another part than was asked for")
            start, length = self._position, parts[2].replace("*", "")
        version = (length, headers.get("ETag", ""), headers.get("Last-Modified", ""))
        if _differ(self._version, version):
            raise UnreachableImage("the file on the server changed meanwhile")
        self._version = version
        # As it is stored, without undoing an encoding of the way: what is read is what positions count.
        self._pieces = self._response.iter_raw()
        passed = start
        while passed < self._position:
            piece = next(self._pieces, b"")
            if not piece:
                raise UnreachableImage("the file on the server changed meanwhile")
            self._piece = memoryview(piece)[self._position - passed :]
            passed += len(piece)

    def _next_piece(self) -> memoryview:
        """What is left of the piece in which the file goes on after a break, or the next; empty at the end."""
        if self._piece:
            return self._piece
        try:
            return memoryview(next(self._pieces, b""))
        except httpx2.RemoteProtocolError as error:
            message = f"the answer broke off after {self._position:,} bytes"
            raise _TryAgain(message) from error

    def _hang_up(self) -> None:
        response, self._response, self._pieces = self._response, None, iter(())
        self._piece = memoryview(b"")
        if response is not None:
            response.close()

    def _wait(self, failure: _TryAgain) -> None:
        """Wait for the next try.

        Raises:
            UnreachableImage: There is none.
        """
        if self._position - self._progress >= _WORTH_A_TRY:
            self._failed = 0
        self._progress = self._position
        if self._failed == self._options.retries:
            raise UnreachableImage(str(failure)) from failure
        pause = _pause(self._backoff, self._failed) if failure.pause is None else failure.pause
        self._failed += 1
        time.sleep(pause)

    def _too_long(self) -> str:
        return f"took longer than {self._options.timeout:g} s (--timeout)"


def _differ(before: tuple[str, ...], now: tuple[str, ...]) -> bool:
    """Whether two answers tell, by what both of them say, of two versions of a file."""
    return any(one != other for one, other in zip(before, now, strict=False) if one and other)


def _pause(backoff: float, number: int) -> float:
    """Seconds to wait after the try of this number, from 0."""
    return float(backoff * 2**number * random.uniform(0.5, 1.5))


def _request(client: httpx2.Client, address: str) -> httpx2.Request:
    try:
        request = client.build_request("GET", address)
    except (httpx2.InvalidURL, ValueError) as error:
        raise UnreachableImage(f"not a web address: {_clean(error)}") from error
    if not request.url.host:
        raise UnreachableImage("not a web address: it names no host")
    return request


def _answer(client: httpx2.Client, request: httpx2.Request) -> httpx2.Response:
    """The answer with the content, after redirects; whoever takes it closes it."""
    for _ in range(MOST_REDIRECTS + 1):
        if request.url.scheme not in ("http", "https"):
            scheme = request.url.scheme
            raise UnreachableImage(f"redirected to {scheme!r}, which is not http or https")
        response = client.send(request, stream=True)
        try:
            if not response.has_redirect_location:
                _check_status(response)
                return response
            if response.next_request is None:
                raise UnreachableImage("redirected to something that is not a web address")
            request = response.next_request
        except BaseException:
            response.close()
            raise
        response.close()
    raise UnreachableImage(f"more than {MOST_REDIRECTS} redirects")


@contextmanager
def _as_tries(too_long: Callable[[], str]) -> Iterator[None]:
    """Turn the client's errors into ours, and tell which may pass."""
    try:
        yield
    except httpx2.TimeoutException as error:
        raise _TryAgain(too_long()) from error
    except (httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.ProxyError) as error:
        raise _TryAgain(_clean(error)) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise UnreachableImage(_clean(error)) from error
    except UnicodeError as error:  # from the look-up of a host name
        raise UnreachableImage("not a web address: no host can have this name") from error


def _client(timeout: float) -> httpx2.Client:
    try:
        return httpx2.Client(
            headers=_HEADERS,
            timeout=httpx2.Timeout(timeout, pool=None),
            # The caller's threads are the limit.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64),
            # No server is told what another, or the same one, said before.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )
    except (ImportError, ValueError) as error:  # the variables HTTP_PROXY, ALL_PROXY, ...
        raise UsageError(f"the proxy that is set here cannot be used: {_clean(error)}") from error


def _check_status(response: httpx2.Response) -> None:
    """Raise unless the answer is the image."""
    code = response.status_code
    if response.is_success:
        return
    try:
        said = f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        said = str(code)
    if code != HTTPStatus.TOO_MANY_REQUESTS and not response.is_server_error:
        raise UnreachableImage(said)
    pause = _retry_after(response.headers.get("Retry-After", ""))
    if pause is not None and pause > LONGEST_PAUSE:
        raise UnreachableImage(f"{said}; the server asks to wait {pause:,.0f} s")
    raise _TryAgain(said, pause)


def _retry_after(value: str) -> float | None:
    """Seconds that a Retry-After header asks to wait: it holds a number of seconds or a date."""
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _clean(error: Exception) -> str:
    """The message of an error without its numbers and places in source code."""
    text = re.sub(r"^\[[^\]]*\]\s*|\s*\(_ssl\.c:\d+\)", "", " ".join(str(error).split()))
    return text or "the connection failed"


class _Deadline(threading.local):
    """When the download of this thread must end, on the monotonic clock."""

    at = float("inf")

    def left(self) -> float:
        return self.at - time.monotonic()
