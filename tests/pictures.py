"""Images as tasks see them."""

from __future__ import annotations

from collections.abc import Iterable

from annotary.records import Item
from annotary.tasks import Picture


def seen(items: Iterable[Item], width: int = 8, height: int = 8) -> list[Picture]:
    """Items as pictures of one size."""
    return [Picture(item, width, height) for item in items]
