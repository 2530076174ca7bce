"""Tags in GIF, AVIF, HEIC and JPEG XL files, which ExifTool writes: readers find them, and nothing else changes."""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence, features

from annotary.errors import SidecarError
from annotary.records import Annotation, Item, Tag
from annotary.sinks import SinkOptions, open_sink
from annotary.sinks._blocks import BEGINNING, PACKETS, RESTS, format_of
from annotary.sinks._embedding import differs_in_packet_alone
from annotary.sinks._exiftool import ExifTool, container_of
from tests.conftest import child_environment
from tests.sinks.test_embedding import PIXELS, PROFILE, XMP, embed, encoded, exif, frames

needs_exiftool = pytest.mark.skipif(
    shutil.which("exiftool") is None, reason="exiftool is not installed"
)
GIF_TRAILER = b"\1" + bytes(range(255, -1, -1)) + b"\0"


def avif(**options) -> bytes:
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    return encoded("AVIF", **options)


def heic(second: dict[str, bytes] | None = None, **info) -> bytes:
    heif = pytest.importorskip("pillow_heif")
    image = Image.fromarray(PIXELS.repeat(4, 0).repeat(4, 1))
    others = []
    if second is not None:
        others.append(Image.fromarray(np.ascontiguousarray(np.asarray(image)[::-1])))
        others[0].info.update(second)
    file = io.BytesIO()
    image.info.update(info)
    heif.from_pillow(image)
    heif.register_heif_opener()
    image.save(file, "HEIF", save_all=second is not None, append_images=others)
    return file.getvalue()


def jxl(**options) -> bytes:
    pytest.importorskip("pillow_jxl")
    return encoded("JXL", **options)


def tagged_gif(place: int = 13 + 3 * 256) -> bytes:
    """A GIF with a packet behind its colours, where programs put it."""
    data = encoded("GIF", **frames())
    return data[:place] + b"\x21\xff\x0bXMP DataXMP" + XMP + GIF_TRAILER + data[place:]


IMAGES = {
    "plain.gif": lambda: encoded("GIF"),
    "old.gif": lambda: b"GIF87a" + encoded("GIF")[6:],
    "full.gif": lambda: encoded("GIF", comment=b"hello", loop=0, **frames()) + b"behind",
    "tagged.gif": tagged_gif,
    "plain.avif": lambda: avif(),
    "full.avif": lambda: avif(exif=exif().tobytes(), icc_profile=PROFILE),
    "tagged.avif": lambda: avif(xmp=XMP, exif=exif().tobytes()),
    "animated.avif": lambda: avif(**frames()),
    "plain.heic": lambda: heic(),
    "full.heic": lambda: heic(exif=exif().tobytes(), icc_profile=PROFILE),
    "tagged.heic": lambda: heic(xmp=XMP, exif=exif().tobytes()),
    "two.heic": lambda: heic({"xmp": XMP.replace(b"Wien", b"Rom")}),
    "bare.jxl": lambda: jxl(),
    "full.jxl": lambda: jxl(exif=exif().tobytes(), icc_profile=PROFILE),
    "tagged.jxl": lambda: jxl(xmp=XMP, exif=exif().tobytes()),
}


def opened(data: bytes) -> Image.Image:
    if format_of(data[:BEGINNING]) == "HEIC":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if format_of(data[:BEGINNING]) == "JPEG XL":
        pytest.importorskip("pillow_jxl")
    return Image.open(io.BytesIO(data))


def pixels(data: bytes) -> list[bytes]:
    with opened(data) as image:
        return [frame.tobytes() for frame in ImageSequence.Iterator(image)]


def kept_info(data: bytes) -> tuple[dict[str, object], dict[int, object]]:
    with opened(data) as image:
        image.load()
        own = ("xmp", "version", "extension", "metadata")
        info = {key: value for key, value in image.info.items() if key not in own}
        return info, dict(image.getexif().items())


def processes(folder: Path) -> list[int]:
    """Those that work in a folder, or did before it was removed."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if str((place / "cwd").readlink()).startswith(str(folder)):
                found.append(int(place.name))
        except OSError:
            continue
    return found


def wait_until(is_so) -> bool:
    deadline = time.monotonic() + 20
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(is_so())


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where ExifTool's folder is made."""
    folder = tmp_path / "temporary files"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@needs_exiftool
