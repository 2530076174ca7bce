"""The files that ship: they fit together, and the model behaves like a tagger on pictures made on the spot."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import annotary
from annotary.cards import check_files, read_card, read_vocabulary

WEIGHTS = Path(annotary.__file__).parent / "weights" / "starter"
WORDS = Path(__file__).parents[2] / "recipes" / "starter" / "vocabulary" / "words.csv"


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(WEIGHTS / "model.onnx"), options)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Noise, a white page with a black disc, and a blue sky above green ground."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:260, :260]
    noise = generator.integers(0, 256, (260, 260, 3))
    disc = np.where(((rows - 130) ** 2 + (columns - 130) ** 2 < 80**2)[..., None], 0, 255)
    disc = np.broadcast_to(disc, (260, 260, 3))
    ground = np.where((rows < 150)[..., None], [120, 170, 235], [60, 130, 40])
    ground = ground + generator.integers(-12, 13, ground.shape)
    return np.stack([noise, disc, ground]).clip(0, 255).astype(np.uint8)


def test_the_files_are_those_of_the_card() -> None:
    card = read_card(WEIGHTS)
    check_files(card, WEIGHTS)
    assert card.id == "starter@1.3"
    assert card.preprocess.size == (260, 260)
    assert set(card.files) == {"model.onnx", "tags.csv", "text.onnx", "tokenizer.json.gz"}
    assert (WEIGHTS / "model.onnx").stat().st_size <= 18_000_000


def test_the_tags_are_many_and_hold_the_words_of_corel5k() -> None:
    vocabulary = read_vocabulary(WEIGHTS)
    assert len(vocabulary) >= 1500
    assert all(vocabulary.categories)
    with WORDS.open(encoding="utf-8", newline="") as file:
        words = {row["word"] for row in csv.DictReader(file) if row["source"] == "corel"}
    assert words <= set(vocabulary.names)


def test_presets_are_ordered_for_every_tag() -> None:
    thresholds = read_vocabulary(WEIGHTS).thresholds
    precise, balanced, broad = (np.array(thresholds[p]) for p in ("precise", "balanced", "broad"))
    assert (precise >= balanced).all()
    assert (balanced >= broad).all()
    assert broad.min() > 0
    assert precise.max() < 1


def test_outputs_and_batches(session: onnxruntime.InferenceSession, pictures: np.ndarray) -> None:
    names = [output.name for output in session.get_outputs()]
    together = dict(zip(names, session.run(names, {"image": pictures}), strict=True))
    tags = len(read_vocabulary(WEIGHTS))
    assert together["scores"].shape == (3, tags)
    assert together["scores"].min() >= 0
    assert together["scores"].max() <= 1
    assert together["features"].shape == (3, 2912)
    assert together["embedding"].shape == (3, 256)
    for number in range(3):
        (alone,) = session.run(["scores"], {"image": pictures[number : number + 1]})
        np.testing.assert_allclose(alone[0], together["scores"][number], atol=1e-4)


def test_obvious_tags(session: onnxruntime.InferenceSession, pictures: np.ndarray) -> None:
    vocabulary = read_vocabulary(WEIGHTS)
    (scores,) = session.run(["scores"], {"image": pictures})
    score = [dict(zip(vocabulary.names, row, strict=True)) for row in scores]
    assert score[1]["drawing"] > 0.9 > 0.1 > score[1]["photo"]
    assert score[1]["monochrome"] > score[2]["monochrome"]
    assert score[2]["sky"] > score[1]["sky"]
