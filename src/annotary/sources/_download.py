"""Downloads: bounded in size and time, and tried again when that may help."""

from __future__ import annotations

import random
import re
import threading
import time
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx2

from annotary.errors import UnreachableImage, UsageError
from annotary.sources._options import SourceOptions

MOST_REDIRECTS = 5
"""How many redirects of one address are followed."""

LONGEST_PAUSE = 30.0
"""Seconds that a server may ask to wait (Retry-After); one that asks for more is given up."""

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
        try:
            request = self._client.build_request("GET", address)
        except (httpx2.InvalidURL, ValueError) as error:
            raise UnreachableImage(f"not a web address: {_clean(error)}") from error
        if not request.url.host:
            raise UnreachableImage("not a web address: it names no host")
        self._deadline.at = time.monotonic() + self._total
        for number in range(self._options.retries + 1):
            try:
                return self._try(request)
            except _TryAgain as failure:
                pause = failure.pause
                if pause is None:
                    pause = self._backoff * 2**number * random.uniform(0.5, 1.5)
                is_last = number == self._options.retries or self._deadline.left() <= pause
                if is_last or self._closing.wait(pause):
                    raise UnreachableImage(str(failure)) from failure
        raise AssertionError("the last try returns or raises")

    def _try(self, request: httpx2.Request) -> bytes:
        try:
            for _ in range(MOST_REDIRECTS + 1):
                if request.url.scheme not in ("http", "https"):
                    scheme = request.url.scheme
                    raise UnreachableImage(f"redirected to {scheme!r}, which is not http or https")
                with closing(self._client.send(request, stream=True)) as response:
                    if not response.has_redirect_location:
                        return self._content(response)
                    if response.next_request is None:
                        raise UnreachableImage("redirected to something that is not a web address")
                    request = response.next_request
            raise UnreachableImage(f"more than {MOST_REDIRECTS} redirects")
        except httpx2.TimeoutException as error:
            raise _TryAgain(self._too_long()) from error
        except (httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.ProxyError) as error:
            raise _TryAgain(_clean(error)) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise UnreachableImage(_clean(error)) from error
        except UnicodeError as error:  # from the look-up of a host name
            raise UnreachableImage("not a web address: no host can have this name") from error
        except RuntimeError as error:
            if self._closing.is_set():
                raise UnreachableImage("the download was stopped") from error
            raise

    def _content(self, response: httpx2.Response) -> bytes:
        _check_status(response)
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
