"""Where an XMP packet stands in GIF, AVIF, HEIC and JPEG XL files, and what the rest of such a file is.

The places are those of ISO 16684-3 (XMP in files), ISO/IEC 23008-12 (HEIF, and with it AVIF) and ISO/IEC 18181-2
(JPEG XL). Here files are only read: the packet, to merge with, and the rest, to see that it stayed. What this cannot
follow is a `ValueError`, and the file is left alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from annotary.sinks._xmp import MAX_PACKET

BEGINNING = 256
"""How many bytes tell the format of a file; the brands of AVIF and HEIC can be many."""

_JXL_START = b"\0\0\0\x0cJXL \r\n\x87\n"
_JXL_TYPE = b"\0\0\0\x14ftypjxl \0\0\0\0jxl "
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_HEIC_BRANDS = frozenset(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1")
)
_XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_XMP_TYPE = b"application/rdf+xml"
_GIF_XMP = b"\x21\xff\x0bXMP DataXMP"
_GIF_TRAILER = b"\x01" + bytes(range(255, -1, -1)) + b"\0"
_MAX_META = 64 * 2**20
_FILM = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
"""Boxes that are one in the other, down to the places of the pieces of a film."""


def format_of(beginning: bytes) -> str | None:
    """The format of a file by its first bytes; None for one that is none of the four."""
    if beginning.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if beginning.startswith((b"\xff\x0a", _JXL_START)):
        return "JPEG XL"
    if beginning[4:8] != b"ftyp":
        return None
    listed = beginning[8 : int.from_bytes(beginning[:4], "big")]
    brands = {listed[n : n + 4] for n in range(0, len(listed), 4) if n != 4}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIC" if brands & _HEIC_BRANDS else None


def _numbers(form: str, file: BinaryIO) -> tuple[int, ...]:
    """Numbers as they stand next, with the highest byte first; none for an empty form."""
    return struct.unpack(">" + form, _read(file, struct.calcsize(">" + form)))


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise ValueError("it is cut off")
    return data


def _small(size: int) -> int:
    if size > MAX_PACKET:
        raise ValueError("its packet is too large")
    return size


# --- boxes


@dataclass(frozen=True, slots=True)
class _Box:
    """A box of ISO/IEC 14496-12: its kind, its content from `start` to `end`."""

    kind: bytes
    start: int
    end: int


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[_Box]:
    """The boxes in a range of a file."""
    while start < end:
        file.seek(start)
        (size,), kind = _numbers("I", file), _read(file, 4)
        head = 8
        if size == 1:
            (size,), head = _numbers("Q", file), 16
        elif size == 0:  # up to the end
            size = end - start
        if size < head or start + size > end:
            raise ValueError("it is cut off")
        yield _Box(kind, start + head, start + size)
        start += size


def _all_boxes(file: BinaryIO) -> list[_Box]:
    return list(_boxes(file, 0, file.seek(0, 2)))


def _content(file: BinaryIO, box: _Box) -> bytes:
    file.seek(box.start)
    return _read(file, box.end - box.start)


# --- AVIF and HEIC


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an item's bytes are.

    Attributes:
        method: 0: in the file; 1: in the box `idat`; others are not followed.
        source: 0: this file.
        extents: Beginnings and ends, in the file or in the content of `idat`.
    """

    method: int
    source: int
    extents: tuple[tuple[int, int], ...]


