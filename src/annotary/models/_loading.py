"""How a model's name becomes a model. Nothing is guessed: a name is one that is known, or says where to look."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol, cast

from annotary import registry, weights
from annotary.cards import Card, check_files, read_card
from annotary.errors import ModelError, UnknownName, UsageError
from annotary.runtime import Choice, RuntimeOptions


class Model(Protocol):
    """What every model has; its abilities are protocols of `annotary.tasks`."""

    card: Card

    @property
    def choice(self) -> Choice:
        """What it runs on, and why."""


def load_model(name: str, options: RuntimeOptions | None = None) -> Model:
    """Load a model.

    Args:
        name: `starter`, or `dir:` and the path of a model directory.
        options: How it runs.

    Raises:
        UsageError: The name is unknown or ambiguous; the message lists what exists.
        ModelError: The model's files are missing, damaged or do not fit its card.
    """
    directory = find(name)
    card = read_card(directory)
    check_files(card, directory)
    family = registry.load("models", card.family.replace("_", "-"))
    if not hasattr(family, "load"):
        raise ModelError(f"{card.id}: {card.family} is no family of models that can be loaded")
    return cast(Model, family.load(card, directory, options or RuntimeOptions()))


def find(name: str) -> Path:
    """The directory of a model.

    Raises:
        UsageError: The name is unknown or ambiguous; the message lists what exists.
    """
    known = weights.shipped()
    if name.startswith("dir:"):
        directory = name.removeprefix("dir:")
        if not directory or not os.path.isdir(directory):  # noqa: PTH112 - never raises
            raise UsageError(f"no model directory {directory!r}")
        return Path(directory)
    if name in known:
        return known[name]
    if name and os.path.isdir(name):  # noqa: PTH112
        raise UsageError(f"{name!r} is a directory, not a model's name; say --model dir:{name}")
    raise UnknownName("model", name, [*known, "dir:PATH"])
