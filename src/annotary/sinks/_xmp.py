"""Keywords and the description in an XMP packet, changed in place: every byte that is not about them stays as it is.

XMP is RDF in XML (ISO 16684-1). A parser that writes a document anew changes prefixes, quotes, comments or spaces that
other programs put there; so the document is only read by a parser (expat), which says at which byte everything stands,
and new text is put in at these places.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from annotary.sinks._xml import NOT_XML

Name: TypeAlias = tuple[str, str]
"""A name's namespace and its local part."""

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
LIGHTROOM = "http://ns.adobe.com/lightroom/1.0/"
DIGIKAM = "http://www.digikam.org/ns/1.0/"
ANNOTARY = "urn:annotary:xmp:1.0/"

MAX_PACKET = 16 * 2**20
"""Bytes of a packet that is read; most have some kilobytes, those with masks and faces some megabytes."""

PREFIXES = {DC: "dc", LIGHTROOM: "lr", DIGIKAM: "digiKam", ANNOTARY: "annotary"}
"""As programs write them; XMP gives no meaning to prefixes, but some programs do."""

_EMPTY = """<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="annotary">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
 </rdf:RDF>
</x:xmpmeta>
"""

EMPTY_SIDECAR = ('<?xml version="1.0" encoding="UTF-8"?>\n' + _EMPTY).encode()
"""A sidecar without a property."""

EMPTY_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n' + _EMPTY + '<?xpacket end="w"?>'
).encode()
"""A packet without a property, for image files."""

_CONTAINERS = frozenset((RDF, local) for local in ("Bag", "Seq", "Alt"))
_START_TAG = re.compile(rb"<[^\s/>]+(?:[^\"'>]|\"[^\"]*\"|'[^']*')*>")
_ATTRIBUTE = re.compile(rb"\s+([^\s=]+)\s*=\s*(\"[^\"]*\"|'[^']*')")
_DECLARED = re.compile(rb"^\s*<\?xml[^>]*?encoding\s*=\s*[\"']([A-Za-z0-9._-]+)[\"']")
_ENCODINGS = ("utf-8", "ascii", "iso8859-1", "iso8859-15", "cp1252")


def writable(name: str) -> str:
    """A name with the replacement character for each that XML cannot hold (control characters, lone surrogates)."""
    return NOT_XML.sub("\ufffd", name)


@dataclass(slots=True, eq=False)
class _Element:
    """An element, and the bytes where it stands.

    Attributes:
        name: Namespace and local part.
        written: The name as it is written, with its prefix.
        start: Of the start tag.
        open_end: Behind the start tag.
        end: Behind the end tag.
        is_empty: Whether it is one tag.
        prefixes: The namespaces that prefixes stand for inside.
        attributes: Values; of RDF and descriptions alone.
        places: Where attributes stand, with the blanks before them.
        children: Elements in it.
        text: Of a property or an entry of a list: all text in it, also in its children.
    """

    name: Name
    written: str
    start: int
    open_end: int
    is_empty: bool
    prefixes: Mapping[str, str]
    attributes: dict[Name, str]
    places: dict[Name, tuple[int, int]]
    end: int = 0
    children: list[_Element] = field(default_factory=list)
    text: list[str] = field(default_factory=list)


