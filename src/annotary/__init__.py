"""annotary annotates images: tags, labels, captions, boxes and embeddings, on your own machine.

import annotary

for photo in annotary.tag("photos"):
    if photo.ok:
        print(photo.image, [tag.name for tag in photo.tags])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.6.0"

if TYPE_CHECKING:
    from annotary.api import (
        Annotator,
        ask,
        caption,
        classify,
        detect,
        embed,
        list_models,
        load,
        match,
        tag,
    )
    from annotary.errors import AnnotaryError
    from annotary.records import (
        Annotation,
        Answer,
        Box,
        Caption,
        Decision,
        Embedding,
        Failure,
        Label,
        Match,
        Tag,
    )

__all__ = [
    "AnnotaryError",
    "Annotation",
    "Annotator",
    "Answer",
    "ask",
    "Box",
    "Caption",
    "caption",
    "classify",
    "Decision",
    "detect",
    "embed",
    "Embedding",
    "Failure",
    "Label",
    "list_models",
    "load",
    "Match",
    "match",
    "Tag",
    "tag",
]

_HOMES = {
    "Annotation": "annotary.records",
    "AnnotaryError": "annotary.errors",
    "Annotator": "annotary.api",
    "Answer": "annotary.records",
    "ask": "annotary.api",
    "Box": "annotary.records",
    "Caption": "annotary.records",
    "caption": "annotary.api",
    "classify": "annotary.api",
    "Decision": "annotary.records",
    "detect": "annotary.api",
    "embed": "annotary.api",
    "Embedding": "annotary.records",
    "Failure": "annotary.records",
    "Label": "annotary.records",
    "Match": "annotary.records",
    "match": "annotary.api",
    "Tag": "annotary.records",
    "list_models": "annotary.api",
    "load": "annotary.api",
    "tag": "annotary.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'annotary' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
