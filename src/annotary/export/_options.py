"""What is asked of an export. It stands alone, so that the command line can list it without what runs networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FEWEST = 8
"""Photos below which neither ranges nor differences mean anything."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What is made of a model."""

    precision: Literal["int8", "fp32"] = "int8"
    """What the new model computes in: int8 needs photos to calibrate with (--calibrate); fp32 writes networks of torch
    as ONNX, and makes int8 ones fp32. bf16 and fp16 need no export: they are options of the run."""

    calibrate: tuple[str, ...] = ()
    """A file, folder or list of photos like those that will be tagged. May be given several times."""

    samples: int = 128
    """How many of the photos calibrate; half as many others are compared on."""

    threshold: float | None = None
    """Compare tags at this threshold, 0..1, instead of the model's own."""

    def __post_init__(self) -> None:
        if self.samples < FEWEST:
            raise ValueError(f"samples must be at least {FEWEST}, but got {self.samples}")
        if self.threshold is not None and not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold must be in 0..1, but got {self.threshold}")
        if isinstance(self.calibrate, str):
            raise ValueError("calibrate must be several places, not one text")
