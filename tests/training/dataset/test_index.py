"""What training reads of a dataset folder is what was written."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotary.errors import UsageError
from annotary.training.dataset.index import DESCRIPTION, TOP_TAGS, TagDataset, Texts
from tests.training.dataset.making import dataset_folder

RNG = np.random.default_rng(1)
PICTURES = RNG.integers(0, 256, (7, 5, 6, 3), np.uint8)
TARGETS = RNG.random((7, 4)) < 0.5
TARGETS[2] = False


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return dataset_folder(tmp_path / "made", PICTURES, TARGETS, validation=3)


def test_targets_are_those_of_the_rows_in_any_order(folder):
    dataset = TagDataset(folder)
    assert dataset.tags == ("tag 0", "tag 1", "tag 2", "tag 3")
    assert (len(dataset.train), len(dataset.validation)) == (4, 3)
    rows = [3, 2, 0, 0, 1]
    assert np.array_equal(dataset.train.targets(rows), TARGETS[rows].astype(np.uint8))
    assert np.array_equal(dataset.validation.targets([0, 1, 2]), TARGETS[4:].astype(np.uint8))
    assert dataset.train.targets([]).shape == (0, 4)
    assert np.array_equal(dataset.train.counts(), TARGETS[:4].sum(axis=0))


def test_pictures_come_from_the_cache_and_else_from_the_original(folder):
    train = TagDataset(folder).train
    assert train.path(1).suffix == ".webp"
    with Image.open(train.path(1)) as picture:
        assert np.array_equal(np.asarray(picture), PICTURES[1])
    train.path(1).unlink()
    assert train.path(1) == folder / "originals" / "1.png"


def test_a_dataset_without_cache_names_the_originals(tmp_path):
    folder = dataset_folder(tmp_path / "made", PICTURES, TARGETS, is_cached=False)
    assert TagDataset(folder).train.path(6) == folder / "originals" / "6.png"


def test_a_split_goes_to_another_process(folder):
    train = TagDataset(folder).train
    copy = pickle.loads(pickle.dumps(train))
    assert list(copy.ids) == list(train.ids) == ["0", "1", "2", "3"]
    assert copy.path(2) == train.path(2)


def test_texts_are_a_sequence():
    texts = Texts.of(["a", "", "größer", "z"])
    assert list(texts) == ["a", "", "größer", "z"]
    assert (texts[-2], texts[1:3]) == ("größer", ["", "größer"])
    with pytest.raises(IndexError):
        texts[4]


def test_what_is_not_whole_is_refused(folder):
    (folder / TOP_TAGS).write_text("tag 0\n")
    with pytest.raises(UsageError, match=r"has tags that top_tags\.txt does not have"):
        TagDataset(folder)
    (folder / DESCRIPTION).unlink()
    with pytest.raises(UsageError, match="is no finished dataset"):
        TagDataset(folder)
