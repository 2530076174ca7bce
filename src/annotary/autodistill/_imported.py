"""autodistill itself, imported with or without roboflow, and its ontology with each class once."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from annotary.errors import MissingExtra


class _Absent(ModuleType):
    """Stands in for roboflow, which autodistill imports without asking for it, and needs for its web service alone."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError("this part of autodistill needs roboflow: pip install roboflow")


@contextmanager
def _roboflow_or_none() -> Iterator[None]:
    """Let autodistill be imported where roboflow is not installed."""
    if "roboflow" in sys.modules or importlib.util.find_spec("roboflow") is not None:
        yield
        return
    sys.modules["roboflow"] = _Absent("roboflow")
    try:
        yield
    finally:
        del sys.modules["roboflow"]


try:
    with _roboflow_or_none():
        import supervision
        from autodistill.classification import (  # type: ignore[import-untyped]
            ClassificationBaseModel,
        )
        from autodistill.detection import (  # type: ignore[import-untyped]
            CaptionOntology,
            DetectionBaseModel,
        )
except ImportError as error:
    raise MissingExtra("The adapter for autodistill", "autodistill") from error

__all__ = [
    "CaptionOntology",
    "ClassificationBaseModel",
    "DetectionBaseModel",
    "UniqueOntology",
    "supervision",
]


class UniqueOntology(CaptionOntology):  # type: ignore[misc]
    """An ontology whose classes are each there once, in the order in which they come first.

    autodistill's own lists a class once for each of its prompts, so that one class has several numbers.
    """

    def classes(self) -> list[str]:
        """The classes; their places are the ids of predictions."""
        return list(dict.fromkeys(super().classes()))
