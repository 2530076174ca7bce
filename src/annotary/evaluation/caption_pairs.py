"""Written captions beside those of people, of the images that have both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from annotary.errors import UsageError
from annotary.evaluation.caption_files import References, WrittenCaption
from annotary.evaluation.image_names import ImageNames
from annotary.records import Failure, Item
from annotary.sources._columns import place_in
from annotary.sources._rows import image_at


@dataclass(frozen=True)
class CaptionPairs:
    """Captions that are measured, with what they are measured against.

    Attributes:
        images: Those that have a written caption, each once.
        captions: What was written.
        owners: The image of each caption, by its place in `images`.
        judgements: What people think of each caption.
        references: Of each image what people wrote; nothing where people only judge.
        missing: Names of images that have references and no caption.
        unknown: Captions of other images, which are left out.
    """

    images: list[Item | Failure]
    captions: list[str]
    owners: list[int]
    judgements: list[tuple[float, ...]]
    references: list[list[str]]
    missing: list[str]
    unknown: int


def pair_captions(
    references: References, written: Sequence[WrittenCaption], *, are_judged: bool = False
) -> CaptionPairs:
    """Put written captions beside the references of their images.

    Args:
        references: What people wrote.
        written: What is measured.
        are_judged: Whether an image may have several of them, which people judged one by one.

    Raises:
        UsageError: None is of an image of the references, or an image has several.
    """
    items = list(references.items())
    names = ImageNames([item.image for item in items])
    numbers = {number: place for place, number in enumerate(getattr(references, "ids", ()))}
    found: list[tuple[int, WrittenCaption]] = []
    for one in written:
        place = numbers.get(one.image)
        if place is None and isinstance(one.image, str):
            place = names.find(one.image)
        if place is not None:
            found.append((place, one))
    if not found:
        raise UsageError(
            f"no caption is of an image of the references: they have {_told(items[0].image)} and so on,"
            f" the captions are of {_told(written[0].image)} and so on"
        )
    kept = {place: row for row, place in enumerate(dict.fromkeys(place for place, _ in found))}
    if len(kept) < len(found) and not are_judged:
        raise UsageError(f"an image has several captions: {_twice(found)}; leave the best one")
    texts: list[list[str]] = [[] for _ in items]
    for text, owner in zip(references.captions, references.owners, strict=True):
        texts[owner].append(text)
    return CaptionPairs(
        images=[items[place] for place in kept],
        captions=[one.text for _, one in found],
        owners=[kept[place] for place, _ in found],
        judgements=[one.judgements for _, one in found],
        references=[texts[place] for place in kept],
        missing=[item.image for place, item in enumerate(items) if place not in kept],
        unknown=len(written) - len(found),
    )


def judged_captions(written: Sequence[WrittenCaption], folder: str) -> CaptionPairs:
    """Captions that people judged, with nothing to compare them with.

    Args:
        written: The captions, each with the name of its image.
        folder: Where names of images start.
    """
    known: dict[str, int] = {}
    owners = [known.setdefault(str(one.image), len(known)) for one in written]
    return CaptionPairs(
        images=[image_at(place_in(name, folder), folder) for name in known],
        captions=[one.text for one in written],
        owners=owners,
        judgements=[one.judgements for one in written],
        references=[],
        missing=[],
        unknown=0,
    )


def _twice(found: Sequence[tuple[int, WrittenCaption]]) -> str:
    seen = set()
    for place, one in found:
        if place in seen:
            return _told(one.image)
        seen.add(place)
    return ""


def _told(name: str | int) -> str:
    return repr(name) if isinstance(name, str) else f"image_id {name}"
