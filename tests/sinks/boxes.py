"""Boxes to write, and how a format of boxes is written: shared by the tests of these formats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from annotary.records import Annotation, Box, Item
from annotary.sinks import SinkOptions, open_sink

in_one_folder = settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
names = st.text(min_size=1, max_size=8)
"""Of images: also bytes that are no UTF-8, as lone surrogates."""
edges = st.floats(0, 1, width=32)


@st.composite
def annotations(draw: st.DrawFn) -> Annotation:
    """An image with boxes that lie in it."""
    width, height = draw(st.integers(1, 5000)), draw(st.integers(1, 5000))
    boxes = []
    for _ in range(draw(st.integers(0, 3))):
        left, right = sorted((draw(edges) * width, draw(edges) * width))
        top, bottom = sorted((draw(edges) * height, draw(edges) * height))
        boxes.append(Box(draw(words), draw(st.floats(0, 1)), (left, top, right, bottom)))
    sources = {"boxes": "owl@1"}
    return Annotation(draw(names), width, height, boxes=tuple(boxes), sources=sources)


several = st.lists(annotations(), unique_by=lambda found: found.image, min_size=1, max_size=4)

DOG = Annotation(
    "photos/2024/dog.jpg",
    60,
    40,
    boxes=(Box("dog", 0.875, (10.25, 5.5, 40, 30.75)), Box("cat", 0.5, (0, 0, 60, 40))),
    sources={"boxes": "owl@1"},
)
SKY = Annotation("photos/sky.jpg", 60, 40, sources={"boxes": "owl@1"})
BIRD = Annotation(
    "photos/bird.jpg",
    60,
    40,
    boxes=(Box('a "bird", <small> & red', 0.25, (1, 2, 3, 4)), Box("dog", 0.125, (5, 5, 5, 5))),
    sources={"boxes": "owl@1"},
)
ALL = (DOG, SKY, BIRD)
CLASSES = ("cat", "fish", "dog")


def item_of(annotation: Annotation) -> Item:
    """The image of a record, found below `photos`."""
    relative = annotation.image.removeprefix("photos/")
    return Item(annotation.image, path=Path(annotation.image.replace("\0", "")), relative=relative)


def write(
    form: str,
    output: Path,
    found: Iterable[Annotation],
    *,
    classes: Sequence[str] = CLASSES,
    parts: tuple[str, ...] = ("boxes",),
    is_killed: bool = False,
    **options: object,
) -> None:
    """Write records that are not there.

    Args:
        form: The format.
        output: Where.
        found: The records.
        classes: What the run asks for.
        parts: What it finds.
        is_killed: Whether it ends as a process does that is killed, after the last record.
        options: Of the sink.
    """
    sink = open_sink(form, output, SinkOptions(**options), parts)  # type: ignore[arg-type]
    if hasattr(sink, "name_classes"):
        sink.name_classes(classes)
    for annotation in found:
        item = item_of(annotation)
        if not sink.holds(item):
            sink.write(item, annotation)
    if not is_killed:
        sink.close(complete=True)
