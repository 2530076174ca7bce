"""The models that ship inside the package: one directory each, data only."""

from __future__ import annotations

from pathlib import Path


def shipped() -> dict[str, Path]:
    """The directory of every shipped model by the model's name."""
    here = Path(__file__).parent
    return {card.parent.name: card.parent for card in sorted(here.glob("*/card.toml"))}