@pytest.mark.parametrize("name", IMAGES)
def test_tags_go_into_the_file_and_the_rest_stays(name, photos, temporary):
    place = photos / name
    before = IMAGES[name]()
    place.write_bytes(before)
    place.chmod(0o640)
    after = embed(place)
    assert pixels(after) == pixels(before)
    assert kept_info(after) == kept_info(before)
    packet = PACKETS[format_of(after[:BEGINNING])](io.BytesIO(after))
    assert b"<rdf:li>red &amp; blue</rdf:li>" in packet
    with opened(after) as image:
        image.load()
        if name not in ("animated.avif",) and image.format not in ("GIF", "JXL"):
            assert image.info["xmp"] == packet  # as libavif and libheif find it
    if "tagged" in name:
        left = iter(packet)
        assert all(byte in left for byte in XMP)  # in its order
    assert place.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in photos.iterdir()] == [name]
    assert list(temporary.iterdir()) == []
    assert embed(place, on_existing="append") == after
    assert open_sink("xmp", None, SinkOptions(embed=True)).holds(Item.from_path(place))


@needs_exiftool
def test_the_packet_of_another_picture_stays_its_own(photos):
    place = photos / "two.heic"
    place.write_bytes(heic({"xmp": XMP.replace(b"Wien", b"Rom")}))
    embed(place)
    found = pytest.importorskip("pillow_heif").open_heif(place)
    packets = [picture.info["xmp"] for picture in found]
    assert b"Rom" not in packets[0]
    assert b"<rdf:li>dog</rdf:li>" in packets[0]
    assert packets[1] == XMP.replace(b"Wien", b"Rom")


def made(name: str) -> bytes | None:
    try:
        return IMAGES[name]()
    except pytest.skip.Exception:
        return None


@needs_exiftool
def test_one_process_serves_a_run_and_exiftool_finds_the_tags(photos, temporary):
    contents = {name: data for name in IMAGES if (data := made(name)) is not None}
    sink = open_sink("xmp", None, SinkOptions(embed=True))
    folders = set()
    for name, content in contents.items():
        (photos / name).write_bytes(content)
        item = Item.from_path(photos / name)
        assert not sink.holds(item)
        sink.write(item, Annotation(item.image, 18, 12, tags=(Tag("dog", 0.9),)))
        folders.update(path.name for path in temporary.iterdir())
    assert len(folders) == 1
    if Path("/proc").exists():
        assert processes(temporary)
    sink.close(complete=True)
    assert processes(temporary) == []
    assert list(temporary.iterdir()) == []
    command = ["exiftool", "-json", "-Subject", str(photos)]
    printed = subprocess.run(command, capture_output=True, check=True).stdout
    found = {Path(one["SourceFile"]).name: one["Subject"] for one in json.loads(printed)}
    expected = {name: ["Wien", "dog"] if "tagged" in name else "dog" for name in contents}
    assert {
        name: sorted(tags) if isinstance(tags, list) else tags for name, tags in found.items()
    } == (expected)


@needs_exiftool
@pytest.mark.parametrize(
    "name",
    [b"-a.gif", b"a\nb.gif", b"\xff\xfe.gif", b" #x.gif", b"{ready}.gif", "中.gif".encode(), b"in"],
)
def test_any_name(name, photos):
    place = photos / os.fsdecode(name)
    place.write_bytes(encoded("GIF"))
    assert b"red &amp; blue" in embed(place)
    assert [path.name for path in photos.iterdir()] == [place.name]


@needs_exiftool
def test_films_that_would_lose_metadata_are_left_alone(photos):
    # ExifTool drops the XMP of the track.
    place = photos / "a.avif"
    before = avif(xmp=XMP, **frames())
    place.write_bytes(before)
    with pytest.raises(SidecarError, match="the rest of the file would change"):
        embed(place)
    assert place.read_bytes() == before


@needs_exiftool
def test_a_photo_with_a_film_at_its_end_is_left_alone(photos):
    # Those who read it look for the film at the end of the file, where ExifTool puts the picture.
    place = photos / "a.heic"
    before = heic() + struct.pack(">I4s", 12, b"mpvd") + b"film"
    place.write_bytes(before)
    with pytest.raises(SidecarError, match="the rest of the file would change"):
        embed(place)
    assert place.read_bytes() == before


@needs_exiftool
def test_a_packet_behind_the_first_frame_is_left_alone(photos):
    # ExifTool would write a second one.
    place = photos / "a.gif"
    before = tagged_gif(encoded("GIF", **frames()).index(b"\x21\xf9\x04\1"))
    assert len(list(ImageSequence.Iterator(opened(before)))) == 2
    place.write_bytes(before)
    with pytest.raises(SidecarError, match="the rest of the file would change"):
        embed(place)
    assert place.read_bytes() == before


WRITE = """
import sys, time
from pathlib import Path
from annotary.records import Annotation, Item, Tag
from annotary.sinks import SinkOptions, open_sink

sink = open_sink("xmp", None, SinkOptions(embed=True))
item = Item.from_path(Path(sys.argv[1]))
sink.write(item, Annotation(item.image, 18, 12, tags=(Tag("dog", 0.9),)))
print("written", flush=True)
if sys.argv[2] == "waits":
    time.sleep(60)
if sys.argv[2] == "fails":
    raise KeyError("a fault")
"""


