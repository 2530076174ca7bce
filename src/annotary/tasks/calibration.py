"""What was learned from labelled images about a model's scores: how sure it may be, and where to cut."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from annotary.errors import UsageError


@dataclass(frozen=True, slots=True)
class Calibration:
    """Corrections of the scores of one model for one set of labels.

    Attributes:
        model: The id of the card that was calibrated.
        multi_label: Whether labels were scored independently of each other.
        temperature: Logits are divided by it; above 1 the model was too sure.
        bias: Is added to the divided logits of independent labels.
        thresholds: Label to the score from which on it is given, 0..1.
        measured: What it was measured on, and how good it is: counts and errors before and after.
    """

    model: str
    multi_label: bool = False
    temperature: float = 1.0
    bias: float = 0.0
    thresholds: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise ValueError(f"model must be the id of a card, but got {self.model!r}")
        if not isinstance(self.multi_label, bool):
            raise ValueError(f"multi_label must be true or false, but got {self.multi_label!r}")
        for name in ("thresholds", "measured"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name} must be a table, but got {getattr(self, name)!r}")
        for name in ("temperature", "bias"):
            value = getattr(self, name)
            if not _is_number(value):
                raise ValueError(f"{name} must be a number, but got {value!r}")
        if not 1e-9 <= self.temperature <= 1e9:
            raise ValueError(f"temperature must be in 1e-9..1e9, but got {self.temperature!r}")
        for name, value in self.thresholds.items():
            if not _is_number(value) or not 0.0 <= value <= 1.0:
                raise ValueError(f"the threshold of {name!r} must be in 0..1, but got {value!r}")

    def to_json(self) -> dict[str, Any]:
        """The calibration as a JSON object."""
        return {
            "model": self.model,
            "multi_label": self.multi_label,
            "temperature": self.temperature,
            "bias": self.bias,
            "thresholds": dict(self.thresholds),
            "measured": dict(self.measured),
        }


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and abs(value) <= sys.float_info.max


def read_calibration(path: Path) -> Calibration:
    """Read the file of `annotary calibrate`.

    Raises:
        UsageError: It cannot be read or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
        return Calibration(**value)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} is no calibration: {error}") from error