class Packet:
    """An XMP document whose lists can be changed.

    Args:
        content: The document, with or without the packet wrapper or a byte order mark.

    Raises:
        ValueError: It is no XMP, is damaged, or has a document type, which XMP forbids and which could hide anything.
    """

    def __init__(self, content: bytes) -> None:
        if len(content) > MAX_PACKET:
            raise ValueError(f"is larger than {MAX_PACKET:,} bytes")
        self._content = content
        self._codec, self._mark, self._data = _as_utf8(content)
        self._edits: list[tuple[int, int, bytes]] = []
        self._new: list[str] = []
        self._rdf = _parsed(self._data)
        self._descriptions = [
            child for child in self._rdf.children if child.name == (RDF, "Description")
        ]

    def values(self, name: Name) -> list[str]:
        """The entries of a list, or the one value of a property that is no list; empty when there is none."""
        found = [
            description.attributes[name]
            for description in self._descriptions
            if name in description.attributes
        ]
        for element in self._elements(name):
            found += [text for _, text in _entries(element)]
        return found

    def has(self, name: Name) -> bool:
        """Whether there is such a property."""
        in_attributes = any(name in found.attributes for found in self._descriptions)
        return in_attributes or bool(self._elements(name))

    def is_blank(self, name: Name) -> bool:
        """Whether a property says nothing: there is no text in it, nor an address, a comment or the like."""
        if any(value.strip() for value in self.values(name)):
            return False
        inside = [self._data[found.start : found.end] for found in self._elements(name)]
        if any(mark in data for data in inside for mark in (b"<!", b"<?")):
            return False
        attributes = (found.group(1) for data in inside for found in _ATTRIBUTE.finditer(data))
        return all(one.startswith(b"xmlns") or one == b"xml:lang" for one in attributes)

    def change_list(self, name: Name, *, added: Iterable[str], removed: Iterable[str] = ()) -> None:
        """Put entries behind those of a list, and take others out; once for each list.

        Args:
            name: The list; it is made where there is none and something is added.
            added: New entries.
            removed: Entries that go, as they are written.
        """
        gone, new = set(removed), list(added)
        for element in self._elements(name):
            for entry, text in _entries(element):
                if text in gone and entry is not element:
                    start = _blanks_before(self._data, entry.start)
                    self._edits.append((start, entry.end, b""))
        if not new:
            return
        for element in self._elements(name):
            container = next((c for c in element.children if c.name in _CONTAINERS), None)
            if container is not None:
                self._put_into(container, new)
                return
        # A value that is no list becomes one, with the value first.
        kept = self.values(name)
        for description in self._descriptions:
            if name in description.places:
                self._edits.append((*description.places[name], b""))
        for element in self._elements(name):
            self._check_plain(element)
            self._edits.append((element.start, element.end, b""))
        self._new.append(_new_list(name, [*kept, *new]))

    def set_text(self, name: Name, value: str) -> None:
        """Give a property one value."""
        if self.values(name) == [value]:
            return
        for description in self._descriptions:
            if name in description.places:
                self._edits.append((*description.places[name], b""))
        elements = self._elements(name)
        for element in elements[:1]:
            self._fill(element, _escaped(value))
        for element in elements[1:]:
            self._edits.append((element.start, element.end, b""))
        if not elements:
            tag = f"{PREFIXES[name[0]]}:{name[1]}"
            self._new.append(f"<{tag}>{_escaped(value)}</{tag}>")

    def add_text(self, name: Name, value: str) -> None:
        """Add a property that there is not, of one text for readers of all languages."""
        tag = f"{PREFIXES[name[0]]}:{name[1]}"
        entry = f'<rdf:li xml:lang="x-default">{_escaped(value)}</rdf:li>'
        self._new.append(f"<{tag}>\n <rdf:Alt>\n  {entry}\n </rdf:Alt>\n</{tag}>")

    def remove(self, name: Name) -> None:
        """Take a property out."""
        for description in self._descriptions:
            if name in description.places:
                self._edits.append((*description.places[name], b""))
        for element in self._elements(name):
            self._edits.append((_blanks_before(self._data, element.start), element.end, b""))

    def content(self) -> bytes:
        """The document with all changes; as it was when there are none."""
        if self._new:
            self._add_description()
        if not self._edits:
            return self._content
        data = self._data
        for start, end, new in sorted(self._edits, key=lambda edit: edit[:2], reverse=True):
            data = data[:start] + new + data[end:]
        text = data.decode("utf-8")
        return self._mark + text.encode(self._codec, "xmlcharrefreplace")

    def _elements(self, name: Name) -> list[_Element]:
        return [
            child
            for description in self._descriptions
            for child in description.children
            if child.name == name
        ]

    def _indent(self, element: _Element) -> str:
        """The line end and the blanks before an element; no blank line."""
        blanks = self._data[_blanks_before(self._data, element.start) : element.start].decode()
        line_end = "\r\n" if "\r\n" in blanks else "\n"
        _, found, indent = blanks.rpartition(line_end)
        return found + indent

    def _put_into(self, container: _Element, names: list[str]) -> None:
        """Put entries behind the last one, with the indent that the others have."""
        prefix, colon, _ = container.written.rpartition(":")
        tag = f"{prefix}{colon}li"
        entries = [child for child in container.children if child.name == (RDF, "li")]
        indent = self._indent(entries[0] if entries else container)
        indent = indent if entries else indent + " "
        lines = "".join(f"{indent}<{tag}>{_escaped(name)}</{tag}>" for name in names)
        if container.is_empty:
            self._fill(container, f"{lines}{indent[:-1]}")
            return
        place = max((entry.end for entry in entries), default=container.open_end)
        self._edits.append((place, place, lines.encode()))

    def _fill(self, element: _Element, inside: str) -> None:
        """Write what is between the tags of an element, whose start tag stays, as it may declare prefixes."""
        if element.is_empty:
            opening = self._data[element.start : element.open_end - 2].rstrip().decode()
            text = f"{opening}>{inside}</{element.written}>"
            self._edits.append((element.start, element.end, text.encode()))
        else:
            end = self._data.rindex(b"</", element.start, element.end)
            self._edits.append((element.open_end, end, inside.encode()))

    def _check_plain(self, element: _Element) -> None:
        """Refuse to make a list of a value that is more than text, as the rest would be lost."""
        tag = self._data[element.start : element.open_end]
        names = [found.group(1) for found in _ATTRIBUTE.finditer(tag)]
        has_qualifiers = any(not name.startswith(b"xmlns") for name in names)
        inside = self._data[element.open_end : element.end]
        if has_qualifiers or element.children or b"<!" in inside or b"<?" in inside:
            raise ValueError(f"has keywords in a form that is not known ({element.written})")

    def _add_description(self) -> None:
        """Write new properties in a description of their own, which says the same of what it is about."""
        rdf = self._rdf
        about = ""
        if self._descriptions:
            attributes = self._descriptions[0].attributes
            about = attributes.get((RDF, "about"), attributes.get(("", "about"), ""))
        used = [
            f'xmlns:{prefix}="{uri}"'
            for uri, prefix in PREFIXES.items()
            if any(line.startswith(f"<{prefix}:") for line in self._new)
        ]
        if rdf.prefixes.get("rdf") != RDF:
            used.insert(0, f'xmlns:rdf="{RDF}"')
        indent = self._indent(rdf.children[0] if rdf.children else rdf) or "\n"
        indent = indent if rdf.children else indent + " "
        inner = indent + " "
        new = sorted(self._new, key=lambda line: line.startswith(f"<{PREFIXES[ANNOTARY]}:"))
        properties = "".join(inner + line.replace("\n", inner) for line in new)
        head = f"<rdf:Description rdf:about={quoteattr(about)}"
        block = head + "".join(f"{inner}   {space}" for space in used)
        block = f"{indent}{block}>{properties}{indent}</rdf:Description>"
        if rdf.is_empty:
            self._fill(rdf, f"{block}{indent[:-1]}")
            return
        place = max((child.end for child in rdf.children), default=rdf.open_end)
        self._edits.append((place, place, block.encode()))


