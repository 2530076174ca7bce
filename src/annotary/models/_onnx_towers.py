"""The two towers of an image-text encoder as ONNX files, in the layout in which they are published for browsers.

Next to the checkpoint's own files a repository has `onnx/vision_model.onnx` and `onnx/text_model.onnx`, and the same in
other precisions (`_fp16`, `_int8`, `_quantized`, ...). Of CLIP's kind they give `image_embeds` and `text_embeds`, of
SigLIP's `pooler_output`. The score's scale and bias are in neither; `onnx/model.onnx`, both towers together, has them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path

from annotary.cards import Similarity
from annotary.errors import ModelError
from annotary.models._onnx_graph import read_graph, scalar_weights
from annotary.runtime import RuntimeOptions, Session

FOLDER = "onnx"
IMAGES, TEXTS, JOINT = "vision_model", "text_model", "model"

_ENDINGS: dict[str, tuple[str, ...]] = {
    "fp16": ("_fp16", ""),
    "int8": ("_int8", "_quantized", "_uint8", ""),
    "auto": ("", "_fp16", "_int8", "_quantized", "_uint8"),
}
"""What is looked for by precision, the best first; a file in fp32 runs in bf16 and fp16, too."""

CLIP_SCALE = 100.0
"""What the scale of CLIP's kind is taken for where nothing says it: training clips it there and ends at it (Radford et
al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, section 2.5)."""


def tower_files(names: Collection[str], options: RuntimeOptions) -> tuple[str, str] | None:
    """The files of both towers that fit a run, in the same precision; None when there are none."""
    for ending in _ENDINGS.get(options.precision, _ENDINGS["auto"]):
        for folder in (f"{FOLDER}/", ""):
            pair = (f"{folder}{IMAGES}{ending}.onnx", f"{folder}{TEXTS}{ending}.onnx")
            if set(pair) <= set(names):
                return pair
    return None


def output_of(session: Session, path: Path, *, is_sigmoid: bool, embeds: str) -> str:
    """The name of the output that is the embedding.

    Args:
        session: Of the tower.
        path: Of its file, for messages.
        is_sigmoid: Whether it is of SigLIP's kind, which has no projection after the pooling.
        embeds: `image_embeds` or `text_embeds`.

    Raises:
        ModelError: It gives none.
    """
    wanted = (embeds, "pooler_output") if is_sigmoid else (embeds,)
    found = next((name for name in wanted if name in session.outputs), None)
    if found is None:
        raise ModelError(
            f"{path} gives no {' or '.join(wanted)}, only {', '.join(session.outputs)}; it must be exported with its"
            " projection"
        )
    return found


def check_images(path: Path, shape: Sequence[int]) -> None:
    """Check that the image tower takes images of a shape.

    Raises:
        ModelError: It does not.
    """
    takes = read_graph(path).inputs[0].shape
    fits = len(takes) in (0, 1 + len(shape)) and all(
        has is None or has == wanted for has, wanted in zip(takes[1:], shape, strict=False)
    )
    if not fits:
        told = ["any" if axis is None else axis for axis in takes]
        raise ModelError(f"{path} takes images {told}, but its settings say {list(shape)}")


def joint_similarity(directory: Path, *, is_sigmoid: bool) -> Similarity | None:
    """What the file with both towers says of scores; None when there is no such file or it does not say it.

    Raises:
        ModelError: What it says makes no sense.
    """
    for name in (f"{FOLDER}/{JOINT}.onnx", f"{JOINT}.onnx"):
        path = directory / name
        if not path.is_file():
            continue
        found = scalar_weights(path, ("logit_scale", "logit_bias"))
        if "logit_scale" not in found or (is_sigmoid and "logit_bias" not in found):
            continue
        try:
            scale = math.exp(found["logit_scale"])
            if is_sigmoid:
                return Similarity("sigmoid", scale, found["logit_bias"])
            return Similarity("softmax", scale)
        except (ValueError, OverflowError) as error:
            raise ModelError(f"{path} makes no scores: {error}") from error
    return None
