"""CLIPScore and RefCLIPScore are what their formulas say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.evaluation.reference_free import clip_scores, mismatched_scores, ref_clip_scores


def unit(generator: np.random.Generator, count: int) -> np.ndarray:
    vectors = generator.normal(size=(count, 6))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@given(st.integers(0, 1000), st.integers(1, 8))
def test_scores_are_those_of_a_loop(seed, count):
    generator = np.random.default_rng(seed)
    images, captions, references = (unit(generator, n) for n in (count, count, 2 * count))
    owned = [(2 * row, 2 * row + 1) for row in range(count)]
    scores = clip_scores(images, captions)
    with_references = ref_clip_scores(scores, captions, references, owned)
    for row in range(count):
        one = 2.5 * max(0.0, float(images[row].astype(float) @ captions[row].astype(float)))
        assert scores[row] == pytest.approx(one)
        near = max(0.0, *(float(references[place] @ captions[row]) for place in owned[row]))
        expected = 0.0 if one + near == 0 else 2 * one * near / (one + near)
        assert with_references[row] == pytest.approx(expected, abs=1e-6)


def test_captions_of_other_images_are_those_of_the_next():
    vectors = np.eye(3, dtype=np.float32)
    owners = np.array([0, 1, 2])
    assert clip_scores(vectors, vectors).tolist() == [2.5] * 3
    assert mismatched_scores(vectors, vectors, owners).tolist() == [0.0] * 3
    turned = vectors[[1, 2, 0]]
    assert mismatched_scores(vectors, turned, owners).tolist() == [2.5] * 3
    two = np.array([4, 4, 9])  # two captions of one image, whose row is the first
    assert mismatched_scores(vectors[[0, 0, 2]], vectors[[2, 0, 0]], two).tolist() == [
        2.5,
        0.0,
        2.5,
    ]
    assert mismatched_scores(vectors[:1], vectors[:1], np.array([0])).size == 0
