"""The catalogue: a Lance table of images with all that was said of them, which can be searched and added to."""

from __future__ import annotations

from annotary.catalog._deciding import Filled
from annotary.catalog._filling import Filling, fill
from annotary.catalog._note import Note
from annotary.catalog._table import Catalog, check_installed, is_catalog

__all__ = ["Catalog", "Filled", "Filling", "Note", "check_installed", "fill", "is_catalog"]