@needs_exiftool
@pytest.mark.skipif(not Path("/proc").exists(), reason="there is no /proc to find processes in")
@pytest.mark.parametrize("ending", ["waits", "fails", "ends"])
def test_exiftool_ends_with_the_run_however_that_ends(ending, photos, temporary):
    place = photos / "a.gif"
    place.write_bytes(encoded("GIF"))
    run = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(place), ending],
        env={**child_environment(), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert run.stdout is not None
    with run:
        assert run.stdout.readline() == b"written\n"
        if ending == "waits":
            assert processes(temporary)
            run.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not processes(temporary))
    assert wait_until(lambda: not list(temporary.iterdir()))


@needs_exiftool
def test_a_sink_that_is_dropped_leaves_nothing(photos, temporary):
    place = photos / "a.gif"
    place.write_bytes(encoded("GIF"))
    exiftool = ExifTool()
    assert XMP in exiftool.with_packet("GIF", place.read_bytes(), XMP)
    assert list(temporary.iterdir())
    del exiftool
    gc.collect()
    assert processes(temporary) == []
    assert list(temporary.iterdir()) == []


def test_without_exiftool_the_image_is_told_of_and_left(photos, monkeypatch):
    monkeypatch.setenv("PATH", str(photos))
    place = photos / "a.gif"
    before = encoded("GIF")
    place.write_bytes(before)
    with pytest.raises(
        SidecarError, match=r"^embedding in GIF needs ExifTool \(https://exiftool\.org\)$"
    ):
        embed(place)
    assert place.read_bytes() == before
    # What has its tags is done all the same, and nothing is needed for a format that is written without it.
    place.write_bytes(
        tagged_gif().replace(XMP, b'<a xmlns:b="urn:annotary:xmp:1.0/" b:tagged="x"/>')
    )
    assert open_sink("xmp", None, SinkOptions(embed=True)).holds(Item.from_path(place))
    (photos / "a.png").write_bytes(encoded("PNG"))
    assert b"red &amp; blue" in embed(photos / "a.png")


FAKE = """#!{python}
import sys, time
for line in sys.stdin:
    if line == "-execute\\n":
        data, packet = open("in", "rb").read(), open("packet", "rb").read()
        {doing}
        print("{{ready}}", flush=True)
    elif line == "False\\n":
        break
"""
BLOCK = "b'\\x21\\xff\\x0bXMP DataXMP' + packet + b'\\1' + bytes(range(255, -1, -1)) + b'\\0'"
GOOD = f"data[:-1] + {BLOCK} + data[-1:]"


def fake(folder: Path, doing: str, monkeypatch) -> None:
    """A program that is called exiftool and does something else."""
    folder.mkdir(exist_ok=True)
    program = folder / "exiftool"
    program.write_text(FAKE.format(python=sys.executable, doing=doing))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


posix = pytest.mark.skipif(os.name != "posix", reason="programs are told by their first line")


@posix
@pytest.mark.parametrize(
    ("doing", "message"),
    [
        ("open('out', 'wb').write(data)", "the rest of the file would change"),
        (f"open('out', 'wb').write({GOOD} + b'x')", "the rest of the file would change"),
        (f"packet += b' '; open('out', 'wb').write({GOOD})", "the rest of the file would change"),
        ("open('out', 'wb').write(data[:50])", "it is cut off"),
        ("open('out', 'wb')", "it is cut off"),
        (
            "print('Error: Can\\'t do it - in')",
            "^ExifTool cannot write into it: Can't do it$",
        ),
        ("print('oh'); sys.exit(1)", "^ExifTool failed: it ended before it was done: oh"),
    ],
)
def test_an_exiftool_that_does_wrong_is_told_and_changes_nothing(
    doing, message, photos, temporary, monkeypatch
):
    fake(photos.parent / "bin", doing, monkeypatch)
    before = encoded("GIF")
    sink = open_sink("xmp", None, SinkOptions(embed=True))
    for name in ("a.gif", "b.gif"):  # a process that is gone is started again
        (photos / name).write_bytes(before)
        item = Item.from_path(photos / name)
        with pytest.raises(SidecarError, match=message):
            sink.write(item, Annotation(item.image, 18, 12, tags=(Tag("dog", 0.9),)))
        assert (photos / name).read_bytes() == before
    sink.close(complete=True)
    assert sorted(path.name for path in photos.iterdir()) == ["a.gif", "b.gif"]
    assert list(temporary.iterdir()) == []


@posix
def test_the_fake_writes_when_it_does_right(photos, monkeypatch):
    fake(photos.parent / "bin", f"open('out', 'wb').write({GOOD})", monkeypatch)
    (photos / "a.gif").write_bytes(encoded("GIF"))
    assert b"red &amp; blue" in embed(photos / "a.gif")