def _entries(element: _Element) -> list[tuple[_Element, str]]:
    """The entries of a property with their text; a property that is no list is its own."""
    containers = [child for child in element.children if child.name in _CONTAINERS]
    if not containers:
        text = "".join(element.text)
        return [(element, text)] if text.strip() else []
    return [
        (entry, "".join(entry.text))
        for container in containers
        for entry in container.children
        if entry.name == (RDF, "li")
    ]


def _new_list(name: Name, values: list[str]) -> str:
    tag = f"{PREFIXES[name[0]]}:{name[1]}"
    lines = "".join(f"\n  <rdf:li>{_escaped(value)}</rdf:li>" for value in values)
    return f"<{tag}>\n <rdf:Bag>{lines}\n </rdf:Bag>\n</{tag}>"


def _escaped(text: str) -> str:
    return escape(writable(text), {"\r": "&#13;", "\n": "&#10;"})


def _blanks_before(data: bytes, place: int) -> int:
    """Where the blanks before a place begin."""
    return len(data[:place].rstrip(b" \t\r\n"))


def _as_utf8(content: bytes) -> tuple[str, bytes, bytes]:
    """A document's encoding, its byte order mark, and the document in UTF-8.

    Raises:
        ValueError: It is in an encoding that is not known, or has bytes that are wrong in it.
    """
    marks = {
        codecs.BOM_UTF8: "utf-8",
        codecs.BOM_UTF16_LE: "utf-16-le",
        codecs.BOM_UTF16_BE: "utf-16-be",
    }
    mark = next((mark for mark in marks if content.startswith(mark)), b"")
    if mark:
        codec = marks[mark]
    else:
        declared = _DECLARED.match(content[:200])
        name = declared.group(1).decode() if declared else "utf-8"
        try:
            codec = codecs.lookup(name).name
        except LookupError:
            codec = name
        if codec not in _ENCODINGS:
            raise ValueError(f"is in the encoding {name}, which cannot be changed")
    body = content.removeprefix(mark)
    try:
        text = body.decode(codec)
        data = text.encode("utf-8")
    except UnicodeError as error:
        raise ValueError(f"is damaged: it is no {codec.upper()} text") from error
    if text.encode(codec) != body:
        raise ValueError(f"is in a form of {codec.upper()} that would not come back the same")
    return codec, mark, data


