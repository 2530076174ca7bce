"""What the caption decoder sees: the shipped model's own numbers for all photos with captions, in six views, once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from recipes.starter import features

Floats = npt.NDArray[np.float32]

INPUTS = ("features", "class_logits", "scores", "image_embeds")
"""Tensors of `model.onnx` that are kept, in this order."""

COCO_HELD_ASIDE = 4
"""Every so many of the captioned photos of COCO is not trained on."""

_BATCH = 8


@dataclass(frozen=True)
class Photo:
    """A photo and what people wrote of it."""

    path: Path
    """The file."""

    source: str
    """`flickr` or `coco`."""

    captions: tuple[str, ...]
    """As written."""

    is_held_aside: bool
    """Whether it is only measured on."""


def read_photos(data: Path) -> list[Photo]:
    """The photos of Flickr8k (its official split `dev` held aside) and those of COCO that have captions."""
    photos = []
    for source in ("flickr8k", "coco"):
        rows = [
            json.loads(line)
            for line in (data / source / "index.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        rows = [row for row in rows if row["captions"]]
        for number, row in enumerate(rows):
            is_aside = (
                row["split"] == "dev" if source == "flickr8k" else number % COCO_HELD_ASIDE == 0
            )
            path = data / source / row["file"]
            name = "flickr" if source == "flickr8k" else source
            photos.append(Photo(path, name, tuple(row["captions"]), is_aside))
    return photos


def compute(
    photos: Sequence[Photo], model: Path, folder: Path, say: Callable[[str], None]
) -> dict[str, dict[str, Floats]]:
    """View to name of a tensor to its numbers ``[n, d]``; what the folder has is read from there."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, seen in features.VIEWS.items():
        path = folder / f"{name}.npz"
        if not path.exists():
            say(f"{len(photos):,} photos with captions, view {name}")
            temporary = path.with_suffix(".tmp.npz")
            np.savez(temporary, allow_pickle=False, **_run(photos, model, seen))
            temporary.replace(path)
        with np.load(path) as stored:
            found[name] = {key: stored[key].astype(np.float32) for key in stored.files}
    return found


def _run(
    photos: Sequence[Photo], model: Path, seen: features.View
) -> dict[str, npt.NDArray[np.float16]]:
    session = features.open_session(_with_outputs(model))

    def one(start: int) -> list[npt.NDArray[np.float16]]:
        pictures = [
            features.view(features.load(photo.path), seen)
            for photo in photos[start : start + _BATCH]
        ]
        given = session.run(list(INPUTS), {"image": np.stack(pictures)})
        return [values.astype(np.float16) for values in given]

    with ThreadPoolExecutor(features.THREADS) as pool:
        parts = list(pool.map(one, range(0, len(photos), _BATCH)))
    return {
        name: np.concatenate([part[number] for part in parts]) for number, name in enumerate(INPUTS)
    }


def _with_outputs(path: Path) -> bytes:
    """The model with all of `INPUTS` among its outputs."""
    model = onnx.load(path)
    known = {output.name for output in model.graph.output}
    for name in INPUTS:
        if name not in known:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    data: bytes = model.SerializeToString()
    return data