@posix
def test_an_exiftool_that_hangs_is_killed(photos, temporary, monkeypatch):
    fake(photos.parent / "bin", "time.sleep(60)", monkeypatch)
    exiftool = ExifTool(timeout=0.5)
    with pytest.raises(SidecarError, match="it ended before it was done"):
        exiftool.with_packet("GIF", encoded("GIF"), XMP)
    assert list(temporary.iterdir()) == []
    assert wait_until(lambda: not processes(temporary))


@posix
def test_an_exiftool_that_cannot_be_started(photos, temporary, monkeypatch):
    fake(photos.parent / "bin", "", monkeypatch)
    (photos.parent / "bin" / "exiftool").write_text("#!/no/such/program\n")
    with pytest.raises(SidecarError, match=r"^ExifTool failed: "):
        ExifTool().with_packet("GIF", encoded("GIF"), XMP)
    assert list(temporary.iterdir()) == []


@posix
def test_without_a_place_for_temporary_files(photos, monkeypatch):
    fake(photos.parent / "bin", "", monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(photos / "none"))
    with pytest.raises(SidecarError, match="ExifTool needs a temporary folder: No such file"):
        ExifTool().with_packet("GIF", encoded("GIF"), XMP)


INTERRUPTED = """
import sys
from annotary.sinks import _exiftool
_exiftool._END_TIMEOUT = 0.2
data = open(sys.argv[1], "rb").read()
exiftool = _exiftool.ExifTool()
print("begun", flush=True)
try:
    exiftool.with_packet("GIF", data, b"<x/>")
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@posix
@pytest.mark.skipif(not Path("/proc").exists(), reason="there is no /proc to find processes in")
def test_an_interrupt_ends_it(photos, temporary, monkeypatch):
    """In a process of its own: in this one, libraries that were tested may have made signals fatal.

    Networks that compute in tiles of AMX let the state of the processor grow beyond the stack that faulthandler, which
    pytest switches on, has for signals.
    """
    fake(photos.parent / "bin", "time.sleep(60)", monkeypatch)
    place = photos / "a.gif"
    place.write_bytes(encoded("GIF"))
    run = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(place)],
        env={**child_environment(), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
    )
    assert run.stdout is not None
    with run:
        assert run.stdout.readline() == b"begun\n"
        assert wait_until(lambda: processes(temporary))
        run.send_signal(signal.SIGINT)
        assert run.stdout.read() == b"interrupted\n"
    assert run.returncode == 0
    assert list(temporary.iterdir()) == []
    assert wait_until(lambda: not processes(temporary))


DAMAGE = (ValueError, LookupError, struct.error, zlib.error, OSError)


@given(data=st.data())
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_reading_any_damage_is_told(data):
    content = bytearray(CONTENTS[data.draw(st.sampled_from(sorted(CONTENTS)))])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, min(len(content), 1500) - 1))
        content[place] = data.draw(st.sampled_from([0, 1, 2, 8, 127, 128, 255]))
    del content[data.draw(st.integers(0, len(content))) if data.draw(st.booleans()) else None :]
    name = format_of(bytes(content[:BEGINNING]))
    if name is None:
        return
    with contextlib.suppress(*DAMAGE):
        found = PACKETS[name](io.BytesIO(content))
        assert found is None or len(found) < len(content)
    with contextlib.suppress(*DAMAGE):
        assert RESTS[name](bytes(content))


@needs_exiftool
@given(
    which=st.integers(0, 99), where=st.floats(0, 1, exclude_max=True), flipped=st.integers(1, 255)
)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_change_of_the_rest_goes_unseen(which, where, flipped):
    before, after = changed_images()[which % len(CONTENTS)]
    place = int(where * len(after))
    damaged = after[:place] + bytes([after[place] ^ flipped]) + after[place + 1 :]
    container = container_of(after[:BEGINNING], ExifTool())
    assert container is not None
    assert differs_in_packet_alone(before, after, XMP, container)
    try:
        is_unseen = differs_in_packet_alone(before, damaged, XMP, container)
    except DAMAGE:
        return
    if is_unseen:  # then it is of the packet's own entry, and says nothing of the picture
        assert pixels(damaged) == pixels(before)
        assert kept_info(damaged) == kept_info(before)


@functools.cache
def changed_images() -> list[tuple[bytes, bytes]]:
    """Images before and after."""
    exiftool = ExifTool()
    found = []
    for before in CONTENTS.values():
        container = container_of(before[:BEGINNING], exiftool)
        assert container is not None
        found.append((before, container.with_packet(before, XMP)))
    exiftool.close()
    return found


CONTENTS = {
    name: content
    for name in ("full.gif", "tagged.gif", "full.avif", "animated.avif", "two.heic", "full.jxl")
    if (content := made(name)) is not None
}
