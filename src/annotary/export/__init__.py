"""Models in other forms: a directory of its own with the same tags, in ONNX, in 8-bit integers or in fp32."""

from __future__ import annotations

from annotary.export._model import Exported, ExportOptions, export_model
from annotary.export._parity import Parity

__all__ = ["ExportOptions", "Exported", "Parity", "export_model"]
