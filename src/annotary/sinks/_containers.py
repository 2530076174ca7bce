"""Where an XMP packet stands in JPEG, PNG, WebP and TIFF files, and how one is put there without touching the rest.

The places are those of ISO 16684-3 (XMP in files). This is done here and by no library, because nothing but the packet
may change: Exiv2 0.28 writes Exif blocks and comments anew, Pillow encodes the pixels, and ExifTool 12.57 lays TIFFs
out anew, writes no WebP and takes 2.4 s for a PNG of 11 MB. Other formats are ExifTool's (`_exiftool.py`).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from annotary.sinks._xmp import MAX_PACKET

_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_XMP = b"XML:com.adobe.xmp\0"
_WEBP_XMP_FLAG = 0x04
_TIFF_XMP = 700


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a file; all of them in a row are the file.

    Attributes:
        kind: What the format calls it.
        start: Its first byte.
        end: Behind its last byte.
        packet: The bytes of the packet in it; None in all but one part.
    """

    kind: bytes
    start: int
    end: int
    packet: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Container:
    """A format that can hold a packet.

    Attributes:
        name: What it is called.
        packet: The packet of a file; None when there is none.
        with_packet: A file with another packet in it.
        rest: Everything but the packet and what counts its bytes, in pieces; equal for files that differ in it alone.
        has_index: Whether the pixels are found through numbers that are written anew, so that they have to be compared,
            too. Without it equal pieces are equal pixels, and decoding 12 megapixels twice costs 0.4 s.
    """

    name: str
    packet: Callable[[BinaryIO], bytes | None]
    with_packet: Callable[[bytes, bytes], bytes]
    rest: Callable[[bytes], list[bytes]]
    has_index: bool


