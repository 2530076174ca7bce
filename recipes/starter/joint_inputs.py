"""What the image head sees: features, ImageNet classes and tags of the tagger, on about the same scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor
from torch.nn import functional

from recipes.starter.features import Table

Floats = npt.NDArray[np.float32]

ODDS_LIMIT = 1e-4
"""Probabilities of tags are taken to be so far from 0 and 1 before their log-odds."""

_AT_ONCE = 2000


@dataclass(frozen=True)
class Normaliser:
    """Brings the three kinds of inputs to about the same scale."""

    mean: Tensor
    """``[d]``: of the features."""

    scale: Tensor
    """``[d]``."""

    class_mean: Tensor
    """``[1000]``: of the logarithms of the class probabilities."""

    class_scale: Tensor
    """One number for all."""

    odds_mean: Tensor
    """``[tags]``: of the tags' log-odds."""

    odds_scale: Tensor
    """One number for all."""

    def __call__(self, features: Tensor, logits: Tensor, scores: Tensor) -> Tensor:
        """All inputs ``[n, d + 1000 + tags]``, from raw features, class logits and scores."""
        return torch.cat(
            [
                (features.float() - self.mean) / self.scale,
                (functional.log_softmax(logits.float(), 1) - self.class_mean) / self.class_scale,
                (_odds(scores) - self.odds_mean) / self.odds_scale,
            ],
            1,
        )


def tag_scores(
    tagger: Path, tables: Mapping[str, Table], folder: Path
) -> dict[str, npt.NDArray[np.float16]]:
    """The tagger's scores ``[n, tags]`` of every view, from what its tower gave; kept in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    session: onnxruntime.InferenceSession | None = None
    for name, table in tables.items():
        path = folder / f"{name}.npy"
        if not path.exists():
            session = session or _open_heads(tagger, folder / "heads.onnx")
            parts = []
            for start in range(0, len(table.features), 256):
                rows = slice(start, start + 256)
                taken = {
                    "pooled": table.features[rows].astype(np.float32),
                    "class_logits": table.logits[rows].astype(np.float32),
                }
                parts.append(session.run(["scores"], taken)[0].astype(np.float16))
            temporary = path.with_suffix(".tmp.npy")
            np.save(temporary, np.concatenate(parts))
            temporary.replace(path)
        found[name] = np.load(path)
    return found


def _open_heads(tagger: Path, path: Path) -> onnxruntime.InferenceSession:
    """The part of the tagger that comes after its tower."""
    onnx.utils.extract_model(str(tagger), str(path), ["pooled", "class_logits"], ["scores"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options)


def make_normaliser(
    whole: Table,
    scores: npt.NDArray[np.float16],
    mean: Floats,
    scale: Floats,
    rows: npt.NDArray[np.bool_],
) -> Normaliser:
    """Measure means and spreads.

    Args:
        whole: What the tower gave for whole images.
        scores: The tags' scores of them.
        mean: ``[d]``: of the features, by which the tagger standardises them.
        scale: ``[d]``; likewise.
        rows: ``[n]``: images that decide the means of classes and tags.
    """
    classes = functional.log_softmax(torch.from_numpy(whole.logits[rows]).float(), 1)
    odds = _odds(torch.from_numpy(scores[rows]))
    return Normaliser(
        torch.from_numpy(mean),
        torch.from_numpy(scale),
        classes.mean(0),
        classes.std(),
        odds.mean(0),
        odds.std(),
    )


def normalise(
    normaliser: Normaliser,
    tables: Mapping[str, Table],
    scores: Mapping[str, npt.NDArray[np.float16]],
    report: Callable[[str], None],
) -> Tensor:
    """float16 ``[views, n, d + 1000 + tags]`` for all images in all views."""
    report("inputs of the joint embedding")
    count = len(next(iter(tables.values())).features)
    width = sum(
        len(part) for part in (normaliser.mean, normaliser.class_mean, normaliser.odds_mean)
    )
    found = torch.empty(len(tables), count, width, dtype=torch.float16)
    for number, (name, table) in enumerate(tables.items()):
        for start in range(0, count, _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            found[number, rows] = normaliser(*_taken(table, scores[name], rows)).half()
    return found


def _taken(
    table: Table,
    scores: npt.NDArray[np.float16],
    rows: slice,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.from_numpy(table.features[rows]),
        torch.from_numpy(table.logits[rows]),
        torch.from_numpy(scores[rows]),
    )


def _odds(scores: Tensor) -> Tensor:
    return torch.logit(scores.float().clamp(ODDS_LIMIT, 1 - ODDS_LIMIT))
