"""COCO captions: the captions of all images in one JSON file, as pycocotools and the tools around it read it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from annotary.sinks._coco import CocoTable, Json
from annotary.sinks._contract import SinkOptions
from annotary.sinks._journaled import JournaledTable

SUFFIXES = ()
IS_ONE_FILE = True
PARTS = ("captions",)


class CocoCaptions(CocoTable):
    """Captions, and what models make of them."""

    def __init__(self) -> None:
        super().__init__("captions of images", has_categories=False)

    def annotations_of(self, record: Json) -> Iterable[Json]:
        """The captions of an image, the best first."""
        for caption in record.get("captions", ()):
            judged = {name: caption[name] for name in ("score", "match") if name in caption}
            yield {"caption": caption["text"], **judged}


def open(  # noqa: A001
    output: Path | None,
    options: SinkOptions,
    parts: tuple[str, ...],  # noqa: ARG001
) -> JournaledTable:
    """A sink that continues the file."""
    assert output is not None
    overwrites = options.on_existing == "overwrite"
    return JournaledTable(output, CocoCaptions(), overwrites=overwrites, keeps_places=True)
