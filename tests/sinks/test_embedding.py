"""Tags in image files: readers find them, and nothing else in the file changes."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageSequence, PngImagePlugin

from annotary.errors import OutputError, SidecarError
from annotary.records import Annotation, Item, Tag
from annotary.sinks import SinkOptions, open_sink
from tests.sinks.xmp_samples import DIGIKAM

TAGS = (Tag("dog", 0.9, "animal"), Tag("red & blue", 0.8))
PIXELS = np.random.default_rng(0).integers(0, 255, (12, 18, 3), dtype=np.uint8)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = DIGIKAM.encode()

LONG_XMP = XMP.replace(b"<?xpacket end", b" " * (65_400 - len(XMP)) + b"<?xpacket end")


def encoded(form: str, image: Image.Image | None = None, **options) -> bytes:
    file = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(file, form, **options)
    return file.getvalue()


def exif() -> Image.Exif:
    found = Image.Exif()
    found[0x010E], found[0x0112], found[0x927C] = "a description", 6, b"maker note" * 9
    return found


def frames() -> dict[str, object]:
    return {"save_all": True, "append_images": [Image.fromarray(PIXELS[::-1].copy())]}


def texts() -> PngImagePlugin.PngInfo:
    found = PngImagePlugin.PngInfo()
    found.add_text("parameters", "1girl, solo", zip=True)
    found.add_itxt("Comment", "häh")
    return found


def png_with_compressed_xmp() -> bytes:
    data = encoded("PNG")
    body = b"iTXtXML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + chunk + data[33:]


IMAGES = {
    "plain.jpg": lambda: encoded("JPEG"),
    "full.jpg": lambda: encoded("JPEG", exif=exif(), icc_profile=PROFILE, comment=b"hello"),
    "progressive.jpg": lambda: encoded("JPEG", progressive=True) + b"a trailer" * 99,
    "tagged.jpg": lambda: encoded("JPEG", xmp=XMP, exif=exif()),
    "plain.png": lambda: encoded("PNG"),
    "full.png": lambda: encoded("PNG", exif=exif(), pnginfo=texts(), dpi=(300, 300)) + b"behind",
    "tagged.png": png_with_compressed_xmp,
    "animated.png": lambda: encoded("PNG", **frames()),
    "lossy.webp": lambda: encoded("WEBP"),
    "lossless.webp": lambda: encoded("WEBP", lossless=True),
    "alpha.webp": lambda: encoded("WEBP", Image.fromarray(PIXELS).convert("RGBA"), lossless=True),
    "full.webp": lambda: encoded("WEBP", exif=exif(), icc_profile=PROFILE),
    "tagged.webp": lambda: encoded("WEBP", xmp=XMP),
    "animated.webp": lambda: encoded("WEBP", **frames()),
    "plain.tif": lambda: encoded("TIFF"),
    "lzw.tiff": lambda: encoded("TIFF", compression="tiff_lzw", description="hello"),
    "pages.tif": lambda: encoded("TIFF", **frames()),
    "big.tif": lambda: encoded("TIFF", big_tiff=True),
    "motorola.tif": lambda: encoded("TIFF", Image.fromarray(PIXELS[..., 0].astype(">u2"))),
    "tagged.tif": lambda: encoded("TIFF", tiffinfo={700: XMP}),
}


def embed(place: Path, tags=TAGS, **options) -> bytes:
    item = Item.from_path(place)
    sink = open_sink("xmp", None, SinkOptions(embed=True, **options))
    if not sink.holds(item):
        sink.write(item, Annotation(item.image, 18, 12, tags=tags, sources={"tags": "starter@1.1"}))
    sink.close(complete=True)
    return place.read_bytes()


def pixels(data: bytes) -> list[bytes]:
    with Image.open(io.BytesIO(data)) as image:
        return [frame.tobytes() for frame in ImageSequence.Iterator(image)]


def packet(data: bytes) -> bytes:
    """The XMP packet, as Pillow finds it."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        found = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
        if image.format == "TIFF":
            found = image.tag_v2.get(700, b"")
    return found.encode() if isinstance(found, str) else bytes(found)


