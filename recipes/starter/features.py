"""Runs the integer tower over all images in several views, once; what it gives is cached in the work folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from annotary import images, preprocess
from annotary.cards import PreprocessSpec
from recipes.starter.tables import Example

Pixels = npt.NDArray[np.uint8]

SIZE = 260
"""Side of the network's input in pixels."""

SPEC = PreprocessSpec(
    size=(SIZE, SIZE),
    fit="squash",
    resample="bicubic",
    channel_order="rgb",
    layout="nhwc",
    dtype="uint8",
)
"""How images are prepared, in training as in use: the whole image, squashed to a square."""


@dataclass(frozen=True)
class View:
    """One way to look at an image."""

    left: float = 0.0
    """Left edge of the part that is seen, as a share of the width; `top`, `right` and `bottom` likewise."""

    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0

    is_mirrored: bool = False
    """Whether left and right are exchanged."""

    side: int = 0
    """The part is shrunk to this many pixels a side before it is enlarged, like a thumbnail; 0 leaves it sharp."""


VIEWS: dict[str, View] = {
    "whole": View(),
    "whole_flipped": View(is_mirrored=True),
    "top_left": View(0.0, 0.0, 0.8, 0.8, is_mirrored=True),
    "top_right": View(0.2, 0.0, 1.0, 0.8),
    "bottom_left": View(0.0, 0.2, 0.8, 1.0),
    "bottom_right": View(0.2, 0.2, 1.0, 1.0, is_mirrored=True),
}
"""The views that the tags are learned from."""

SMALL_VIEWS: dict[str, View] = {
    "small_32": View(side=32),
    "small_48": View(side=48, is_mirrored=True),
    "small_32_middle": View(0.15, 0.1, 0.85, 0.9, side=32, is_mirrored=True),
    "small_64_middle": View(0.1, 0.1, 0.9, 0.9, side=64),
}
"""Thumbnails, which only the joint embedding is trained on besides."""

THREADS = 2
BATCH = 8


@dataclass(frozen=True)
class Table:
    """What the tower gives for all images in one view."""

    features: npt.NDArray[np.float16]
    """``[n, d]``: pooled outputs of several stages."""

    logits: npt.NDArray[np.float16]
    """``[n, 1000]``: of the ImageNet head."""


def load(path: Path) -> Pixels:
    """Decode an image file as the package does, upright RGB on white."""
    return images.decode(path.read_bytes()).pixels


def view(pixels: Pixels, seen: View) -> Pixels:
    """Return ``uint8[260, 260, 3]``: one view of a picture."""
    height, width = pixels.shape[:2]
    part = np.ascontiguousarray(
        pixels[
            round(seen.top * height) : max(1, round(seen.bottom * height)),
            round(seen.left * width) : max(1, round(seen.right * width)),
        ]
    )
    if seen.side:
        part = preprocess.fit(part, replace(SPEC, size=(seen.side, seen.side), resample="box"))
    fitted = preprocess.fit(part, SPEC)
    return np.ascontiguousarray(fitted[:, ::-1]) if seen.is_mirrored else fitted


def treat(pixels: Pixels, treatment: str) -> Pixels:
    """Take the colour out of a picture (`grey`), tone it brown (`sepia`), or leave it (`none`)."""
    if treatment == "none":
        return pixels
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    if treatment == "grey":
        return np.repeat(grey.round().astype(np.uint8)[:, :, None], 3, axis=2)
    toned = grey[:, :, None] * np.array([1.07, 0.9, 0.68], np.float32) + np.array(
        [12, 6, 0], np.float32
    )
    return toned.clip(0, 255).round().astype(np.uint8)


def compute(
    examples: Sequence[Example],
    tower: Path,
    folder: Path,
    report: Callable[[str], None],
    views: Mapping[str, View] = VIEWS,
) -> dict[str, Table]:
    """Return the table of every view; what is already in the folder is read from there."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {}
    session: onnxruntime.InferenceSession | None = None
    for name, seen in views.items():
        path = folder / f"{name}.npz"
        if not path.exists():
            session = session or open_session(tower)
            report(f"features of {len(examples):,} images, view {name}")
            features, logits = _run(session, examples, seen)
            temporary = path.with_suffix(".tmp.npz")
            np.savez(temporary, features=features, logits=logits)
            temporary.replace(path)
        stored = np.load(path)
        tables[name] = Table(stored["features"], stored["logits"])
    return tables


def open_session(model: Path | bytes) -> onnxruntime.InferenceSession:
    """Open a model for one thread a call, so that several calls can run side by side."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _run(
    session: onnxruntime.InferenceSession, examples: Sequence[Example], seen: View
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    def one(start: int) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]:
        batch = [
            view(treat(load(example.path), example.treatment), seen)
            for example in examples[start : start + BATCH]
        ]
        features, logits = session.run(["features", "logits"], {"image": np.stack(batch)})
        return features.astype(np.float16), logits.astype(np.float16)

    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(one, range(0, len(examples), BATCH)))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
