"""Models: one file a family, and the folder is the registry.

A family is a module with one function; a new one is a new file (or a plugin, see `annotary.registry`):

    def load(card: Card, directory: Path, options: RuntimeOptions) -> Model
        The model of a directory, ready to run, with the abilities that its family has.
"""

from __future__ import annotations

from annotary.models._loading import Model, find, load_model

__all__ = ["Model", "find", "load_model"]
