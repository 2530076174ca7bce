"""Models in other forms: a directory of its own with the same tags, in ONNX, in 8-bit integers or in fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from annotary.export._options import ExportOptions

if TYPE_CHECKING:
    from annotary.export._model import Exported, export_model
    from annotary.export._parity import Parity

__all__ = ["ExportOptions", "Exported", "Parity", "export_model"]

_HOMES = {"Exported": "_model", "Parity": "_parity", "export_model": "_model"}


def __getattr__(name: str) -> Any:
    """Import what works on models when it is first used: the command line needs the options alone."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
