"""How a network runs: which library, on which device, with how many threads; each choice is stated with its reason."""

from __future__ import annotations

from pathlib import Path

from annotary.runtime._decision import CannotRun, Decision, Offer, decide, offers
from annotary.runtime._options import Choice, Device, Library, Precision, RuntimeOptions, Session
from annotary.runtime._processor import (
    available_cores,
    is_transformer,
    leads_elsewhere,
    precision_of,
    processor_features,
)

__all__ = [
    "CannotRun",
    "Choice",
    "Decision",
    "Device",
    "Library",
    "Offer",
    "Precision",
    "RuntimeOptions",
    "Session",
    "available_cores",
    "decide",
    "is_transformer",
    "offers",
    "open_onnx",
    "precision_of",
    "processor_features",
]


def open_onnx(
    path: Path,
    options: RuntimeOptions,
    *,
    precision: str | None = None,
    has_torch: bool = False,
    name: str = "NAME",
    origin: Path | None = None,
) -> Session:
    """An ONNX file, ready to run in ONNX Runtime or OpenVINO.

    Args:
        path: The file.
        options: How it runs.
        precision: What the file itself computes in, `fp32`, `fp16` or `int8`; read from the file when nothing is said.
        has_torch: Whether the model also has weights for torch, of which messages then speak.
        name: The model's, for messages.
        origin: The file that messages name and that decides what runs it, where `path` is a copy of it that will go.

    Raises:
        ModelError: The file is missing or is no network that the library can run.
        UsageError: What the options ask for cannot be had here; the message says what can.
    """
    from annotary.errors import ModelError

    if not path.is_file():
        raise ModelError(f"{path} is missing")
    origin = origin or path
    own = precision or precision_of(origin)
    every = offers(
        own,
        has_torch=has_torch,
        is_transformer=is_transformer(origin),
        is_elsewhere=leads_elsewhere(origin),
    )
    found = [offer for offer in every if offer.library != "torch" or not offer.precisions]
    decision = decide(options, found, name=name)
    if decision.library == "openvino":
        from annotary.runtime.openvino_runtime import OpenVinoSession

        return OpenVinoSession(path, options, decision, origin=origin)
    from annotary.runtime.onnx_runtime import OnnxSession

    return OnnxSession(path, options, decision, origin=origin)
