"""How well captions fit their images by a model of images and texts: CLIPScore and RefCLIPScore.

Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning": 2.5 times the cosine of image
and caption, where the caption follows "A photo depicts"; with references, the harmonic mean of that and of the highest
cosine of the caption and a reference. Published numbers are of CLIP ViT-B/32; those of another model have another scale
and are good for comparing captions, not for comparing with papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from annotary.tasks.encoding import Vectors

Floats: TypeAlias = npt.NDArray[np.float64]

PROMPT = "A photo depicts "
"""What captions follow (section 3 of the paper)."""

WEIGHT = 2.5
"""What stretches cosines of CLIP ViT-B/32 to about 0..1."""


def clip_scores(images: Vectors, captions: Vectors) -> Floats:
    """CLIPScore of each caption: float64[n], 0..2.5.

    Args:
        images: float32[n, d], unit length.
        captions: float32[n, d], unit length, of texts with the prompt.
    """
    return WEIGHT * np.maximum(_cosines(images, captions), 0.0)


def ref_clip_scores(
    scores: Floats, captions: Vectors, references: Vectors, owned: Sequence[Sequence[int]]
) -> Floats:
    """RefCLIPScore of each caption: float64[n].

    Args:
        scores: float64[n] of `clip_scores`.
        captions: float32[n, d], unit length.
        references: float32[m, d], unit length, of texts with the prompt.
        owned: Of each caption the places of its references; there is one or more.
    """
    found = np.empty(len(scores))
    for row, places in enumerate(owned):
        nearest = max(
            0.0, float((references[list(places)].astype(np.float64) @ captions[row]).max())
        )
        total = scores[row] + nearest
        found[row] = 2.0 * scores[row] * nearest / total if total > 0 else 0.0
    return found


def mismatched_scores(images: Vectors, captions: Vectors, owners: npt.NDArray[np.int64]) -> Floats:
    """CLIPScore of each caption with the next other image: what is to be expected of a caption that does not fit.

    Args:
        images: float32[n, d], those of the captions.
        captions: float32[n, d].
        owners: int64[n], which image it is.

    Returns:
        float64[n]; of nothing when all captions are of one image.
    """
    kinds, first, place = np.unique(owners, return_index=True, return_inverse=True)
    if len(kinds) < 2:
        return np.zeros(0)
    return clip_scores(images[first[(place + 1) % len(kinds)]], captions)


def _cosines(first: Vectors, second: Vectors) -> Floats:
    return np.asarray(np.einsum("nd,nd->n", first.astype(np.float64), second.astype(np.float64)))
