"""Videos are not images: one that is named is told apart in words, and others are passed over."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from annotary.errors import UnreadableImage
from annotary.images import DecodeOptions, decode
from annotary.sources import Reader, SourceOptions, open_sources

FILM = b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(1000)


def test_a_video_that_is_named() -> None:
    Path("film.mp4").write_bytes(FILM)
    (item,) = open_sources(["film.mp4"], SourceOptions())
    with Reader(SourceOptions()) as reader, pytest.raises(UnreadableImage) as caught:
        decode(reader.read(item), at_least=None, options=DecodeOptions())
    message = "not an image that can be read: it looks like a video"
    assert str(caught.value) == message


def test_videos_among_images() -> None:
    Path("folder").mkdir()
    for name in ("a.jpg", "film.mp4"):
        Path("folder", name).write_bytes(FILM)
    with zipfile.ZipFile("x.zip", "w") as archive, tarfile.open("x.tar", "w") as tar:
        for name in ("a.jpg", "film.mp4"):
            archive.writestr(name, FILM)
            member = tarfile.TarInfo(name)
            member.size = len(FILM)
            tar.addfile(member, io.BytesIO(FILM))
    results = open_sources(["folder", "x.zip", "x.tar"], SourceOptions())
    assert [item.image for item in results] == ["folder/a.jpg", "x.zip/a.jpg", "x.tar/a.jpg"]