@pytest.mark.parametrize("name", IMAGES)
def test_tags_go_into_the_file_and_the_rest_stays(name, tmp_path):
    place = tmp_path / name
    before = IMAGES[name]()
    place.write_bytes(before)
    place.chmod(0o640)
    after = embed(place)
    found = packet(after)
    assert b"<rdf:li>red &amp; blue</rdf:li>" in found
    assert pixels(after) == pixels(before)
    if "tagged" in name:
        left = iter(found)
        assert all(
            byte in left for byte in XMP
        )  # all that was in the packet still is, in its order
    with Image.open(io.BytesIO(before)) as old, Image.open(io.BytesIO(after)) as new:
        old.load()
        new.load()
        own = ("xmp", "XML:com.adobe.xmp")
        kept = {key: value for key, value in new.info.items() if key not in own}
        assert kept == {key: value for key, value in old.info.items() if key not in own}
        assert dict(new.getexif().items()) | {700: 0} == dict(old.getexif().items()) | {700: 0}
    assert place.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert embed(place, on_existing="append") == after
    assert open_sink("xmp", None, SinkOptions(embed=True)).holds(Item.from_path(place))


@pytest.mark.parametrize(
    "name", [name for name in IMAGES if "tagged" not in name and "tif" not in name]
)
def test_taking_the_packet_out_gives_the_file_back(name, tmp_path):
    place = tmp_path / name
    before = IMAGES[name]()
    place.write_bytes(before)
    after = embed(place)
    start = after.index(packet(after))
    end = start + len(packet(after))
    end += (end - start) % 2 if "webp" in name else 4 if "png" in name else 0  # padding; checksum
    start -= {"jpg": 33, "png": 30, "ebp": 8}[name[-3:]]
    if "webp" not in name:
        assert after[:start] + after[end:] == before
        return
    with_header = before[12:16] == b"VP8X"
    head, rest = before[12:30] if with_header else b"", before[30:] if with_header else before[12:]
    assert after[30:start] + after[end:] == rest
    assert after[12:20] == b"VP8X\n\0\0\0"
    if with_header:
        assert after[20] == head[8] | 4
        assert after[21:30] == head[9:]


@pytest.mark.parametrize("name", IMAGES)
def test_exiv2_finds_the_tags(name, tmp_path):
    exiv2 = pytest.importorskip("exiv2")
    if name == "big.tif":
        pytest.skip("exiv2 reads no XMP from BigTIFF")
    place = tmp_path / name
    place.write_bytes(IMAGES[name]())
    embed(place)
    image = exiv2.ImageFactory.open(str(place))
    image.readMetadata()
    found = list(image.xmpData()["Xmp.dc.subject"].value())
    assert found == (["dog", "Wien", "red & blue"] if "tagged" in name else ["dog", "red & blue"])


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
def test_exiftool_finds_the_tags_and_no_fault(tmp_path):
    def report() -> dict[str, dict[str, object]]:
        command = ["exiftool", "-json", "-validate", "-warning", "-a", "-all", str(tmp_path)]
        printed = subprocess.run(command, capture_output=True, check=False).stdout
        return {Path(found["SourceFile"]).name: found for found in json.loads(printed)}

    for name, content in IMAGES.items():
        (tmp_path / name).write_bytes(content())
    faults = report()
    for name in IMAGES:
        embed(tmp_path / name)
    found = report()
    for name in IMAGES:
        others = ["Wien"] if "tagged" in name else []
        assert found[name]["Subject"] == ["dog", *others, "red & blue"]
        if not others:
            assert found[name]["Validate"] == faults[name]["Validate"]


def test_tags_are_added_replaced_and_never_those_of_others(tmp_path):
    place = tmp_path / "tagged.jpg"
    place.write_bytes(IMAGES["tagged.jpg"]())
    embed(place)
    added = packet(embed(place, (Tag("cat", 0.5),), on_existing="append"))
    assert [name in added for name in (b">Wien<", b">red &amp; blue<", b">cat<")] == [True] * 3
    replaced = packet(embed(place, (Tag("cat", 0.5),), on_existing="overwrite"))
    assert [name in replaced for name in (b">Wien<", b">red &amp; blue<", b">cat<")] == [
        *(True, False, True)
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.bmp", lambda: encoded("BMP")),
        ("a.avif", lambda: encoded("PPM")),
        ("a.mp4", lambda: b"\0\0\0\x18ftypisom\0\0\0\0isommp42"),
        ("a.jp2", lambda: encoded("JPEG2000")),
        ("a.dng", lambda: encoded("TIFF")),
        ("a.jpg", lambda: b""),
    ],
)
def test_a_format_that_cannot_hold_tags_is_refused(name, content, tmp_path):
    place = tmp_path / name
    place.write_bytes(content())
    before = place.read_bytes()
    with pytest.raises(SidecarError, match=r"writes into JPEG, PNG, WebP .* and this is none of"):
        embed(place)
    assert place.read_bytes() == before