class _Items:
    """The items of a file: pictures, their parts, Exif, XMP.

    Args:
        file: The file.

    Raises:
        ValueError: It is damaged, or of a form that is not known.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.boxes = _all_boxes(file)
        kinds = [box.kind for box in self.boxes]
        if kinds.count(b"meta") != 1 or b"moof" in kinds:
            raise ValueError("its boxes are of a form that is not known")
        meta = self.boxes[kinds.index(b"meta")]
        if meta.end - meta.start > _MAX_META:
            raise ValueError("its list of items is too large")
        inner = BytesIO(_content(file, meta))
        self.meta = [
            (box.kind, _content(inner, box)) for box in _boxes(inner, 4, meta.end - meta.start)
        ]
        parts = dict(self.meta)
        if len(parts) < len(self.meta) and any(
            sum(kind == one for kind, _ in self.meta) > 1
            for one in (b"iinf", b"iloc", b"iref", b"idat", b"pitm")
        ):
            raise ValueError("its boxes are of a form that is not known")
        self.data = parts.get(b"idat", b"")
        self._size = file.seek(0, 2)
        self.entries = _item_entries(parts.get(b"iinf", bytes(6)))
        self.places = _item_places(parts.get(b"iloc", bytes(8)))
        self.references = _item_references(parts.get(b"iref", bytes(4)))
        self.packet = self._packet(_primary(parts.get(b"pitm")))

    def _packet(self, primary: int | None) -> int | None:
        """The item that is the packet of the main picture; other pictures may have packets of their own."""
        found = [item for item, entry in self.entries if _is_packet(entry)]
        described: dict[int, set[int]] = {}
        for kind, item, others in self.references:
            if kind == b"cdsc":
                described.setdefault(item, set()).update(others)
        of_main = [item for item in found if primary in described.get(item, ())]
        of_none = [item for item in found if not described.get(item)]
        return next(iter(of_main + of_none), None)

    def read(self, file: BinaryIO, item: int) -> bytes:
        """The bytes of an item."""
        place = self.places.get(item)
        if place is None or place.source != 0 or place.method not in (0, 1):
            raise ValueError("its items are stored in a form that is not known")
        parts = []
        for start, end in place.extents:
            if end > (len(self.data) if place.method else self._size):
                raise ValueError("it is cut off")
            if place.method == 1:
                parts.append(self.data[start:end])
            else:
                file.seek(start)
                parts.append(_read(file, end - start))
        return b"".join(parts)

    def packet_ranges(self, method: int) -> list[tuple[int, int]]:
        """Where the packet stands in the file (0) or in `idat` (1)."""
        place = None if self.packet is None else self.places.get(self.packet)
        return sorted(place.extents) if place is not None and place.method == method else []


def _primary(pitm: bytes | None) -> int | None:
    if pitm is None:
        return None
    return int.from_bytes(pitm[4:8] if pitm[0] else pitm[4:6], "big")


def _item_entries(iinf: bytes) -> list[tuple[int, bytes]]:
    """The numbers of the items, and what is said of each."""
    file = BytesIO(iinf)
    found = []
    for box in _boxes(file, 8 if iinf[0] else 6, len(iinf)):
        entry = _content(file, box)
        if box.kind != b"infe" or entry[0] not in (2, 3):
            raise ValueError("its items are listed in a form that is not known")
        found.append((int.from_bytes(entry[4 : 8 if entry[0] == 3 else 6], "big"), entry))
    if int.from_bytes(iinf[4 : 8 if iinf[0] else 6], "big") != len(found):
        raise ValueError("its list of items is damaged")
    return found


def _is_packet(entry: bytes) -> bool:
    rest = entry[10 if entry[0] == 3 else 8 :]  # behind the number and the protection
    texts = rest[4:].split(b"\0")  # name, content type, content encoding
    if rest[:4] != b"mime" or len(texts) < 2 or texts[1] != _XMP_TYPE:
        return False
    if len(texts) > 2 and texts[2]:
        raise ValueError("its XMP is compressed")
    return True


def _item_places(iloc: bytes) -> dict[int, _Place]:
    file = BytesIO(iloc)
    version, sizes, more = _numbers("B3xBB", file)
    wide = {0: "", 4: "I", 8: "Q"}
    if version > 2:
        raise ValueError("its items are stored in a form that is not known")
    offset, length, base = wide[sizes >> 4], wide[sizes & 15], wide[more >> 4]
    index = wide[more & 15] if version else ""
    number = "I" if version == 2 else "H"
    (count,) = _numbers(number, file)
    places = {}
    for _ in range(count):
        (item,) = _numbers(number, file)
        method = _numbers("H", file)[0] & 15 if version else 0
        (source,) = _numbers("H", file)
        first = sum(_numbers(base, file))
        extents = []
        for _ in range(*_numbers("H", file)):
            _numbers(index, file)
            start = first + sum(_numbers(offset, file))
            size = sum(_numbers(length, file))
            if not size:  # all of the file
                raise ValueError("its items are stored in a form that is not known")
            extents.append((start, start + size))
        if item in places:
            raise ValueError("it has an item twice")
        places[item] = _Place(method, source, tuple(extents))
    return places


def _item_references(iref: bytes) -> list[tuple[bytes, int, tuple[int, ...]]]:
    """Kind, from which item, to which items."""
    file = BytesIO(iref)
    number = "I" if iref[0] else "H"
    found = []
    for box in _boxes(file, 4, len(iref)):
        file.seek(box.start)
        item, count = _numbers(number + "H", file)
        found.append((box.kind, item, _numbers(f"{count}{number}", file)))
    return found


def _heif_packet(file: BinaryIO) -> bytes | None:
    items = _Items(file)
    if items.packet is not None:
        place = items.places.get(items.packet)
        _small(sum(end - start for start, end in place.extents) if place else 0)
        return items.read(file, items.packet)
    box = _uuid_packet(file, items.boxes)
    if box is None:
        return None
    file.seek(box.start + 16)
    return _read(file, _small(box.end - box.start - 16))


def _uuid_packet(file: BinaryIO, boxes: list[_Box]) -> _Box | None:
    """The box of its own in which a film, and so an animated AVIF, has its packet."""
    for box in boxes:
        file.seek(box.start)
        if box.kind == b"uuid" and file.read(16) == _XMP_UUID:
            return box
    return None


def _heif_rest(data: bytes) -> list[bytes]:
    """All boxes without the packet; where something stands is said by what stands there, as bytes move."""
    file = BytesIO(data)
    items = _Items(file)
    packet = items.packet
    cuts = items.packet_ranges(0)
    skipped = _uuid_packet(file, items.boxes) if packet is None else None
    stores = [box for box in items.boxes if box.kind == b"mdat"]
    pieces = []
    for box in items.boxes:
        if box.kind == b"mdat":
            kept = _without(data, box.start, box.end, cuts)
            pieces += [b"mdat", kept] if kept else []
        elif box.kind == b"moov":
            pieces += _moving(file, box, stores, cuts)
        elif box.kind != b"meta" and box != skipped:
            pieces += [box.kind, data[box.start : box.end]]
    known = (b"iinf", b"iloc", b"iref", b"idat")
    pieces += [
        part for kind, content in items.meta if kind not in known for part in (kind, content)
    ]
    pieces.append(_without(items.data, 0, len(items.data), items.packet_ranges(1)))
    pieces += [entry for item, entry in items.entries if item != packet]
    pieces += [repr(found).encode() for found in items.references if found[1] != packet]
    if sum(end - start for p in items.places.values() for start, end in p.extents) > 4 * len(data):
        raise ValueError(
            "its items are stored in a form that is not known"
        )  # and take too long to compare
    for item, place in items.places.items():
        if item != packet:
            pieces.append(repr((item, place.method, place.source, len(place.extents))).encode())
            is_known = place.source == 0 and place.method in (0, 1)
            pieces.append(items.read(file, item) if is_known else repr(place.extents).encode())
    return pieces


def _without(data: bytes, start: int, end: int, cuts: list[tuple[int, int]]) -> bytes:
    """A range of bytes without what is cut out of it."""
    kept = []
    for cut_start, cut_end in cuts:
        if start <= cut_start and cut_end <= end:
            kept.append(data[start:cut_start])
            start = cut_end
    return b"".join([*kept, data[start:end]])


def _moving(
    file: BinaryIO, box: _Box, stores: list[_Box], cuts: list[tuple[int, int]]
) -> list[bytes]:
    """What describes a film; where its pieces stand becomes which store holds them, and how far in it."""
    pieces = [box.kind]
    inner = _FILM[_FILM.index(box.kind) + 1 :]
    for child in _boxes(file, box.start, box.end):
        if inner and child.kind == inner[0]:
            pieces += _moving(file, child, stores, cuts)
        elif child.kind in (b"stco", b"co64"):
            content = _content(file, child)
            form = "I" if child.kind == b"stco" else "Q"
            count = (len(content) - 8) // struct.calcsize(">" + form)
            starts = struct.unpack_from(f">{count}{form}", content, 8)
            places = [_place_in(start, stores, cuts) for start in starts]
            pieces.append(child.kind + content[:8] + repr(places).encode())
        else:
            pieces += [child.kind, _content(file, child)]
    return [*pieces, b"end"]


def _place_in(start: int, stores: list[_Box], cuts: list[tuple[int, int]]) -> tuple[int, int]:
    for number, store in enumerate(stores):
        if store.start <= start < store.end:
            gone = sum(b - a for a, b in cuts if store.start <= a and b <= start)
            return number, start - store.start - gone
    raise ValueError("its film is damaged")


# --- JPEG XL


def _jxl_boxes(file: BinaryIO) -> list[_Box]:
    """The boxes; a file that is a bare codestream has none."""
    file.seek(0)
    return _all_boxes(file) if file.read(2) != b"\xff\x0a" else []


def _jxl_packet(file: BinaryIO) -> bytes | None:
    boxes = _jxl_boxes(file)
    for box in boxes:
        file.seek(box.start)
        if box.kind == b"brob" and file.read(4) == b"xml ":
            raise ValueError("its XMP is compressed")
    found = next((box for box in boxes if box.kind == b"xml "), None)
    if found is None:
        return None
    _small(found.end - found.start)
    return _content(file, found)


def _jxl_rest(data: bytes) -> list[bytes]:
    """The boxes without the packet; a bare codestream is what it becomes in a container."""
    if data[:2] == b"\xff\x0a":
        data = _JXL_START + _JXL_TYPE + struct.pack(">I4s", 0, b"jxlc") + data
    boxes = _all_boxes(BytesIO(data))
    packet = next((box for box in boxes if box.kind == b"xml "), None)
    return [
        part for box in boxes if box != packet for part in (box.kind, data[box.start : box.end])
    ]


# --- GIF


def _gif_packet(file: BinaryIO) -> bytes | None:
    for start, end in _gif_extensions(file):
        file.seek(start)
        if end - start > len(_GIF_XMP) and file.read(len(_GIF_XMP)) == _GIF_XMP:
            content = _read(file, _small(end - start - len(_GIF_XMP)))
            if not content.endswith(_GIF_TRAILER):
                raise ValueError("its XMP is damaged")
            return content.removesuffix(_GIF_TRAILER)
    return None


def _gif_extensions(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Beginnings and ends of the extensions."""
    file.seek(10)
    flags = _read(file, 1)[0]
    place = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while True:
        file.seek(place)
        kind = _read(file, 1)
        if kind == b"\x3b":
            return
        if kind == b"\x21":
            _read(file, 1)
        elif kind == b"\x2c":
            flags = _read(file, 9)[8]
            _read(file, (3 << (flags & 7) + 1 if flags & 0x80 else 0) + 1)
        else:
            raise ValueError("its GIF is damaged")
        while size := _read(file, 1)[0]:
            file.seek(size, 1)
        end = file.tell()
        if kind == b"\x21":
            yield place, end
        place = end


def _gif_rest(data: bytes) -> list[bytes]:
    """All without the packet. The version may become the one that has extensions."""
    version = data[:6].replace(b"87a", b"89a")
    for start, end in _gif_extensions(BytesIO(data)):
        if data.startswith(_GIF_XMP, start):
            return [version, data[6:start] + data[end:]]
    return [version, data[6:]]


PACKETS = {"GIF": _gif_packet, "AVIF": _heif_packet, "HEIC": _heif_packet, "JPEG XL": _jxl_packet}
"""The packet of a file; None when there is none."""

RESTS = {"GIF": _gif_rest, "AVIF": _heif_rest, "HEIC": _heif_rest, "JPEG XL": _jxl_rest}
"""Everything but the packet and what says where bytes stand, in pieces; equal for files that differ in it alone."""