def container_of(beginning: bytes) -> Container | None:
    """The format of a file by its first 12 bytes; None for one that cannot hold a packet."""
    if beginning.startswith(b"\xff\xd8\xff"):
        return JPEG
    if beginning.startswith(_PNG_START):
        return PNG
    if beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP":
        return WEBP
    if beginning[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return TIFF
    return None


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise ValueError("it is cut off")
    return data


def _size_of(file: BinaryIO) -> int:
    return file.seek(0, 2)


def _slices(data: bytes, parts: Iterator[Part]) -> list[bytes]:
    return [data[part.start : part.end] for part in parts if part.packet is None]


def _packet_of_parts(file: BinaryIO, parts: Iterator[Part]) -> bytes | None:
    found = next((part.packet for part in parts if part.packet is not None), None)
    if found is None:
        return None
    start, end = found
    if end - start > MAX_PACKET:
        raise ValueError("its packet is too large")
    file.seek(start)
    return _read(file, end - start)


# --- JPEG


def _jpeg_parts(file: BinaryIO) -> Iterator[Part]:
    """Marker segments up to the first scan, and the rest as one part."""
    size = _size_of(file)
    file.seek(2)
    yield Part(b"start", 0, 2)
    place, is_found = 2, False
    while True:
        file.seek(place)
        marker = _read(file, 2)
        if marker[0] != 0xFF:
            raise ValueError("its JPEG is damaged")
        if marker[1] == 0xFF:  # filling
            yield Part(b"filling", place, place + 1)
            place += 1
            continue
        if marker[1] in (0xDA, 0xD9):
            yield Part(b"scans", place, size)
            return
        length = int.from_bytes(_read(file, 2), "big")
        end = place + 2 + length
        if length < 2 or end > size:
            raise ValueError("it is cut off")
        head = file.read(min(len(_JPEG_XMP), length - 2))
        kind = marker[1:] + head[:6]
        if marker[1] == 0xE1 and head == _JPEG_XMP and not is_found:
            is_found = True
            yield Part(kind, place, end, (place + 4 + len(_JPEG_XMP), end))
        else:
            yield Part(kind, place, end)
        place = end


def _jpeg_packet(file: BinaryIO) -> bytes | None:
    return _packet_of_parts(file, _jpeg_parts(file))


def _jpeg_with_packet(data: bytes, packet: bytes) -> bytes:
    payload = _JPEG_XMP + packet
    if len(payload) + 2 > 0xFFFF:
        most = 0xFFFF - 2 - len(_JPEG_XMP)
        raise ValueError(f"a JPEG holds {most:,} bytes of XMP, and this would be {len(packet):,}")
    segment = b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload
    parts = list(_jpeg_parts(BytesIO(data)))
    there = [part for part in parts if part.packet is not None]
    if there:
        start, end = there[0].start, there[0].end
    else:
        # Behind what has to come first: JFIF and Exif.
        leading = 1
        while parts[leading].kind[:1] == b"\xe0" or parts[leading].kind == b"\xe1Exif\0\0":
            leading += 1
        start = end = parts[leading].start
    indexes = [part.start for part in parts if part.kind.startswith(b"\xe2MPF\0")]
    if len(segment) != end - start and any(index < start for index in indexes):
        raise ValueError("it holds several pictures, whose index stands before the XMP")
    return data[:start] + segment + data[end:]


def _jpeg_rest(data: bytes) -> list[bytes]:
    return _slices(data, _jpeg_parts(BytesIO(data)))


# --- PNG


def _png_parts(file: BinaryIO) -> Iterator[Part]:
    """The chunks, and what stands behind the last one as one part."""
    size = _size_of(file)
    yield Part(b"start", 0, 8)
    place, is_found = 8, False
    while place < size:
        file.seek(place)
        length = int.from_bytes(_read(file, 4), "big")
        kind = _read(file, 4)
        end = place + 12 + length
        if end > size:
            raise ValueError("it is cut off")
        is_xmp = kind == b"iTXt" and file.read(min(length, len(_PNG_XMP))) == _PNG_XMP
        if is_xmp and not is_found:
            is_found = True
            yield Part(kind, place, end, (place + 8, place + 8 + length))
        else:
            yield Part(kind, place, end)
        place = end
        if kind == b"IEND":
            break
    if place < size:
        yield Part(b"tail", place, size)


def _png_packet(file: BinaryIO) -> bytes | None:
    chunk = _packet_of_parts(file, _png_parts(file))
    if chunk is None:
        return None
    is_compressed, rest = chunk[len(_PNG_XMP)], chunk[len(_PNG_XMP) + 2 :]
    text = rest.split(b"\0", 2)[2]
    if not is_compressed:
        return text
    unpacker = zlib.decompressobj()
    packet = unpacker.decompress(text, MAX_PACKET)
    if unpacker.unconsumed_tail:
        raise ValueError("its packet is too large")
    return packet


def _png_with_packet(data: bytes, packet: bytes) -> bytes:
    body = b"iTXt" + _PNG_XMP + b"\0\0\0\0" + packet
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    parts = list(_png_parts(BytesIO(data)))
    for part in parts:
        if part.packet is not None:
            return data[: part.start] + chunk + data[part.end :]
    header = next((part for part in parts if part.kind == b"IHDR"), None)
    if header is None:
        raise ValueError("its PNG is damaged")
    return data[: header.end] + chunk + data[header.end :]


def _png_rest(data: bytes) -> list[bytes]:
    return _slices(data, _png_parts(BytesIO(data)))


# --- WebP


def _webp_parts(file: BinaryIO) -> Iterator[Part]:
    """The chunks of the RIFF, and what stands behind it as one part."""
    size = _size_of(file)
    file.seek(4)
    riff_end = 8 + int.from_bytes(_read(file, 4), "little")
    if riff_end > size:
        raise ValueError("it is cut off")
    yield Part(b"RIFF", 0, 12)
    place, is_found = 12, False
    while place + 8 <= riff_end:
        file.seek(place)
        kind = _read(file, 4)
        length = int.from_bytes(_read(file, 4), "little")
        end = min(place + 8 + length + length % 2, riff_end)
        if place + 8 + length > riff_end:
            raise ValueError("it is cut off")
        if kind == b"XMP " and not is_found:
            is_found = True
            yield Part(kind, place, end, (place + 8, place + 8 + length))
        else:
            yield Part(kind, place, end)
        place = end
    if place < size:
        yield Part(b"tail", place, size)


def _webp_packet(file: BinaryIO) -> bytes | None:
    return _packet_of_parts(file, _webp_parts(file))


def _webp_with_packet(data: bytes, packet: bytes) -> bytes:
    chunk = b"XMP " + len(packet).to_bytes(4, "little") + packet + b"\0" * (len(packet) % 2)
    parts = list(_webp_parts(BytesIO(data)))
    if len(parts) < 2:
        raise ValueError("its WebP is damaged")
    if parts[1].kind == b"VP8X":
        head = bytearray(data[parts[1].start : parts[1].end])
        head[8] |= _WEBP_XMP_FLAG
        first = 2
    else:
        head = bytearray(_webp_header(data, parts[1]))
        first = 1
    chunks = [data[part.start : part.end] for part in parts[first:] if part.kind != b"tail"]
    places = [n for n, part in enumerate(parts[first:]) if part.packet is not None]
    if places:
        chunks[places[0]] = chunk
    else:
        chunks.append(chunk)
    body = b"WEBP" + bytes(head) + b"".join(chunks)
    if len(body) >= 2**32:
        raise ValueError("its WebP would be larger than one can be")
    tail = b"".join(data[part.start : part.end] for part in parts if part.kind == b"tail")
    return b"RIFF" + len(body).to_bytes(4, "little") + body + tail


def _webp_header(data: bytes, image: Part) -> bytes:
    """The VP8X chunk that a file of one image lacks; it says that there is XMP."""
    head = data[image.start + 8 : image.start + 18]
    flags = _WEBP_XMP_FLAG
    if image.kind == b"VP8 " and head[3:6] == b"\x9d\x01\x2a":
        width = int.from_bytes(head[6:8], "little") & 0x3FFF
        height = int.from_bytes(head[8:10], "little") & 0x3FFF
    elif image.kind == b"VP8L" and head[:1] == b"\x2f":
        bits = int.from_bytes(head[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        flags |= 0x10 if bits >> 28 & 1 else 0  # it has alpha
    else:
        raise ValueError("its WebP is damaged")
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X" + (10).to_bytes(4, "little") + bytes((flags, 0, 0, 0)) + sides


def _webp_rest(data: bytes) -> list[bytes]:
    """All but the size of the RIFF, and of VP8X all but the flag; one that only says what the image says is none."""
    parts = list(_webp_parts(BytesIO(data)))
    pieces = _slices(data, iter(parts))[1:]
    if parts[1].kind != b"VP8X":
        return pieces
    head = bytearray(pieces[0])
    head[8] &= ~_WEBP_XMP_FLAG
    is_single = len(parts) > 2 and parts[2].kind in (b"VP8 ", b"VP8L")
    if is_single:
        made = bytearray(_webp_header(data, parts[2]))
        made[8] &= ~_WEBP_XMP_FLAG
        if head == made:
            return pieces[1:]
    return [bytes(head), *pieces[1:]]


# --- TIFF


@dataclass(frozen=True, slots=True)
class _Directory:
    """The first directory of a TIFF: numbers as struct codes, entries as they stand, and the next directory."""

    order: str
    is_big: bool
    entries: dict[int, bytes]
    next: bytes

    def packed(self, entries: dict[int, bytes]) -> bytes:
        """The directory with other entries."""
        count = struct.pack(self.order + ("Q" if self.is_big else "H"), len(entries))
        return count + b"".join(entries[tag] for tag in sorted(entries)) + self.next


def _tiff_directory(file: BinaryIO) -> _Directory:
    size = _size_of(file)
    file.seek(0)
    start = _read(file, 8)
    order = "<" if start[:2] == b"II" else ">"
    is_big = b"+" in start[2:4]
    if is_big:
        (place,) = struct.unpack(order + "Q", _read(file, 8))
    else:
        (place,) = struct.unpack(order + "I", start[4:8])
    if not 8 <= place < size:
        raise ValueError("its TIFF is damaged")
    file.seek(place)
    wide = 8 if is_big else 2
    (count,) = struct.unpack(order + ("Q" if is_big else "H"), _read(file, wide))
    length = 20 if is_big else 12
    if not 1 <= count <= 0xFFFF:
        raise ValueError("its TIFF is damaged")
    table = _read(file, count * length)
    rows = [table[n : n + length] for n in range(0, len(table), length)]
    entries = {struct.unpack(order + "H", row[:2])[0]: row for row in rows}
    if len(entries) != count:
        raise ValueError("its TIFF has an entry twice")
    return _Directory(order, is_big, entries, _read(file, 8 if is_big else 4))


def _tiff_packet(file: BinaryIO) -> bytes | None:
    directory = _tiff_directory(file)
    row = directory.entries.get(_TIFF_XMP)
    if row is None:
        return None
    form = "HHQQ" if directory.is_big else "HHII"
    _, kind, count, place = struct.unpack(directory.order + form, row)
    if kind not in (1, 7) or count <= 8:
        raise ValueError("its XMP is damaged")
    if count > MAX_PACKET:
        raise ValueError("its packet is too large")
    file.seek(place)
    return _read(file, count)


def _tiff_with_packet(data: bytes, packet: bytes) -> bytes:
    """The file with packet and directory anew at its end; nothing else moves, as offsets count from the beginning."""
    directory = _tiff_directory(BytesIO(data))
    order, is_big = directory.order, directory.is_big
    place = len(data) + len(data) % 2
    table = place + len(packet) + len(packet) % 2
    if not is_big and table + 0x20000 >= 2**32:
        raise ValueError("its TIFF would be larger than one can be")
    row = struct.pack(order + ("HHQQ" if is_big else "HHII"), _TIFF_XMP, 1, len(packet), place)
    packed = directory.packed({**directory.entries, _TIFF_XMP: row})
    start = (
        data[:8] + struct.pack(order + "Q", table)
        if is_big
        else data[:4] + struct.pack(order + "I", table)
    )
    padded = packet + b"\0" * (len(packet) % 2)
    return start + data[len(start) :] + b"\0" * (len(data) % 2) + padded + packed


def _tiff_rest(data: bytes) -> list[bytes]:
    """The directory without its packet. That no byte before it changed is compared by `keeps_all`."""
    directory = _tiff_directory(BytesIO(data))
    others = {tag: row for tag, row in directory.entries.items() if tag != _TIFF_XMP}
    return [directory.packed(others)]


def keeps_all(before: bytes, after: bytes, container: Container) -> bool:
    """Whether two files differ in their packet alone."""
    if container is TIFF:
        head = 16 if b"+" in before[2:4] else 8
        if after[head : len(before)] != before[head:]:
            return False
    return container.rest(before) == container.rest(after)


JPEG = Container("JPEG", _jpeg_packet, _jpeg_with_packet, _jpeg_rest, has_index=False)
PNG = Container("PNG", _png_packet, _png_with_packet, _png_rest, has_index=False)
WEBP = Container("WebP", _webp_packet, _webp_with_packet, _webp_rest, has_index=True)
TIFF = Container("TIFF", _tiff_packet, _tiff_with_packet, _tiff_rest, has_index=True)
