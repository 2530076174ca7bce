"""Searching and drawing texts, with a network that is a table. The tokens of beams are compared with transformers' in
`test_blip_parity.py`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotary.models._decoding import guard, log_softmax, write
from annotary.models._generation import Decoding

WORDS = 12
END = 2


class Table:
    """A network whose next token depends on the image and on the last two tokens; it checks how it is called."""

    def __init__(self, seed: int = 0, images: int = 1, spread: float = 2.0) -> None:
        generator = np.random.default_rng(seed)
        self.logits = (spread * generator.normal(size=(images, WORDS, WORDS, WORDS))).astype("f4")
        self.rows = 0

    def begin(self, tokens):
        self.texts, self.images = tokens, np.arange(len(tokens))
        return self._next()

    def follow(self, tokens, earlier):
        assert earlier.min() >= 0
        assert earlier.max() < len(self.texts)
        self.texts = np.concatenate([self.texts[earlier], tokens[:, None]], axis=1)
        self.images = self.images[earlier]
        assert (np.diff(self.images) >= 0).all()  # rows of one image side by side
        return self._next()

    def _next(self):
        self.rows += len(self.texts)
        last = self.texts[:, -2] if self.texts.shape[1] > 1 else self.texts[:, -1]
        return self.logits[self.images, last, self.texts[:, -1]]

    def score(self, image: int, text: tuple[int, ...]) -> float:
        """The mean log-probability of what is behind the first token."""
        total = 0.0
        for place in range(1, len(text)):
            last = text[place - 2] if place > 1 else text[0]
            row = self.logits[image, last, text[place - 1]][None]
            total += float(log_softmax(row)[0, text[place]])
        return total / (len(text) - 1)


def starts(images: int) -> np.ndarray:
    return np.full((images, 1), 1)


def whole(found, ends=True):
    return (1, *found.tokens, *([END] if found.is_ended and ends else []))


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(0, 3), st.integers(2, 9))
@settings(max_examples=60, deadline=None)
def test_texts_keep_to_what_they_are_told(seed, beams, no_repeat, most):
    decoding = Decoding(
        beams, min_length=min(4, most), max_length=most, no_repeat=no_repeat, count=beams
    )
    table = Table(seed, images=3)
    for image, found in enumerate(write(table, starts(3), decoding, END)):
        assert len(found) == len({one.tokens for one in found}) == beams
        for one in found:
            text = whole(one)
            assert END not in one.tokens
            assert len(text) == most or one.is_ended
            assert decoding.min_length < len(text) <= most or len(text) == most
            assert one.score == pytest.approx(table.score(image, text), abs=1e-4)
            if no_repeat:
                rows = [text[i : i + no_repeat] for i in range(len(text) - no_repeat + 1)]
                assert len(rows) == len(set(rows))


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_beams_of_one_word_are_the_likeliest_words(seed, beams):
    table = Table(seed)
    decoding = Decoding(beams, min_length=1, max_length=2, no_repeat=0, count=beams)
    (found,) = write(table, starts(1), decoding, END)
    chances = log_softmax(table.logits[0, 1, 1][None])[0]
    likeliest = np.argsort(-chances)[:beams].tolist()
    assert [one.tokens[0] if one.tokens else END for one in found] == likeliest
    np.testing.assert_allclose([one.score for one in found], chances[likeliest], atol=1e-5)


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_search_finds_what_is_likelier_than_word_after_word(seed):
    """For two words: the likeliest first word has its likeliest second one among the candidates."""
    table = Table(seed)
    table.logits[..., END] = -50.0
    how = {"min_length": 1, "max_length": 3, "no_repeat": 0}
    searched, taken = (
        write(table, starts(1), Decoding(beams, **how), END)[0][0] for beams in (4, 1)
    )
    assert searched.score >= taken.score - 1e-6


def test_one_beam_takes_the_likeliest_word():
    table = Table(3, images=2)
    decoding = Decoding(1, min_length=1, max_length=8, no_repeat=0)
    for image, (found,) in enumerate(write(table, starts(2), decoding, END)):
        text = [1]
        while len(text) < 8 and text[-1] != END:
            last = text[-2] if len(text) > 1 else text[-1]
            text.append(int(table.logits[image, last, text[-1]].argmax()))
        assert whole(found) == tuple(text)


class TestDrawing:
    def draw(self, table, images=1, seeds=None, **how):
        decoding = Decoding(**{"min_length": 1, "max_length": 3, "no_repeat": 0, **how})
        seeds = seeds or [bytes([image]) for image in range(images)]
        return write(table, starts(images), decoding, END, seeds)

    def test_words_come_as_often_as_they_are_likely(self):
        table = Table(1, spread=1.0)
        found = self.draw(table, nucleus=1.0, count=4000, max_length=2)[0]
        first = np.bincount(
            [one.tokens[0] if one.tokens else END for one in found], minlength=WORDS
        )
        wanted = np.exp(log_softmax(table.logits[0, 1, 1][None])[0])
        np.testing.assert_allclose(first / 4000, wanted, atol=0.04)

    def test_unlikely_words_never_come(self):
        table = Table(1, spread=1.0)
        found = self.draw(table, nucleus=0.5, count=1000, max_length=2)[0]
        chances = np.exp(log_softmax(table.logits[0, 1, 1][None])[0])
        order = np.argsort(-chances)
        enough = int(np.searchsorted(np.cumsum(chances[order]), 0.5)) + 1
        drawn = {one.tokens[0] if one.tokens else END for one in found}
        assert drawn == set(order[:enough].tolist())

    def test_hardly_any_share_is_the_likeliest_word(self):
        table = Table(5, images=3)
        drawn = self.draw(table, images=3, nucleus=1e-9, max_length=9)
        taken = self.draw(table, images=3, beams=1, max_length=9)
        assert [one[0].tokens for one in drawn] == [one[0].tokens for one in taken]

    def test_an_image_has_the_same_texts_in_any_batch(self):
        table = Table(5, images=1)
        both = Table(5, images=1)
        both.logits = np.repeat(table.logits, 3, axis=0)
        how = {"nucleus": 0.9, "count": 3, "max_length": 9, "seed": 7}
        alone = self.draw(table, seeds=[b"same"], **how)[0]
        together = self.draw(both, images=3, seeds=[b"other", b"same", b"third"], **how)
        assert together[1] == alone
        assert together[0] != alone
        assert self.draw(table, seeds=[b"same"], **{**how, "seed": 8})[0] != alone

    def test_what_is_likelier_by_next_to_nothing_changes_nothing(self):
        """Of another batch numbers differ in their last digits, and with them which of two words is likelier."""
        table, other = Table(1, spread=0.0), Table(1, spread=0.0)
        other.logits += np.random.default_rng(0).normal(0, 1e-6, other.logits.shape).astype("f4")
        how = {"nucleus": 1.0, "count": 30, "max_length": 9}
        texts = [sorted(one.tokens for one in self.draw(each, **how)[0]) for each in (table, other)]
        assert texts[0] == texts[1]

    def test_the_likeliest_of_several_is_first(self):
        found = self.draw(Table(2), nucleus=0.95, count=6, max_length=8)[0]
        scores = [one.score for one in found]
        assert scores == sorted(scores, reverse=True)


def test_what_is_found_is_let_go_of():
    """An image whose texts are complete costs no more steps."""
    table = Table(0, images=2)
    table.logits[0, :, :, END] = 50.0  # ends at once
    table.logits[1, :, :, END] = -50.0  # never ends
    write(table, starts(2), Decoding(3, min_length=1, max_length=9, no_repeat=0), END)
    # Two beginnings; one step until as many texts as beams are complete; then the beams of the second image alone.
    assert table.rows == 2 + (3 + 3) + 3 * 6


def test_guards_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers").generation.logits_process
    generator = np.random.default_rng(0)
    for length in (1, 2, 5, 9):
        written = generator.integers(0, WORDS, (6, length))
        scores = generator.normal(size=(6, WORDS)).astype(np.float32)
        for span, penalty in ((0, 1.0), (1, 1.3), (2, 0.7), (3, 2.0)):
            wanted, ids = torch.from_numpy(scores.copy()), torch.from_numpy(written)
            if penalty != 1.0:
                wanted = process.RepetitionPenaltyLogitsProcessor(penalty)(ids, wanted)
            if span:
                wanted = process.NoRepeatNGramLogitsProcessor(span)(ids, wanted)
            wanted = process.MinLengthLogitsProcessor(4, torch.tensor([END]), "cpu")(ids, wanted)
            decoding = Decoding(no_repeat=span, repetition_penalty=penalty, min_length=4)
            found = scores.copy()
            guard(found, written, decoding, END)
            np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6)


def test_what_makes_no_sense():
    with pytest.raises(ValueError, match="leaves no room in 3"):
        write(Table(), np.ones((1, 3), int), Decoding(3, min_length=1, max_length=3), END)
    with pytest.raises(ValueError, match="7 beams are too many for 12 tokens"):
        write(Table(), starts(1), Decoding(7, min_length=1, max_length=3), END)
    assert write(Table(), np.ones((0, 1), int), Decoding(), END) == []
    for wrong in (
        {"beams": 0},
        {"nucleus": 0.0},
        {"nucleus": 1.5},
        {"max_length": 3},
        {"count": 4},
        {"repetition_penalty": 0.0},
        {"no_repeat": -1},
    ):
        with pytest.raises(ValueError, match="must be"):
            Decoding(**wrong)
