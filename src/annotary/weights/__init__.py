"""The models that are known by name: one directory each, data only. Of most only the card is here; some ship whole."""

from __future__ import annotations

from pathlib import Path

_CARD = "card.toml"


def known() -> dict[str, Path]:
    """The directory of every known model by the model's name."""
    here = Path(__file__).parent
    return {card.parent.name: card.parent for card in sorted(here.glob(f"*/{_CARD}"))}


def shipped() -> dict[str, Path]:
    """Of the known models those whose files are in the package, too."""
    return {name: folder for name, folder in known().items() if _has_files(folder)}


def _has_files(folder: Path) -> bool:
    return any(entry.name != _CARD and entry.is_file() for entry in folder.iterdir())
