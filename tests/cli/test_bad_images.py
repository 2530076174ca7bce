"""A folder of everything that can be wrong with images: each is tagged right or listed with a reason."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotary.records import Annotation, Failure, from_line
from tests.conftest import child_environment

RED = (255, 0, 0)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def bomb() -> bytes:
    """A PNG whose header promises 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    checked = struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + checked


def rotated(orientation: int) -> bytes:
    """A JPEG, red above and green below when upright, stored as the orientation says."""
    upright = Image.new("RGB", (40, 60), RED)
    upright.paste((0, 255, 0), (0, 30, 40, 60))
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(upright if undo is None else upright.transpose(undo), "JPEG", exif=exif)


def plain(size: tuple[int, int] = (32, 24)) -> Image.Image:
    return Image.new("RGB", size, RED)


def readable() -> dict[str, bytes]:
    """Files that show red, or red and green, when they are read right."""
    palette = plain().quantize(2)
    clear = Image.new("RGBA", (32, 24), (0, 255, 0, 0))
    deep = np.full((24, 32), 65535, np.uint16)
    frames = [plain(), Image.new("RGB", (32, 24), (0, 0, 255))]
    animation = {"save_all": True, "append_images": frames[1:]}
    return {
        "grey-16bit.png": encoded(Image.fromarray(deep), "PNG"),
        "cmyk.jpg": encoded(plain().convert("CMYK"), "JPEG", quality=95),
        "palette.png": encoded(palette, "PNG"),
        "clear.png": encoded(clear, "PNG"),
        "clear-palette.gif": encoded(clear, "GIF"),
        "la.png": encoded(Image.new("LA", (32, 24), (0, 0)), "PNG"),
        "animated.gif": encoded(frames[0], "GIF", **animation),
        "animated.webp": encoded(frames[0], "WEBP", lossless=True, **animation),
        "two.mpo": encoded(frames[0], "MPO", **animation),
        "tall.png": encoded(plain((1, 20_000)), "PNG"),
        "wide.png": encoded(plain((20_000, 1)), "PNG"),
        "tiny.bmp": encoded(plain((1, 1)), "BMP"),
        "new.avif": encoded(plain(), "AVIF"),
        "a name with spaces.jpg": encoded(plain(), "JPEG"),
        "a name\nof two lines.jpg": encoded(plain(), "JPEG"),
        os.fsdecode(b"caf\xe9.jpg"): encoded(plain(), "JPEG"),
        "wrong-suffix.png": encoded(plain(), "JPEG"),
        **{f"rotated-{i}.jpg": rotated(i) for i in range(1, 9)},
    }


def unreadable() -> dict[str, tuple[bytes, str]]:
    """Files that hold no image, and a part of the reason that is given."""
    photo = encoded(Image.effect_noise((200, 200), 80).convert("RGB"), "JPEG")
    return {
        "empty.jpg": (b"", "the file is empty"),
        "truncated.jpg": (photo[: len(photo) // 2], "truncated JPEG"),
        "truncated.png": (encoded(plain(), "PNG")[:60], "truncated PNG"),
        "page.jpg": (b"<!DOCTYPE html><html></html>", "it looks like a web page"),
        "bomb.png": (bomb(), "--max-pixels"),
        "noise.webp": (b"\0" * 500, "not an image"),
    }


AS_NOBODY = """
import os, sys
from annotary.cli import main
model, warm_up, *arguments = sys.argv[1:]
try:  # what is imported late must be imported before the rights are gone
    main(["tag", warm_up, "--model", model, "--output", "warm/up.jsonl", "--quiet"])
except SystemExit as end:
    assert end.code == 0, end.code
if os.geteuid() == 0:  # root may read everything
    os.seteuid(65534)
main(arguments)
"""


def run(
    folder: Path, model: Path, *, as_nobody: bool = False
) -> tuple[dict[str, Annotation], dict[str, Failure]]:
    arguments = ["tag", str(folder), "--model", f"dir:{model}"]
    arguments += ["--output", "out.jsonl", "--threshold", "0"]
    command = [sys.executable, "-m", "annotary", *arguments]
    if as_nobody:
        plain().save("warm-up.png")
        command = [sys.executable, "-c", AS_NOBODY, f"dir:{model}", "warm-up.png", *arguments]
    result = subprocess.run(
        command, env=child_environment(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 1, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    found: dict[str, Annotation] = {}
    failed: dict[str, Failure] = {}
    for line in Path("out.jsonl").read_bytes().splitlines():
        record = from_line(line)
        assert isinstance(record, Annotation)
        found[Path(record.image).name] = record
    for line in Path("failures.jsonl").read_bytes().splitlines():
        failure = from_line(line)
        assert isinstance(failure, Failure)
        failed[Path(failure.image).name] = failure
    return found, failed


def test_every_file_is_read_right_or_listed_with_a_reason(colours, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    good, bad = readable(), unreadable()
    for name, content in {**good, **{name: content for name, (content, _) in bad.items()}}.items():
        (folder / name).write_bytes(content)
    found, failed = run(folder, colours)
    assert set(found) == set(good)
    assert {name: failed[name].error for name in failed} == dict.fromkeys(bad, "UnreadableImage")
    for name, (_, reason) in bad.items():
        assert reason in failed[name].message, failed[name]
    white = {"red": 1.0, "green": 1.0, "blue": 1.0}
    half = {"red": 0.5, "green": 0.5, "blue": 0.0}
    expected = dict.fromkeys(("grey-16bit.png", "clear.png", "clear-palette.gif", "la.png"), white)
    for name, annotation in found.items():
        scores = {tag.name: tag.score for tag in annotation.tags}
        only_red = {"red": 1.0, "green": 0.0, "blue": 0.0}
        told = half if name.startswith("rotated") else expected.get(name, only_red)
        assert scores == pytest.approx(told, abs=0.03), name
        if name.startswith("rotated"):
            assert (annotation.width, annotation.height) == (40, 60), name


def test_files_and_folders_without_permission(colours, photos, tmp_path):
    folder = photos(2)
    (folder / "00001.png").chmod(0)
    closed = folder / "closed"
    closed.mkdir()
    closed.chmod(0)
    for path in (tmp_path, *tmp_path.parents, colours, *colours.parents):
        if path.stat().st_mode & 0o077 == 0:  # pytest's own folders are for their owner alone
            path.chmod(0o755)
    tmp_path.chmod(0o777)
    try:
        found, failed = run(folder, colours, as_nobody=True)
    finally:
        closed.chmod(0o755)
    assert set(found) == {"00000.png"}
    assert {name: failure.error for name, failure in failed.items()} == {
        "00001.png": "UnreachableImage",
        "closed": "UnreachableImage",
    }
    assert all("ermission denied" in failure.message for failure in failed.values())
