"""The starter's sources as inputs of `annotary train dataset`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("torch")

from annotary.cli import annotary
from annotary.training.dataset.index import TagDataset
from annotary.training.recipe import read_recipe
from recipes.starter.branch import FIRST_STAGE
from recipes.starter.dataset import INPUTS, write_inputs
from recipes.starter.tables import Example, Source, Vocabulary

RECIPE = Path(__file__).parents[2] / "recipes" / "starter" / "starter.toml"

NAMES = ("cat", "dog", "sky", "tabby", "wheel")
"""Of which `tabby` rests on ImageNet alone."""

WORDS: dict[str, dict[str, tuple[int, ...]]] = {
    "corel": {"cat": (0,), "sky": (2,)},
    "flickr": {"kitten": (0,), "puppy": (1,)},
    "coco": {"dog": (1,)},
    "drawing": {"tire": (4,)},
}
SAID: dict[Source, tuple[str, ...]] = {
    "corel": ("cat", "sky"),
    "flickr": ("kitten", "jump"),
    "coco": ("dog",),
    "emoji": ("tire",),
    "clipart": ("tire", "nothing"),
}


def made_examples(folder: Path) -> list[Example]:
    """Three photos of each source, of which the last is held aside; one comes a second time in grey."""
    random = np.random.default_rng(3)
    examples = []
    for source in INPUTS:
        for number in range(3):
            path = folder / f"{source}_{number}.png"
            Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
            examples.append(Example(source, path, frozenset(SAID[source]), number == 2))
    grey = Example("corel", examples[0].path, examples[0].words, False, "grey")  # noqa: FBT003
    unsaid = Example("coco", examples[0].path, frozenset(("boat",)), is_held_aside=False)
    return [*examples, grey, unsaid]


def test_each_source_counts_for_the_tags_that_it_knows(tmp_path: Path) -> None:
    vocabulary = Vocabulary(
        NAMES,
        ("",) * len(NAMES),
        np.zeros((1000, len(NAMES)), np.float32),
        np.array([name == "tabby" for name in NAMES]),
        WORDS,
        frozenset(),
    )
    inputs = tmp_path / "inputs"
    counts = write_inputs(made_examples(tmp_path), vocabulary, inputs)
    assert counts == dict.fromkeys(INPUTS, 3)
    tables = [str(inputs / f"{source}.jsonl") for source in INPUTS]
    command = ["train", "dataset", *tables, "--rules", str(inputs / "rules.toml"), "--quiet"]
    command += ["--validation-ids", str(inputs / "held_aside.txt"), "--output", str(tmp_path / "d")]
    result = CliRunner().invoke(annotary, command)
    assert result.exit_code == 0, result.output
    dataset = TagDataset(tmp_path / "d")
    assert set(dataset.tags) == {"cat", "dog", "sky", "wheel"}
    assert len(dataset.train) == 10
    assert len(dataset.validation) == 5
    rows = np.arange(len(dataset.train))
    weights = dataset.train.weights(rows, unknown=0.05)
    assert weights is not None
    targets = dataset.train.targets(rows)
    for row, name in enumerate(dataset.train.ids):
        told = dict(zip(dataset.tags, zip(targets[row], weights[row], strict=True), strict=True))
        if "corel" in name:
            assert told["cat"] == told["sky"] == (1, 1)
            assert told["dog"] == told["wheel"] == (0, pytest.approx(0.05))
        if "flickr" in name:
            assert told["cat"] == (1, 1)
            assert told["dog"] == (0, 0.5)
            assert told["sky"] == (0, pytest.approx(0.05))
        if "clipart" in name:
            assert told["wheel"] == (1, 1)
            assert told["cat"] == (0, pytest.approx(0.05))


def test_the_recipe_of_the_starter_is_a_recipe() -> None:
    recipe = read_recipe(str(RECIPE))
    assert recipe.network.start == "dir:build/starter/probe/tagger"
    assert recipe.network.frozen_depths == FIRST_STAGE + 1  # the stem is a depth, too
    assert recipe.loss.unknown == 0.05
    assert recipe.stages[0].image_size == 260
