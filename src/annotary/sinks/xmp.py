"""XMP: keywords and a description in `photo.xmp`, or in the image itself, beside all that other programs wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from annotary.errors import UsageError
from annotary.records import Annotation
from annotary.sinks._contract import Sink, SinkOptions, TagsOfImage
from annotary.sinks._keywords import SUBJECT, is_done, with_keywords
from annotary.sinks._parts import TEXTS
from annotary.sinks._reading import read_files, unscored
from annotary.sinks._sidecars import Sidecars, read_existing
from annotary.sinks._xmp import EMPTY_SIDECAR, Packet

SUFFIXES = ()
OPTIONS = ("full_names", "embed")
CAN_APPEND = True
PARTS = TEXTS


class XmpContent:
    """A packet; one that is there keeps all that others wrote.

    Args:
        options: What happens to tags that annotary wrote before, and how files are named.
        parts: What is written: tags, labels, captions.
    """

    suffix = ".xmp"
    merges = True

    def __init__(self, options: SinkOptions, parts: tuple[str, ...]) -> None:
        self._parts = parts
        self.has_full_names = options.full_names
        self._replaces = options.on_existing == "overwrite"

    def is_done(self, place: Path) -> bool:
        """Whether the parts were written to the sidecar; one that another program wrote alone is not done."""
        content = read_existing(place)
        return content is not None and is_done(content, self._parts)

    def new(self, annotation: Annotation) -> bytes:
        """A packet with these alone."""
        return with_keywords(EMPTY_SIDECAR, annotation, self._parts, replaces=self._replaces)

    def merged(self, before: bytes, annotation: Annotation) -> bytes:
        """The packet with these in it."""
        if not before.strip():
            return self.new(annotation)
        try:
            return with_keywords(before, annotation, self._parts, replaces=self._replaces)
        except ValueError as error:
            raise ValueError(f"{error}; it is left as it is") from error


def open(  # noqa: A001
    output: Path | None, options: SinkOptions, parts: tuple[str, ...]
) -> Sink:
    """A sink that writes into a folder, beside the images, or into them."""
    if not options.embed:
        return Sidecars(output, options, XmpContent(options, parts))
    if output is not None:
        raise UsageError("--embed writes into the images themselves; leave --output out")
    from annotary.sinks._embedding import EmbeddedPackets  # which needs Pillow

    return EmbeddedPackets(options, parts)


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:  # noqa: ARG001
    """The keywords of every packet in a folder, whoever wrote them."""

    def tags_of(content: bytes) -> tuple[tuple[str, float | None], ...]:
        return unscored(Packet(content).values(SUBJECT))

    return read_files(output, XmpContent.suffix, tags_of)
