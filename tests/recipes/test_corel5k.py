"""The recipe that trains from chance on Corel5k, on a handful of drawn photos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from annotary.training.dataset.index import TagDataset
from annotary.training.recipe import read_recipe
from recipes.corel5k import five_tags, two_tags
from recipes.corel5k.__main__ import (
    ASIDE,
    SWEEP,
    TUNING,
    make_dataset,
    protocol,
    train,
)

TINY = (
    "network.num_blocks=1",
    "network.d_model=32",
    "network.mlp_dim=32",
    "network.num_heads=2",
    "network.cnn_stem=",
    "data.batch_size=8",
    "data.device_batch_size=8",
    "stages=[{image_size=16, samples=16}]",
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """36 photos of noise with an index, each with the tag `tiger` or `street`."""
    folder = tmp_path / "corel5k"
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(5)
    rows = []
    for number in range(36):
        file = f"images/{number}.png"
        pixels = random.integers(0, 256, (24, 36, 3), np.uint8)
        Image.fromarray(pixels).save(folder / file)
        rows.append(
            {"file": file, "tags": ["tiger" if number % 2 else "street", "sky", "sun", "sea"]}
        )
    lines = (json.dumps(row) + "\n" for row in rows)
    (folder / "index.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def test_what_is_kept_aside_is_in_no_dataset_of_the_sweep(photos: Path, tmp_path: Path) -> None:
    tuning = TagDataset(make_dataset(photos, tmp_path / "t", aside=TUNING, left_out=ASIDE))
    whole = TagDataset(make_dataset(photos, tmp_path / "w", aside=ASIDE, left_out=None))
    aside = {f"images/{number}.png" for number in range(36) if number % 9 == ASIDE}
    assert not aside & {*tuning.train.ids, *tuning.validation.ids}
    assert len(tuning.validation.ids) == 4
    assert len(tuning.train.ids) == 28
    assert set(whole.validation.ids) == aside
    assert len(whole.train.ids) == 32


@pytest.mark.parametrize("name", SWEEP)
def test_every_run_of_the_sweep_is_a_recipe(name: str) -> None:
    recipe = read_recipe("joytag-small")
    assert read_recipe("joytag-small", SWEEP[name]) != recipe or name == "base"


def test_a_run_is_measured_as_papers_do(photos: Path, tmp_path: Path) -> None:
    dataset = make_dataset(photos, tmp_path / "w", aside=ASIDE, left_out=None)
    best = train(dataset, tmp_path / "run", TINY)
    measured = protocol(best, photos)
    # Five tags, and five for each photo: all are given to all four.
    assert measured["recall"] == 1.0
    assert measured["words"] == measured["words_recalled"] == 5
    assert measured["precision"] == pytest.approx((0.5 + 0.5 + 3.0) / 5)


def test_scores_are_shifted_and_mixed_as_log_odds() -> None:
    learned = np.zeros((1000, 3), bool)
    learned[:20, 0] = learned[:200, 1] = True
    moved = five_tags.shift(learned)
    assert moved[0] == pytest.approx(0, abs=0.02)  # 2% is the centre
    odds = np.log(0.2 / 0.8) - np.log(0.02 / 0.98)
    assert moved[1] == pytest.approx(-0.4 * odds, abs=0.02)
    assert moved[2] == -100  # nobody has it
    first, second = np.zeros((2, 3)), np.ones((2, 3))
    found = five_tags.mixtures({"a": first, "b": second}, moved, [0.25])
    assert list(found) == ["a", "a, shift", "b", "b, shift", "a and 0.25 of b, shift"]
    np.testing.assert_allclose(found["a and 0.25 of b, shift"], 0.25 * (1 + moved) + first)
    truth = np.eye(2, 6, dtype=bool)
    line = five_tags.told("a", np.where(truth, 3.0, -np.arange(6.0)), truth)
    # Each photo gets its own word and four others, among them that of the other photo.
    assert line == "a: F1 0.667 (precision 0.500, recall 1.000), 2 words of 2, mAP 1.000"


def test_two_new_tags_come_from_photos_that_are_kept_aside(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_tags, "FROM_EACH", 1)
    command = ["two_tags", "--data", str(photos.parent), "--output", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", command)
    two_tags.main()
    texts = {path.stem: path.read_text("utf-8") for path in (tmp_path / "out").rglob("*.txt")}
    assert texts == {
        "8": "townscape\n",
        "17": "wildlife\n",
        "26": "townscape\n",
        "35": "wildlife\n",
    }
    assert sorted(path.stem for path in (tmp_path / "out" / "photos").glob("*.png")) == ["17", "8"]
