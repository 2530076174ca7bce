"""Copies, nearness to the validation set, and the split, each against what its rule says in plain words."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from annotary.training.dataset.near import Copy, copies, near_any
from annotary.training.dataset.splitting import validation_rows

HASHES = st.lists(st.one_of(st.none(), st.integers(0, 63)), max_size=12)


def test_tags_go_to_the_first_of_equal_files_and_pictures():
    found = copies([b"a", b"b", b"a", b"c", b"d", b"b"], [1, 3, 1, 1, None, 3], [99] * 6, 0)
    assert found == {2: Copy(0, -1), 3: Copy(0, 0), 5: Copy(1, -1)}
    found = copies([b"a", b"b", b"c", b"b"], [0, 1, 3, 1], [99] * 4, 1)
    # 3 is near to 1, which went: whatever goes is near to one that stays.
    assert found == {1: Copy(0, 1), 3: Copy(0, -1)}


def test_a_photo_and_itself_in_grey_are_two():
    assert copies([b"a", b"b"], [5, 5], [100, 0], 0) == {}
    assert copies([b"a", b"b"], [5, 5], [100, 12], 0) == {1: Copy(0, 0)}
    assert near_any([5], [5], 0) == {0: (0, 0)}


@given(HASHES, st.integers(0, 3))
def test_copies_are_those_near_to_one_that_stays(hashes, most):
    files = [bytes([place]) for place in range(len(hashes))]
    found = copies(files, hashes, [99] * len(hashes), most)
    kept: list[int] = []
    for place, value in enumerate(hashes):
        near = [k for k in kept if value is not None and hashes[k] is not None
                and (value ^ hashes[k]).bit_count() <= most]  # fmt: skip
        assert (place in found) == bool(near)
        if near:
            assert found[place].of in near
        else:
            kept.append(place)


@given(HASHES, HASHES, st.integers(0, 3))
def test_near_any_finds_the_nearest(hashes, others, most):
    found = near_any(hashes, others, most)
    for place, value in enumerate(hashes):
        bits = [
            (value ^ other).bit_count()
            for other in others
            if value is not None and other is not None and (value ^ other).bit_count() <= most
        ]
        assert (found[place][1] if place in found else None) == min(bits, default=None)


ROWS = st.lists(st.sets(st.integers(0, 5), max_size=4), min_size=2, max_size=30)


@settings(max_examples=60)
@given(ROWS, st.integers(0, 12), st.integers(0, 3), st.integers(0, 5))
def test_the_split_keeps_its_promises(rows, size, positives, seed):
    lists = [sorted(one) for one in rows]
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in lists])]).astype(np.int64)
    tags = np.array([tag for one in lists for tag in one], np.int32)
    chosen = validation_rows(offsets, tags, 6, size, positives=positives, seed=seed)
    assert len(chosen) == min(size, len(rows) - 1) == len(set(chosen.tolist()))
    assert np.array_equal(chosen, np.sort(chosen))
    again = validation_rows(offsets, tags, 6, size, positives=positives, seed=seed)
    assert np.array_equal(chosen, again)


def test_rare_tags_come_in_first_and_are_never_lost_to_training():
    rng = np.random.default_rng(0)
    lists = [[0] for _ in range(400)]
    for tag in range(1, 8):
        for row in rng.choice(400, 12, replace=False).tolist():
            lists[row].append(tag)
    lists[17].append(8)  # one image alone has it
    lists = [sorted(one) for one in lists]
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in lists])]).astype(np.int64)
    tags = np.array([tag for one in lists for tag in one], np.int32)
    for seed in range(5):
        chosen = validation_rows(offsets, tags, 9, 60, positives=5, seed=seed).tolist()
        counts = np.bincount([tag for row in chosen for tag in lists[row]], minlength=9)
        assert len(chosen) == 60
        assert (counts[:8] >= 5).all()
        assert counts[8] == 0
