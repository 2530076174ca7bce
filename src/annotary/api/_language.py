"""What a model says of images in words, from Python: captions, answers, and whether texts fit."""

from __future__ import annotations

from annotary.models import Model


class Language:
    """The abilities of a model that reads and writes texts about images."""

    _models: tuple[Model, ...]
