"""What a model finds in images, and where, from Python."""

from __future__ import annotations

from collections.abc import Callable

from annotary.models import Model
from annotary.tasks.text_cache import TextCache


class Detecting:
    """The abilities of a model that finds things in images."""

    _models: tuple[Model, ...]
    _cache: Callable[[], TextCache] | None
