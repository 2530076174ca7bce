"""The trainer of caption decoders: words, batches, what sees what, runs that go on, and images that are told apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from annotary.training.captioner import (  # noqa: E402
    END,
    PADDING,
    START,
    UNKNOWN,
    CaptionDecoder,
    CaptionerOptions,
    CaptionTable,
    CaptionTraining,
    Words,
    mean_loss,
    padded,
    split_words,
    train_captioner,
)

SMALL = CaptionerOptions(
    width=16, layers=2, heads=2, prefix=2, longest=8, steps=6, batch_size=4, average=0.9
)
CAPTIONS = (
    ("A red ball rolls .", "one red ball"),
    ("a blue car drives", "One blue car ."),
    ("the green tree grows", "a green tree"),
)


@pytest.fixture(autouse=True)
def one_thread():  # such small matrices only wait for each other on several
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def words() -> Words:
    return Words.of([text for own in CAPTIONS for text in own], least=1)


@pytest.fixture
def table(words: Words) -> CaptionTable:
    images = torch.eye(3).repeat(2, 1, 1)[:, :, None]
    images[1] += 0.1
    return CaptionTable(images, [[words.encode(text, 8) for text in own] for own in CAPTIONS])


def test_words_are_small_and_without_punctuation():
    assert split_words("A dog's T-shirt, at 5 o’clock!") == [
        "a", "dog's", "t-shirt", "at", "5", "o'clock",
    ]  # fmt: skip
    assert split_words("_ ... !") == []
    assert split_words("Ein Hund läuft") == ["ein", "hund", "läuft"]


def test_frequent_words_come_first_and_rare_ones_are_unknown():
    words = Words.of(["a dog a cat", "a dog", "a bird"], least=2)
    assert words.names[UNKNOWN + 1 :] == ("a", "dog")
    assert words.encode("A dog, a bird", 8) == [START, 4, 5, 4, UNKNOWN, END]
    assert words.encode("a a a a", 2) == [START, 4, 4, END]
    assert words.decode([START, 4, 5, UNKNOWN, END, PADDING]) == "a dog"


def test_a_pass_draws_every_caption_once_with_its_image(table):
    pairs = []
    for step in range(3):
        images, numbers = table.draw(step, 2, seed=1)
        assert images.shape == (2, 1, 3)
        for image, caption in zip(images, numbers.tolist(), strict=True):
            pairs.append((int(image.argmax()), tuple(n for n in caption if n != PADDING)))
    wanted = [(n, tuple(one)) for n, own in enumerate(table.captions) for one in own]
    assert sorted(pairs) == sorted(wanted)
    again = table.draw(1, 2, seed=1)
    assert all(map(torch.equal, again, table.draw(1, 2, seed=1)))


def test_an_image_without_captions_is_refused():
    with pytest.raises(ValueError, match="at least one caption"):
        CaptionTable(torch.zeros(1, 2, 1, 3), [[[START, END]], []])


@pytest.mark.parametrize(
    "wrong",
    [{"width": 10, "heads": 4}, {"steps": 0}, {"dropout": 1.0}, {"word_dropout": -0.1}],
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        replace(SMALL, **wrong)


def test_a_word_sees_the_image_and_what_stands_before(words):
    torch.manual_seed(0)
    decoder = CaptionDecoder(3, len(words.names), SMALL, regions=2).eval()
    images, numbers = torch.randn(2, 2, 3), torch.tensor([[1, 4, 5, 6], [1, 5, 6, 7]])
    logits = decoder(images, numbers)
    assert logits.shape == (2, 4, len(words.names))
    changed = numbers.clone()
    changed[:, 2] = 8
    other = decoder(images, changed)
    torch.testing.assert_close(other[:, :2], logits[:, :2])
    assert (other[:, 2:] - logits[:, 2:]).abs().amax(-1).min() > 1e-4
    moved = images.clone()
    moved[:, 1, 2] += 1
    assert (decoder(moved, numbers) - logits).abs().amax(-1).min() > 1e-4


def test_texts_shorter_than_others_lose_nothing(words):
    torch.manual_seed(0)
    decoder = CaptionDecoder(3, len(words.names), SMALL).eval()
    images, captions = torch.randn(2, 1, 3), [[1, 4, 2], [1, 5, 6, 7, 2]]
    together = decoder(images, padded(captions))
    alone = decoder(images[:1], padded(captions[:1]))
    torch.testing.assert_close(together[0, :3], alone[0], atol=1e-5, rtol=1e-5)


def test_an_interrupted_run_gives_the_same_bits(table, words, tmp_path):
    whole = train_captioner(table, words, SMALL)
    torch.manual_seed(7)
    decoder = CaptionDecoder(3, len(words.names), SMALL)
    path = tmp_path / "run.pt"
    with torch.random.fork_rng():
        torch.manual_seed(SMALL.seed)
        first = CaptionTraining(CaptionDecoder(3, len(words.names), SMALL), table, SMALL)
    for _ in range(3):
        first.train_step()
    first.save(path)
    second = CaptionTraining(decoder, table, SMALL)
    second.restore(path)
    assert second.step == 3
    resumed = train_captioner(table, words, SMALL, path)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="saved with other options"):
        CaptionTraining(decoder, table, replace(SMALL, seed=1)).restore(path)


def test_it_learns_which_caption_is_of_which_image(table, words):
    options = replace(
        SMALL, steps=150, learning_rate=2e-2, input_dropout=0.0, dropout=0.0, word_dropout=0.0,
        label_smoothing=0.0, average=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    before = mean_loss(CaptionDecoder(3, len(words.names), options), table)
    decoder = train_captioner(table, words, options)
    assert mean_loss(decoder, table) < 0.6 < before  # a first word of two is left to chance
    shuffled = CaptionTable(table.images[:, [1, 2, 0]], table.captions)
    assert mean_loss(decoder, shuffled) > 2 * mean_loss(decoder, table)
    numbers = torch.tensor([[START, words.names.index("a")]]).repeat(3, 1)
    with torch.no_grad():
        found = decoder(table.images[0], numbers)[:, -1].argmax(-1)
    assert [words.names[n] for n in np.asarray(found)] == ["red", "blue", "green"]
