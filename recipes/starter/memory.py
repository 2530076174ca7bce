"""A memory of training photos: what the most similar ones are tagged with, added to the heads' logits.

After TagProp (Guillaumin et al., ICCV 2009) and 2PKNN (Verma and Jawahar, ECCV 2012), in its simplest form: soft
neighbours in the embedding. Only Corel5k's photos are kept, whose words are many and whose examples are few.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recipes.starter.bytes import ByteMatrix

Floats = npt.NDArray[np.float32]

EMBEDDING = 256
"""Numbers of the embedding."""

SHARPNESS = 20.0
"""Multiplies the cosine before the exponential; 15, 20 and 25 are equally good."""

SINK = 9e-5
"""Weight of "like none of them", which pictures of another kind fall to: exp(20 · (0.5 - 1)) twice."""

FLOOR = 1e-3
"""Added to shares before the logarithm."""

GAIN = 0.6
"""Of the memory's logits, beside the heads'."""


@dataclass(frozen=True)
class Memory:
    """Photos and their tags."""

    projection: ByteMatrix
    """``[d, 256]``: from standardised features to the embedding."""

    keys: ByteMatrix
    """``[256, m]``: embeddings of the photos, of length 1."""

    values: npt.NDArray[np.bool_]
    """``[m, w]``: which of the words each photo has."""

    columns: npt.NDArray[np.int64]
    """``[w]``: which of the learned tags the words are."""

    def logits(self, standard: Floats, learned: int) -> Floats:
        """``[n, learned]``, 0 or more, from standardised features ``[n, d]``."""
        embedding = self.projection.multiply(standard)
        embedding = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
        weights = np.exp(SHARPNESS * (self.keys.multiply(np.asarray(embedding, np.float32)) - 1))
        share = weights @ self.values.astype(np.float32) / (weights.sum(1, keepdims=True) + SINK)
        found = np.zeros((len(standard), learned), np.float32)
        found[:, self.columns] = GAIN * (np.log(share + FLOOR) - np.log(FLOOR))
        return found


def make_memory(
    standard: Floats, rows: npt.NDArray[np.bool_], targets: Floats, columns: npt.NDArray[np.int64]
) -> Memory:
    """Find the directions of the embedding and keep the photos of `rows`.

    Args:
        standard: ``[n, d]``, standardised features of all training images.
        rows: ``[n]``: the photos to keep.
        targets: ``[n, learned]``.
        columns: The learned tags to remember.
    """
    projection = make_projection(standard)
    embedding = projection.multiply(standard[rows])
    embedding = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    keys = ByteMatrix.of(np.asarray(embedding.T, np.float32))
    return Memory(projection, keys, targets[rows][:, columns] > 0, columns)


def make_projection(standard: Floats) -> ByteMatrix:
    """Return the matrix to the 256 main directions of standardised features ``[n, d]``, half whitened.

    Half whitened (divided by the root of the spread) they find neighbours best; see the card.
    """
    covariance = standard.T @ standard / len(standard)
    values, vectors = np.linalg.eigh(covariance.astype(np.float64))
    main = vectors[:, : -EMBEDDING - 1 : -1]
    signs = np.sign(main[np.abs(main).argmax(0), np.arange(EMBEDDING)])
    spread = values[: -EMBEDDING - 1 : -1]
    return ByteMatrix.of((main * signs / spread**0.25).astype(np.float32))
