from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from annotary.errors import UsageError
from annotary.records import Failure, Item
from annotary.sources import SourceOptions, stdin


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch):
    def results(*pieces: bytes, **options: int) -> list[Item | Failure]:
        waiting = list(pieces)
        raw = SimpleNamespace(read=lambda _: waiting.pop(0) if waiting else b"")
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=SimpleNamespace(raw=raw)))
        return list(stdin.items("-", SourceOptions(**options)))  # type: ignore[arg-type]

    return results


def encoded(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "form", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM"]
)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_an_image_whole(given, form: str, size: int) -> None:
    data = encoded(form)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert given(*pieces) == [Item(image="stdin", data=data)]


def test_an_image_that_is_too_large(given) -> None:
    (result,) = given(b"\xff\xd8\xff", b"x" * 100, max_bytes=50)
    assert result == Failure("stdin", "UnreachableImage", "larger than 50 bytes (--max-bytes)")


@pytest.mark.parametrize("size", [1, 1000])
def test_lists(given, size: int) -> None:
    def named(content: bytes) -> list[bytes]:
        pieces = [content[start : start + size] for start in range(0, len(content), size)]
        return [os.fsencode(result.image) for result in given(*pieces)]

    assert named(b"a.jpg\nhttp://x.org/b\n# no\n\nc.jpg") == [b"a.jpg", b"http://x.org/b", b"c.jpg"]
    assert named(b"# 1.jpg\0\xe9\n2.jpg\0") == ([b"# 1.jpg", b"\xe9\n2.jpg"])
    assert named(b'\n {"path": "a.jpg"}\n{\n"b.jpg"') == [b"a.jpg", b"stdin:3", b"b.jpg"]
    assert named(b"BMW.jpg\n") == [b"BMW.jpg"]
    assert named(b"RIFF.jpg\n") == [b"RIFF.jpg"]
    assert named(b"a.jpg") == [b"a.jpg"]
    assert named(b"") == []
    assert named("a.jpg\n".encode("utf-16")) == [b"stdin"]


def test_without_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="no standard input"):
        list(stdin.items("-", SourceOptions()))


ECHO = """
import sys
from annotary.sources import SourceOptions, open_sources
for item in open_sources(["-"], SourceOptions()):
    print(item.image, flush=True)
"""


@pytest.mark.parametrize("end", [b"\n", b"\0"])
def test_a_slow_producer_gets_its_first_image_before_it_ends(end: bytes) -> None:
    package = str(Path(stdin.__file__).parents[2])
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", ECHO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": package},
    )
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        for name in (b"a.jpg", b"b.jpg"):
            child.stdin.write(name + end)
            child.stdin.flush()
            assert child.stdout.readline() == name + b"\n"
        child.stdin.close()
        assert child.stdout.read() == b""
    assert child.returncode == 0
