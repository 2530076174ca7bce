"""Retrieval metrics equal a full table of scores, however it is cut, and count ties against the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.evaluation.retrieval import TIE, measure_retrieval

Pairs = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]


@st.composite
def pairs(draw: st.DrawFn) -> Pairs:
    """Images and captions as unit vectors of which many are equal; every image has a caption."""
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    images, more, kinds = (
        draw(st.integers(1, 9)),
        draw(st.integers(0, 12)),
        draw(st.integers(1, 12)),
    )
    directions = generator.normal(size=(kinds, 5))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    owners = np.concatenate([np.arange(images), generator.integers(0, images, more)])
    generator.shuffle(owners)
    of_images, of_captions = (generator.integers(0, kinds, n) for n in (images, images + more))
    vectors = directions.astype(np.float32)
    return vectors[of_images], vectors[of_captions], owners


def brute(images: Any, captions: Any, owners: Any) -> tuple[list[int], list[int]]:
    """The ranks of captions and of images, from the whole table of scores."""
    scores = captions.astype(np.float64) @ images.astype(np.float64).T
    of_captions = [
        1 + sum(scores[j, i] > scores[j, own] - TIE for i in range(len(images)) if i != own)
        for j, own in enumerate(owners)
    ]
    of_images = []
    for i in range(len(images)):
        best = max(scores[j, i] for j, own in enumerate(owners) if own == i)
        others = [scores[j, i] for j, own in enumerate(owners) if own != i]
        of_images.append(1 + sum(other > best - TIE for other in others))
    return of_captions, of_images


@given(pairs(), st.integers(1, 40))
def test_ranks_equal_the_whole_table_however_it_is_cut(pair: Pairs, entries: int) -> None:
    found = measure_retrieval(*pair, entries=entries)
    of_captions, of_images = brute(*pair)
    assert found.text_to_image.ranks.tolist() == of_captions
    assert found.image_to_text.ranks.tolist() == of_images
    assert found.text_to_image.candidates == len(pair[0])
    assert found.image_to_text.candidates == len(pair[1])
    for direction, expected in (
        (found.text_to_image, of_captions),
        (found.image_to_text, of_images),
    ):
        for depth in (1, 5, 10):
            assert direction.recall(depth) == np.mean([rank <= depth for rank in expected])
        assert direction.median_rank == np.median(expected)
        assert direction.mean_reciprocal_rank == pytest.approx(np.mean([1 / r for r in expected]))
        low, high = direction.interval(1)
        assert low <= direction.recall(1) + 1e-12
        assert direction.recall(1) <= high + 1e-12
    both = (found.text_to_image.recalls, found.image_to_text.recalls)
    assert found.recall_sum == pytest.approx(sum(sum(one.values()) for one in both))


def test_a_model_that_says_the_same_of_all_comes_last():
    same = np.full((6, 4), 0.5, np.float32)
    found = measure_retrieval(same[:3], same, np.array([0, 1, 2, 0, 1, 2]))
    assert found.text_to_image.ranks.tolist() == [3] * 6
    assert found.image_to_text.ranks.tolist() == [5] * 3  # four captions are of others


def test_any_of_its_captions_finds_an_image():
    images = np.eye(3, dtype=np.float32)
    captions = np.eye(3, dtype=np.float32)[[1, 0, 1, 2]]
    found = measure_retrieval(images, captions, np.array([0, 0, 1, 2]))
    # the first caption is wrong, and ties for the place before the right one of image 1
    assert found.text_to_image.ranks.tolist() == [3, 1, 1, 1]
    assert found.image_to_text.ranks.tolist() == [1, 2, 1]


@pytest.mark.parametrize(
    ("images", "captions", "owners", "message"),
    [
        ((2, 3), (2, 4), [0, 1], "do not fit"),
        ((2, 3), (2, 3), [0], "expected"),
        ((2, 3), (2, 3), [0, 0], "every image must have a caption"),
        ((2, 3), (2, 3), [0, 2], "every image must have a caption"),
        ((0, 3), (0, 3), [], "every image must have a caption"),
    ],
)
def test_what_does_not_fit_is_refused(images, captions, owners, message):
    with pytest.raises(ValueError, match=message):
        measure_retrieval(
            np.ones(images, np.float32), np.ones(captions, np.float32), np.array(owners, np.int64)
        )
