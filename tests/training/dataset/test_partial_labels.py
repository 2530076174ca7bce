"""Datasets of inputs that know different tags: what is known of which image, as it is built, written and read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotary.cli import main
from annotary.errors import OutputError, UsageError
from annotary.training.dataset.building import BuildOptions, Recipe, build
from annotary.training.dataset.choosing import SplitOptions
from annotary.training.dataset.image_cache import CacheOptions
from annotary.training.dataset.index import DESCRIPTION, Split, TagDataset, Texts
from annotary.training.dataset.knowledge import SOURCES, Sources
from annotary.training.dataset.tag_lists import TagListOptions
from tests.training.dataset.making import encoded
from tests.training.dataset.test_building import add, picture


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[str, str]:
    """Photos whose tags are beasts, and photos whose tags are colours; one picture is in both."""
    pytest.importorskip("pyarrow")
    for number in range(20):
        beast = ("cat", "dog", "cat, kitten")[number % 3]
        add(tmp_path / "beasts", f"{number}.png", encoded(picture(number), "PNG"), beast)
        colour = ("red", "blue")[number % 2]
        add(tmp_path / "colours", f"{number}.png", encoded(picture(50 + number), "PNG"), colour)
    add(tmp_path / "colours", "same.png", encoded(picture(3), "PNG"), "red, dog")
    return str(tmp_path / "beasts"), str(tmp_path / "colours")


def recipe(inputs: tuple[str, ...], rules: str = "", **options: object) -> Recipe:
    path = Path(inputs[0]).parent / "rules.toml"
    path.write_text(rules)
    return Recipe(
        inputs,
        tags=TagListOptions(rules=path, **options),  # type: ignore[arg-type]
        split=SplitOptions(validation=8, positives=1, validation_distance=0),
        cache=CacheOptions(cache_size=16),
        build=BuildOptions(workers=1, on_existing="overwrite"),
    )


def weights_of(dataset: TagDataset) -> dict[str, dict[str, float]]:
    """Of each image, by its path, how much each of its targets counts."""
    found = {}
    for split in (dataset.train, dataset.validation):
        weights = split.weights(np.arange(len(split)))
        assert weights is not None
        assert weights.dtype == np.float32
        for image, row in zip(split.images, weights.tolist(), strict=True):
            told = {tag: round(one, 6) for tag, one in zip(dataset.tags, row, strict=True)}
            found["/".join(Path(image).parts[-2:])] = told
    return found


def test_inputs_know_the_tags_of_their_images(inputs, tmp_path):
    built = build(recipe(inputs, partial_labels=True), tmp_path / "data")
    dataset = TagDataset(built.folder)
    assert set(dataset.tags) == {"cat", "dog", "kitten", "red", "blue"}
    assert dataset.sources is not None
    assert dataset.sources.groups == ((0,), (1,), (0, 1))
    assert "of 5 tags the inputs know: beasts 3, colours 3" in built.notes
    weights = weights_of(dataset)
    assert len(weights) == 40
    for image, known in weights.items():
        beast = {"cat": 1.0, "dog": 1.0, "kitten": 1.0}
        colour = {"red": 1.0, "blue": 1.0}
        if image == "beasts/3.png":  # it is among the colours, too
            assert known == {**beast, **colour}
        elif image.startswith("beasts"):
            assert known == {**beast, "red": 0.0, "blue": 0.0}
        else:
            assert known == {**colour, "dog": 1.0, "cat": 0.0, "kitten": 0.0}


def test_rules_say_what_single_inputs_know(inputs, tmp_path):
    (tmp_path / "beasts.txt").write_text("puppy\nkit*\n")
    rules = """
        aliases = { puppy = "dog" }
        implications = { kitten = ["cat"] }
        [[inputs]]
        path = "beasts"
        known_tags = "beasts.txt"
        [[inputs]]
        path = "colours"
        absent = 0.25
    """
    weights = weights_of(TagDataset(build(recipe(inputs, rules), tmp_path / "data").folder))
    # Tags that an image has count, known to its input or not. The colours know everything, but say little.
    assert weights["beasts/0.png"] == {
        "cat": 1.0,
        "dog": 1.0,
        "kitten": 1.0,
        "red": 0.0,
        "blue": 0.0,
    }
    assert weights["beasts/1.png"] == {
        "cat": 0.0,
        "dog": 1.0,
        "kitten": 1.0,
        "red": 0.0,
        "blue": 0.0,
    }
    assert weights["beasts/3.png"] == {
        "cat": 1.0,
        "dog": 1.0,
        "kitten": 1.0,
        "red": 1.0,
        "blue": 0.25,
    }  # with the tags of its copy
    assert weights["colours/1.png"] == {
        "cat": 0.25,
        "dog": 0.25,
        "kitten": 0.25,
        "red": 0.25,
        "blue": 1.0,
    }
    everything = '[[inputs]]\npath = "beasts"\nknown_tags = ["*"]'
    found = weights_of(
        TagDataset(build(recipe(inputs, everything, partial_labels=True), tmp_path / "data").folder)
    )
    assert set(found["beasts/0.png"].values()) == {1.0}
    assert found["colours/1.png"]["cat"] == 0.0


def test_a_dataset_without_it_is_what_it_was(inputs, tmp_path):
    partial = build(recipe(inputs, "partial_labels = true"), tmp_path / "data").folder
    assert (partial / SOURCES).exists()
    plain = build(recipe(inputs), tmp_path / "data").folder
    dataset = TagDataset(plain)
    assert dataset.sources is None
    assert dataset.train.weights([0, 1]) is None
    assert not (plain / SOURCES).exists()
    description = json.loads((plain / DESCRIPTION).read_text())
    assert "sources" not in description
    assert "partial_labels" not in description["settings"]
    assert dataset.train.amounts().tolist() == [len(dataset.train)] * 5
    import pyarrow.parquet

    columns = pyarrow.parquet.read_schema(plain / "train.parquet").names
    assert columns == ["id", "tags", "sha256", "image"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("inputs = 3", "inputs must be tables"),
        ('[[inputs]]\nknown_tags = ["a"]', "path must name an input"),
        ('[[inputs]]\npath = "beasts"\nknown = []', "unknown key 'known'; known: path, known_tags"),
        ('[[inputs]]\npath = "beasts"\nknown_tags = 3', "known_tags must be a file or a list"),
        ('[[inputs]]\npath = "beasts"\nknown_tags = "none.txt"', r"cannot read .*none\.txt"),
        ('[[inputs]]\npath = "beasts"\nabsent = 1.5', r"absent must be in 0\.\.1, but is 1\.5"),
        ('[[inputs]]\npath = "birds"', r"no input is .*birds; the inputs are .*beasts"),
        ('[[inputs]]\npath = "beasts"\n[[inputs]]\npath = "./beasts"', r"twice"),
        ("partial_labels = 1", "partial_labels must be true or false"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rules, message, inputs, tmp_path):
    with pytest.raises(UsageError, match=message):
        build(recipe(inputs, rules), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_damaged_sources_are_told(inputs, tmp_path):
    folder = build(recipe(inputs, partial_labels=True), tmp_path / "data").folder
    place = folder / SOURCES
    whole = json.loads(place.read_text())
    for broken in (
        "",
        "[]",
        json.dumps({**whole, "sources": [[0], [5]]}),
        json.dumps({**whole, "sources": [[0], []]}),
        json.dumps({**whole, "sources": [[0]]}),
        json.dumps({**whole, "inputs": [{**one, "known": [99]} for one in whole["inputs"]]}),
        json.dumps({**whole, "inputs": [{**one, "absent": 2} for one in whole["inputs"]]}),
    ):
        place.write_text(broken)
        with pytest.raises(UsageError, match=r"sources\.json"):
            TagDataset(folder)


def test_the_command_tells_what_inputs_know(inputs, tmp_path, capsys):
    arguments = ["train", "dataset", *inputs, "--output", str(tmp_path / "data"), "--cache", "off"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--partial-labels", "--json"])
    assert ended.value.code in (0, None)
    printed = capsys.readouterr()
    note = "of 5 tags the inputs know: beasts 3, colours 3"
    assert note in json.loads(printed.out)["notes"]
    assert note in printed.err
    assert note in (tmp_path / "data" / "summary.html").read_text()
    assert TagDataset(tmp_path / "data").sources is not None


def test_going_on_with_other_knowledge_is_refused(inputs, tmp_path):
    build(recipe(inputs), tmp_path / "data")
    one = recipe(inputs, partial_labels=True)
    again = Recipe(one.inputs, one.posts, one.tags, one.split, one.cache, one.source)
    with pytest.raises(OutputError, match="partial_labels was null and is now true"):
        build(again, tmp_path / "data")


@st.composite
def splits(draw: st.DrawFn) -> tuple[Split, np.ndarray, np.ndarray]:
    """A split of images of some sources, its targets, and what absent tags count."""
    images, tags = draw(st.integers(0, 9)), draw(st.integers(1, 6))
    count = draw(st.integers(1, 3))
    every = st.sets(st.integers(0, tags - 1)).map(sorted).map(tuple)
    known = tuple(draw(st.none() | every) for _ in range(count))
    absent = tuple(draw(st.sampled_from([0.0, 0.25, 1.0])) for _ in range(count))
    groups = tuple(
        draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True).map(sorted).map(tuple))
        for _ in range(draw(st.integers(1, 4)))
    )
    sources = Sources(tuple(map(str, range(count))), known, absent, groups)
    of = np.array([draw(st.integers(0, len(groups) - 1)) for _ in range(images)], np.int32)
    has = [draw(every) for _ in range(images)]
    targets = np.zeros((images, tags), np.uint8)
    for row, one in zip(targets, has, strict=True):
        row[list(one)] = 1
    expected = np.zeros((images, tags))
    for image in range(images):
        for number in groups[of[image]]:
            own = known[number]
            for tag in range(tags) if own is None else own:
                expected[image, tag] = max(expected[image, tag], absent[number])
    split = Split(
        Texts.of(map(str, range(images))),
        np.concatenate([[0], np.cumsum([len(one) for one in has])]).astype(np.int64),
        np.array([tag for one in has for tag in one], np.int32),
        np.zeros((images, 32), np.uint8),
        Texts.of([""] * images),
        tag_count=tags,
        sources=of,
        absent=sources.weights(tags),
    )
    return split, targets, expected


@settings(max_examples=60, deadline=None)
@given(splits(), st.sampled_from([0.0, 0.5]), st.randoms(use_true_random=False))
def test_weights_are_those_of_each_image_alone(made, unknown, chance):
    split, targets, absent = made
    expected = np.where(targets > 0, 1.0, np.where(absent == 0.0, unknown, absent))
    rows = [chance.randrange(len(split)) for _ in range(7)] if len(split) else []
    weights = split.weights(rows, unknown)
    assert weights is not None
    np.testing.assert_array_equal(weights, expected[rows].astype(np.float32))
    np.testing.assert_array_equal(split.targets(rows), targets[rows])
    np.testing.assert_allclose(split.amounts(unknown), expected.sum(axis=0), atol=1e-6)
