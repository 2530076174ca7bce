r"""Tags and labels as keywords of an XMP packet, and the caption as its description, beside those of other programs.

Three lists hold the same keywords, and programs differ in which they read:

| list | spelling | read by |
|---|---|---|
| dc:subject | dog | all |
| lr:hierarchicalSubject | animal\|dog | Lightroom, darktable; Immich when there is no TagsList |
| digiKam:TagsList | animal/dog | digiKam, Immich |

Immich and digiKam read one list and pass over the others. So a list that is made anew takes over the keywords of the
others, and no TagsList is made where another program wrote keywords without one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from annotary.records import Annotation, Tag
from annotary.sinks._parts import names_in
from annotary.sinks._xmp import (
    ANNOTARY,
    DC,
    DIGIKAM,
    EMPTY_PACKET,
    EMPTY_SIDECAR,
    LIGHTROOM,
    Name,
    Packet,
    writable,
)

SUBJECT: Name = (DC, "subject")
HIERARCHY: Name = (LIGHTROOM, "hierarchicalSubject")
TAGS_LIST: Name = (DIGIKAM, "TagsList")

DESCRIPTION: Name = (DC, "description")
WRITTEN_DESCRIPTION: Name = (ANNOTARY, "writtenDescription")
"""What annotary wrote there: what is something else now, a person wrote."""

MARKS: dict[str, Name] = {
    "tags": (ANNOTARY, "tagged"),
    "labels": (ANNOTARY, "labelled"),
    "captions": (ANNOTARY, "captioned"),
}
"""Which models said each part of a record: what tells a packet that is done from one of another program or run."""

WRITTEN = {
    SUBJECT: (ANNOTARY, "writtenSubject"),
    HIERARCHY: (ANNOTARY, "writtenHierarchicalSubject"),
    TAGS_LIST: (ANNOTARY, "writtenTagsList"),
}
"""Which entries of a list annotary added. They have names of their own, as ExifTool, and so Immich, drops prefixes."""

SEPARATORS = {SUBJECT: "", HIERARCHY: "|", TAGS_LIST: "/"}
"""What stands between the category and the name."""

_WIDE = {"|": "\uff5c", "/": "\uff0f"}
"""Letters for a separator inside a name. They look alike, and NFKC, which searches apply, makes them the same."""


def is_done(content: bytes, parts: Iterable[str]) -> bool:
    """Whether a packet is one that these parts of a record ("tags", "captions") were written to.

    It is looked for without parsing, which takes a twentieth of the time: a run that goes on asks it of every image.
    """
    text = content.replace(b"\0", b"")  # which leaves ASCII of UTF-16
    prefixes = re.findall(
        rb"\sxmlns:([^\s=]+)\s*=\s*[\"']%b[\"']" % re.escape(ANNOTARY.encode()), text
    )
    return all(_has_mark(text, prefixes, MARKS[part][1].encode()) for part in parts)


def _has_mark(text: bytes, prefixes: Iterable[bytes], mark: bytes) -> bool:
    return any(re.search(rb"[<\s]%b:%b[\s=>]" % (re.escape(p), mark), text) for p in prefixes)


def with_keywords(
    content: bytes, annotation: Annotation, parts: Iterable[str], *, replaces: bool
) -> bytes:
    """A packet with the tags, labels and caption of an annotation in it; the same bytes when they are there.

    Args:
        content: What there is.
        annotation: Its tags and labels are added, and the best caption where there is no description.
        parts: Which of these were asked for.
        replaces: Whether those that annotary wrote before go. Those of others never do.

    Raises:
        ValueError: The packet is no XMP, or cannot be changed.
    """
    packet = Packet(content)
    expected: dict[Name, list[str]] = {}
    has_tags_list = packet.has(TAGS_LIST) or not any(map(packet.values, SEPARATORS))
    for name, separator in SEPARATORS.items():
        if name == TAGS_LIST and not has_tags_list:
            continue
        existing = packet.values(name)
        ours_name = WRITTEN[name]
        ours = packet.values(ours_name)
        wanted = [spelling(tag, separator) for tag in names_in(annotation)]
        if packet.has(name) and not replaces:
            # What annotary wrote and is gone, a person took out.
            taken_out = set(ours) - set(existing)
            wanted = [entry for entry in wanted if entry not in taken_out]
        gone = {entry for entry in ours if entry in existing} if replaces else set()
        gone -= set(wanted)
        kept = [entry for entry in existing if entry not in gone]
        taken = [] if packet.has(name) else _of_other_lists(packet, name)
        added = _new(wanted, [*kept, *taken], separator)
        taken = taken if added else []
        packet.change_list(name, added=[*taken, *added], removed=gone)
        packet.change_list(
            ours_name,
            added=[entry for entry in added if entry not in ours],
            removed=set(ours) - set(wanted) if replaces else (),
        )
        expected[name] = [*kept, *taken, *added]
    asked = tuple(parts)
    expected[DESCRIPTION] = _describe(packet, annotation, asked, replaces=replaces)
    _mark(packet, annotation, asked, replaces=replaces)
    after = packet.content()
    if content in (EMPTY_SIDECAR, EMPTY_PACKET):
        return after
    # What others wrote may have a form that nobody thought of: read it again before it is taken.
    again = packet if after == content else Packet(after)
    if any(again.values(name) != entries for name, entries in expected.items()):
        raise ValueError("is XMP of a form that cannot be changed safely")
    return after


def _describe(
    packet: Packet, annotation: Annotation, parts: Sequence[str], *, replaces: bool
) -> list[str]:
    """Write the best caption where there is no description, or one that annotary wrote and may replace.

    Returns:
        What the description is then.
    """
    existing, ours = packet.values(DESCRIPTION), packet.values(WRITTEN_DESCRIPTION)
    is_blank = packet.is_blank(DESCRIPTION)
    is_ours = bool(ours) and existing == ours
    if is_blank:
        stays = bool(ours) and not replaces  # a person took it out
    else:
        stays = not (is_ours and replaces)
    texts = (" ".join(caption.text.split()) for caption in annotation.captions)
    text = writable(next((text for text in texts if text), "")) if "captions" in parts else ""
    if stays or (is_ours and existing == [text]) or (is_blank and not text and not ours):
        return existing
    if packet.has(DESCRIPTION):
        packet.remove(DESCRIPTION)
    if not text:
        packet.remove(WRITTEN_DESCRIPTION)
        return []
    packet.add_text(DESCRIPTION, text)
    packet.set_text(WRITTEN_DESCRIPTION, text)
    return [text]


def _mark(packet: Packet, annotation: Annotation, parts: Sequence[str], *, replaces: bool) -> None:
    """Note which models said what was asked for."""
    for part, mark in MARKS.items():
        if part in parts:
            source = annotation.sources.get(part, "annotary")
            packet.set_text(mark, _sources(packet.values(mark), source, replaces=replaces))
        elif replaces:  # what it tells of went with the rest
            packet.remove(mark)


def spelling(tag: Tag, separator: str) -> str:
    """A tag as it stands in a list: behind its category where the list has a separator."""
    if not separator:
        return writable(tag.name)
    parts = (part for part in (tag.category, tag.name) if part)
    return separator.join(writable(part).replace(separator, _WIDE[separator]) for part in parts)


def _new(wanted: Iterable[str], existing: Sequence[str], separator: str) -> list[str]:
    """What is not there. A tag is there when an entry ends with its name: a person may have put it elsewhere."""
    known = {_key(entry) for entry in existing}
    leaves = {_leaf(entry, separator) for entry in existing}
    added = []
    for entry in wanted:
        if _key(entry) not in known and _leaf(entry, separator) not in leaves:
            known.add(_key(entry))
            added.append(entry)
    return added


def _of_other_lists(packet: Packet, name: Name) -> list[str]:
    """What a hierarchy that is made anew takes over from the lists that are there."""
    if name != HIERARCHY:
        return []
    taken = [
        "|".join(part.replace("|", _WIDE["|"]) for part in entry.split("/"))
        for entry in packet.values(TAGS_LIST)
    ]
    known = {_key(part) for entry in taken for part in entry.split("|")}
    for entry in packet.values(SUBJECT):
        if _key(entry) not in known:
            known.add(_key(entry))
            taken.append(entry)
    return taken


def _sources(before: list[str], source: str, *, replaces: bool) -> str:
    """The models, the latest last."""
    source = writable(source)
    known = [] if replaces or not before else before[0].split(" + ")
    return " + ".join(known if source in known else [*known, source])


def _leaf(entry: str, separator: str) -> str:
    return _key(entry.rpartition(separator)[2] if separator else entry)


def _key(entry: str) -> str:
    """What two entries that are the same tag share: case, underscores and blanks do not count."""
    plain = unicodedata.normalize("NFC", entry)
    return " ".join(plain.replace("_", " ").casefold().split()) or plain