class _Reading:
    """What expat tells, kept as far as entries of lists: RDF, descriptions, properties, containers, entries."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._parser = expat.ParserCreate("UTF-8")
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._above: list[Mapping[str, str]] = [{}]
        self._kept: list[_Element] = []
        self._depth = 0
        self.found: list[_Element] = []

    def read(self) -> None:
        """Read all.

        Raises:
            ValueError: It is damaged.
        """
        try:
            self._parser.Parse(self._data, True)  # noqa: FBT003 - it takes no names
        except expat.ExpatError as error:
            raise ValueError(f"is damaged XML: {error}") from error

    def _start(self, written: str, raw: dict[str, str]) -> None:
        if self._kept:
            self._depth += 1
            if self._depth >= 5:  # inside of an entry
                return
        prefixes = self._above[-1]
        if raw:
            declared = {
                name.partition(":")[2]: uri
                for name, uri in raw.items()
                if name == "xmlns" or name.startswith("xmlns:")
            }
            prefixes = {**prefixes, **declared} if declared else prefixes
        name = _qualified(written, prefixes)
        if self._kept or name == (RDF, "RDF"):
            element = self._element(name, written, raw, prefixes)
            if self._kept:
                self._kept[-1].children.append(element)
            else:
                self.found.append(element)
            self._kept.append(element)
        self._above.append(prefixes)

    def _element(
        self, name: Name, written: str, raw: dict[str, str], prefixes: Mapping[str, str]
    ) -> _Element:
        place = self._parser.CurrentByteIndex
        if not raw:
            end = self._data.index(b">", place) + 1
            is_empty = self._data[end - 2] == ord("/")
            return _Element(name, written, place, end, is_empty, prefixes, {}, {})
        tag = _START_TAG.match(self._data, place)
        if tag is None:
            raise ValueError("is damaged XML: a tag cannot be found again")
        is_empty = tag.group().endswith(b"/>")
        if len(self._kept) >= 2:  # attributes matter of descriptions alone
            return _Element(name, written, place, tag.end(), is_empty, prefixes, {}, {})
        values = {_attribute(key, prefixes): value for key, value in raw.items()}
        places = {
            _attribute(found.group(1).decode(), prefixes): (
                place + found.start(),
                place + found.end(),
            )
            for found in _ATTRIBUTE.finditer(tag.group())
        }
        return _Element(name, written, place, tag.end(), is_empty, prefixes, values, places)

    def _end(self, written: str) -> None:
        if self._kept and self._depth >= 5:
            self._depth -= 1
            return
        self._above.pop()
        if not self._kept:
            return
        element = self._kept.pop()
        self._depth -= 1 if self._kept else 0
        if element.is_empty:
            element.end = element.open_end
        else:
            element.end = self._data.index(b">", self._parser.CurrentByteIndex) + 1

    def _text(self, part: str) -> None:
        for element in (self._kept[2:3], self._kept[4:5]):
            if element:
                element[0].text.append(part)

    def _refuse(self, *_: object) -> None:
        raise ValueError("has a document type, which XMP does not allow")


def _parsed(data: bytes) -> _Element:
    """The RDF of a document."""
    reading = _Reading(data)
    reading.read()
    if len(reading.found) != 1:
        what = "more than one rdf:RDF" if reading.found else "no rdf:RDF"
        raise ValueError(f"is no XMP: it has {what}")
    return reading.found[0]


def _qualified(written: str, prefixes: Mapping[str, str]) -> Name:
    """The name of an element."""
    prefix, _, local = written.rpartition(":")
    return prefixes.get(prefix, ""), local


def _attribute(written: str, prefixes: Mapping[str, str]) -> Name:
    """The name of an attribute, which without a prefix is in no namespace."""
    prefix, _, local = written.rpartition(":")
    return (prefixes.get(prefix, "") if prefix else ""), local
