"""Measures whether the starter's map before pooling says where things are: ``python -m recipes.starter.pointing``.

The first part of an image's vector is linear in the mean of the tower's last map, so every place of the map says how
well it fits a text. It is held against the boxes of COCO, and against the middle of the picture.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import numpy_helper

from annotary.cards import read_card
from annotary.models import starter
from annotary.runtime import RuntimeOptions
from recipes.starter import features

Floats = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]

SHIPPED = Path("src/annotary/weights/starter")
CHANNELS = 1280
"""Of the last map; its means are the first features."""

_HALF = 0.5
"""Of the way from the lowest to the highest place, and of the overlap of two boxes."""


def read_map(path: Path) -> tuple[onnxruntime.InferenceSession, str, Floats]:
    """The model with the last map as an output, its name, and what leads from its means to vectors ``[1280, 256]``."""
    model = onnx.load(path)
    arrays = {entry.name: entry for entry in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}

    def array(name: str) -> Floats:
        return np.asarray(numpy_helper.to_array(arrays[name]), np.float32)

    scale = array(makers["features"].input[1])[:CHANNELS]
    product = next(
        node
        for node in model.graph.node
        if node.op_type == "MatMul" and node.output[0].startswith("joint_")
    )
    matrix = array(makers[product.input[1]].input[0])[:CHANNELS]
    name = makers[makers["pooled"].input[0]].input[0]
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    return features.open_session(model.SerializeToString()), name, scale[:, None] * matrix


def overlap(one: Box, other: Box) -> float:
    """Shared area by area of both, 0..1; boxes are left, top, right, bottom."""
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / max(areas - width * height, 1e-9)


def place(heat: Floats) -> tuple[tuple[float, float], Box]:
    """The highest place of a map, and the box of all that is at least half as high; both as shares of the sides."""
    height, width = heat.shape
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    rows, columns = np.nonzero(heat >= heat.min() + _HALF * (heat.max() - heat.min()))
    box = (
        float(columns.min()) / width,
        float(rows.min()) / height,
        float(columns.max() + 1) / width,
        float(rows.max() + 1) / height,
    )
    return ((float(column) + 0.5) / width, (float(row) + 0.5) / height), box


def measure(data: Path, folder: Path) -> dict[str, float]:
    """How often a point is in a box of its label, and how often a box overlaps one by half.

    Args:
        data: Folder with coco.
        folder: Of the starter.
    """
    session, name, matrix = read_map(folder / "model.onnx")
    model = starter.load(
        read_card(folder), folder, RuntimeOptions(threads=1, runtime="onnxruntime")
    )
    lines = (data / "coco" / "index.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    labels = sorted({box[0] for row in rows for box in row["boxes_xywh_orig"]})
    vectors = model.embed_texts([f"a photo of a {label}" for label in labels]).vectors
    texts = dict(zip(labels, vectors[:, : matrix.shape[1]], strict=True))
    found: dict[str, list[bool]] = {}
    for row in rows:
        pixels = features.view(features.load(data / "coco" / row["file"]), features.View())
        seen = session.run([name], {"image": pixels[None]})[0][0]
        for label, boxes in _boxes(row).items():
            heat = np.einsum("chw,c->hw", seen, matrix @ texts[label])
            point, box = place(heat)
            for key, at in (("point", point), ("middle", (0.5, 0.5))):
                is_in = any(b[0] <= at[0] <= b[2] and b[1] <= at[1] <= b[3] for b in boxes)
                found.setdefault(key, []).append(is_in)
            whole, middle = (0.0, 0.0, 1.0, 1.0), (0.15, 0.15, 0.85, 0.85)
            for key, own in (("box", box), ("whole", whole), ("middle box", middle)):
                best = max(overlap(own, other) for other in boxes)
                found.setdefault(key, []).append(best >= _HALF)
    return {"pairs": len(found["point"]), **{k: float(np.mean(v)) for k, v in found.items()}}


def _boxes(row: dict[str, object]) -> dict[str, list[Box]]:
    """Label to its boxes, as shares of the sides; crowds are left out."""
    size, boxes = row["orig_size"], row["boxes_xywh_orig"]
    assert isinstance(size, list)
    assert isinstance(boxes, list)
    found: dict[str, list[Box]] = {}
    for label, left, top, width, height, is_crowd in boxes:
        if not is_crowd:
            sides = (left, top, left + width, top + height)
            box = tuple(side / size[n % 2] for n, side in enumerate(sides))
            found.setdefault(label, []).append((box[0], box[1], box[2], box[3]))
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m recipes.starter.pointing")
    parser.add_argument("--data", type=Path, required=True, help="folder with coco")
    parser.add_argument("--model", type=Path, default=SHIPPED, help="folder of the starter")
    arguments = parser.parse_args()
    for name, value in measure(arguments.data, arguments.model).items():
        print(f"{name:12} {value:.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