def damaged_xmp(data: bytes) -> bytes:
    return data.replace(b"</x:xmpmeta>", b"</x:xmpmetA>")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: damaged_xmp(IMAGES["tagged.jpg"]()), "its XMP is damaged XML"),
        (lambda: damaged_xmp(IMAGES["tagged.webp"]()), "its XMP is damaged XML"),
        (lambda: encoded("JPEG")[:300], "it is cut off"),
        (lambda: encoded("PNG")[:-20], "it is cut off"),
        (lambda: encoded("WEBP")[:-20], "it is cut off"),
        (
            lambda: encoded("JPEG", xmp=LONG_XMP),
            "a JPEG holds 65,504 bytes",
        ),
    ],
)
def test_a_damaged_file_is_not_touched(content, message, tmp_path):
    place = tmp_path / "a.jpg"
    place.write_bytes(content())
    before = place.read_bytes()
    for mode in ("skip", "append", "overwrite"):
        with pytest.raises(SidecarError, match=f"no tags can be written into it: {message}"):
            embed(place, on_existing=mode)
        assert place.read_bytes() == before


@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_damage_is_told_or_harmless(data, tmp_path):
    name = data.draw(st.sampled_from(["full.jpg", "tagged.png", "full.webp", "tagged.tif"]))
    content = bytearray(IMAGES[name]())
    place = data.draw(st.integers(0, min(len(content), 900) - 1))
    content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / name
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), place + 1]))])
    before = path.read_bytes()
    try:
        after = embed(path)
    except SidecarError:
        assert path.read_bytes() == before
    else:
        assert b"red &amp; blue" in after


def test_what_is_no_file_is_refused():
    sink = open_sink("xmp", None, SinkOptions(embed=True))
    item = Item("http://x/a.jpg", url="http://x/a.jpg")
    assert not sink.holds(item)
    with pytest.raises(SidecarError, match="this is no file"):
        sink.write(item, Annotation(item.image, 1, 1))


def test_several_pictures_in_one_file_keep_their_places(tmp_path):
    data = encoded("MPO", **frames())
    place = tmp_path / "a.jpg"
    place.write_bytes(data)
    assert pixels(embed(place)) == pixels(data)
    # Where XMP stands behind the index of the pictures, it would move them.
    segment = b"http://ns.adobe.com/xap/1.0/\0" + XMP
    moved = data.index(b"\xff\xdb")
    segment = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    place.write_bytes(data[:moved] + segment + data[moved:])
    with pytest.raises(SidecarError, match="several pictures"):
        embed(place)


@pytest.mark.parametrize("step", ["fsync", "copystat", "replace"])
def test_a_write_that_fails_leaves_the_image(step, tmp_path, monkeypatch):
    place = tmp_path / "a.png"
    place.write_bytes(encoded("PNG"))
    before = place.read_bytes()

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"{'shutil' if step == 'copystat' else 'os'}.{step}", fail)
        with pytest.raises(OutputError, match="No space left"):
            embed(place)
    assert place.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_link_is_followed_and_the_same_image_is_done_once(tmp_path):
    real = tmp_path / "real.png"
    real.write_bytes(encoded("PNG"))
    link = tmp_path / "link.png"
    link.symlink_to(real)
    sink = open_sink("xmp", None, SinkOptions(embed=True))
    items = [Item.from_path(link), Item.from_path(real)]
    assert not any(sink.holds(item) for item in items)
    sink.write(items[0], Annotation(items[0].image, 18, 12, tags=TAGS))
    with pytest.raises(SidecarError, match="another image of this run"):
        sink.write(items[1], Annotation(items[1].image, 18, 12, tags=TAGS))
    assert link.is_symlink()
    assert b"red &amp; blue" in real.read_bytes()
    assert real.stat().st_nlink == 1
