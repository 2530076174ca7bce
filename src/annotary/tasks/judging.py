"""What makes a decision of an image's scores, such as a policy of moderation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from annotary.records import Decision


class Judge(Protocol):
    """What makes a decision of an image's scores; a policy does."""

    @property
    def names(self) -> tuple[str, ...]:
        """The labels or tags that it looks at."""

    def decide(self, scores: Mapping[str, float]) -> Decision:
        """The decision for an image, by the scores 0..1 of all its labels or tags."""

    def settings(self) -> Mapping[str, Any]:
        """What decisions depend on."""
