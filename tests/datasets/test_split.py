"""The split: exact where it is made, the same where it goes on, and blind to everything but content."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.datasets._split import Split, parse_shares, position, quotas

SHARES = parse_shares("train=0.8,val=0.1,test=0.1")


def sha(i: int) -> str:
    return hashlib.sha256(str(i).encode()).hexdigest()


def positions(numbers, seed=0) -> np.ndarray:
    return np.unique([position(sha(i), seed) for i in numbers])


def test_shares_are_parsed_in_their_order():
    assert list(parse_shares(" test = 0.25, train=0.75").items()) == [
        ("test", 0.25),
        ("train", 0.75),
    ]
    thirds = parse_shares("a=0.333,b=0.333,c=0.334")
    assert sum(thirds.values()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must be like train=0.8"),
        ("train", "must be like"),
        ("train=most", "must be like"),
        ("train=0.8", "make 0.8"),
        ("train=0.8,val=0.3", "make 1.1"),
        ("train=1,val=0", "above 0"),
        ("train=nan,val=1", "above 0"),
        ("train=0.5,Train=0.5", "twice"),
        ("../x=1", "cannot be the name"),
        ("unsure=0.5,train=0.5", "cannot be the name"),
        ("labels=1", "cannot be the name"),
    ],
)
def test_what_is_no_split_is_told(text, said):
    with pytest.raises(ValueError, match=f"^split .*{said}"):
        parse_shares(text)


@pytest.mark.parametrize(
    ("sizes", "given_"),
    [
        ([10], [[8, 1, 1]]),
        ([100, 200], [[80, 10, 10], [160, 20, 20]]),
        ([3], [[1, 1, 1]]),  # every part has something to be measured on
        ([4], [[2, 1, 1]]),
        ([1, 2], [[1, 0, 0], [2, 0, 0]]),  # too few for that, and training comes first
        ([0], [[0, 0, 0]]),
        ([13, 13], [[11, 1, 1], [10, 2, 1]]),  # what rounding takes is given back
        ([13] * 10, None),
    ],
)
def test_quotas(sizes, given_):
    found = quotas(sizes, list(SHARES.values()))
    if given_ is not None:
        assert found == given_
    assert [sum(row) for row in found] == sizes
    if sizes == [13] * 10:
        assert np.sum(found, axis=0).tolist() == [104, 13, 13]


@given(
    st.lists(st.integers(0, 200), max_size=30),
    st.lists(st.integers(1, 10), min_size=1, max_size=5),
)
def test_quotas_are_near_to_the_shares(sizes, weights):
    shares = [weight / sum(weights) for weight in weights]
    for size, row in zip(sizes, quotas(sizes, shares), strict=True):
        assert sum(row) == size
        assert min(row) >= 0
        if size >= len(shares):
            assert min(row) >= 1
        if all(size * share >= 1 for share in shares):
            assert max(abs(n - size * s) for n, s in zip(row, shares, strict=True)) <= 1.0 + 1e-6


@given(st.integers(1, 300), st.integers(0, 3))
def test_a_new_label_is_split_exactly(size, seed):
    found = positions(range(size), seed)
    split = Split(SHARES)
    assert split.put_cuts({"dog": found})
    parts = [split.part("dog", where) for where in found]
    (wanted,) = quotas([size], list(SHARES.values()))
    assert [parts.count(name) for name in SHARES] == wanted


def test_images_that_come_later_move_none():
    first, every = positions(range(50)), positions(range(1000))
    split = Split(SHARES)
    split.put_cuts({"dog": first})
    before = {where: split.part("dog", where) for where in first}
    later = Split(SHARES, split.cuts)
    assert not later.put_cuts({"dog": every})
    after = {where: later.part("dog", where) for where in every}
    assert before.items() <= after.items()
    # The cuts lie as near to the shares as the first images allow, so later ones are spread nearly as asked.
    shares = [list(after.values()).count(name) / len(every) for name in SHARES]
    assert np.abs(np.subtract(shares, list(SHARES.values()))).max() < 0.1


def test_one_image_makes_no_lopsided_cuts():
    split = Split(SHARES)
    split.put_cuts({"dog": np.array([0.3])})
    assert split.cuts["dog"] == pytest.approx((0.8, 0.9))


def test_labels_that_come_later_are_split_by_themselves():
    split = Split(SHARES, {"dog": (0.5, 0.6)})
    assert split.put_cuts({"dog": positions(range(10)), "cat": positions(range(10, 20))})
    assert split.cuts["dog"] == (0.5, 0.6)
    parts = [split.part("cat", where) for where in positions(range(10, 20))]
    assert [parts.count(name) for name in SHARES] == [8, 1, 1]


def test_positions_depend_on_content_and_seed_alone():
    assert position(sha(1), 0) == position(sha(1), 0) != position(sha(1), 1)
    many = np.array([position(sha(i), 7) for i in range(4000)])
    assert many.min() >= 0.0
    assert many.max() < 1.0
    assert np.abs(np.histogram(many, 10, (0, 1))[0] - 400).max() < 100
    other = np.array([position(sha(i), 8) for i in range(4000)])
    assert abs(np.corrcoef(many, other)[0, 1]) < 0.05


def test_positions_are_exact_in_json():
    # Cuts are written to dataset.json and must be the same when they are read.
    where = position(sha(5), 0)
    assert float(repr(where)) == where
    assert (where * 2**52).is_integer()
