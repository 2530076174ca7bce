"""How a model's name becomes a model that runs."""

from __future__ import annotations

from typing import Protocol, cast

from annotary import registry
from annotary.cards import Card
from annotary.errors import ModelError, UsageError
from annotary.models._finding import Found, find
from annotary.runtime import CannotRun, Choice, RuntimeOptions


class Model(Protocol):
    """What every model has; its abilities are protocols of `annotary.tasks`."""

    card: Card

    @property
    def choice(self) -> Choice:
        """What it runs on, and why."""


def load_model(name: str | Found, options: RuntimeOptions | None = None) -> Model:
    """Load a model.

    Args:
        name: As for `find`, which fetches what is not on this machine; or what `find` gave.
        options: How it runs.

    Raises:
        UsageError: The name is unknown or ambiguous; the message lists what exists.
        ModelError: The model's files are missing, damaged or do not fit its card.
    """
    options = options or RuntimeOptions()
    found = find(name, options) if isinstance(name, str) else name
    card = found.card
    family = registry.load("models", card.family.replace("_", "-"))
    found.check()
    if not hasattr(family, "load"):
        raise ModelError(f"{card.id}: {card.family} is no family of models that can be loaded")
    try:
        return cast(Model, family.load(card, found.directory, options))
    except CannotRun as error:  # the card's name is not what commands take
        raise UsageError(error.told(found.name)) from error
