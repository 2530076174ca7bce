"""Cards: reading, refusing, checking."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary import weights
from annotary.cards import (
    PRESETS,
    Card,
    PreprocessSpec,
    Vocabulary,
    card_text,
    check_file_name,
    check_files,
    fingerprint,
    read_card,
    read_vocabulary,
    vocabulary_text,
)
from annotary.errors import ModelError
from tests.conftest import make_colours


def test_a_card_is_read(colours):
    card = read_card(colours)
    assert card.id == "colours@1.0"
    assert card.preprocess == PreprocessSpec((16, 16), layout="nhwc", dtype="uint8")
    vocabulary = read_vocabulary(colours)
    assert vocabulary.names == ("red", "green", "blue")
    assert vocabulary.thresholds == {
        "balanced": (0.5,) * 3,
        "precise": (0.8,) * 3,
        "broad": (0.2,) * 3,
    }
    check_files(card, colours)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("size = [16, 16]", "size = [16]"), "size must be"),
        (("size = [16, 16]", 'size = [16, 16]\nfit = "stretch"'), "fit must be one of squash"),
        (("size = [16, 16]", ""), "needs size"),
        (("size = [16, 16]", "size = [16, 16]\ncolour = 3"), "unknown keys: colour"),
        (('licence = "Apache-2.0"', ""), "licence"),
        (('licence = "Apache-2.0"', 'license = "MIT"'), "unknown keys: license"),
        (("[preprocess]", "[preprocess"), "cannot read"),
        (("size = [16, 16]", "size = [16, 16]\nstd = [0.0, 1.0, 1.0]"), "std > 0"),
        (("size = [16, 16]", "size = [16, 16]\ncrop_share = 0.0"), "crop_share"),
        (("size = [16, 16]", "size = [16, 16]\npad_colour = [0, 0, 300]"), "pad_colour"),
        (("size = [16, 16]", "size = [16.5, 16]"), "size must be"),
        (("size = [16, 16]", 'size = [16, 16]\nmean = ["a", 1, 1]'), "mean and std"),
        (("size = [16, 16]", "size = [true, true]"), "size must be"),
        (("size = [16, 16]", "size = [16, 16]\nstd = [nan, 1, 1]"), "mean and std"),
        (("size = [16, 16]", "size = [16, 16]\nmean = [inf, 1, 1]"), "mean and std"),
        (("size = [16, 16]", "size = [16, 16]\nmean = [true, 1, 1]"), "mean and std"),
        (("size = [16, 16]", "size = [16, 16]\nscale = inf"), "scale must be a number above 0"),
        (("size = [16, 16]", "size = [16, 16]\nscale = true"), "scale must be a number above 0"),
        (("size = [16, 16]", 'size = [16, 16]\ncrop_share = "1"'), "crop_share must be in 0..1"),
        (("size = [16, 16]", "size = [16, 16]\npad_colour = [1.5, 1, 1]"), "pad_colour must be"),
        (("[preprocess]", "source = 1\n[preprocess]"), "source must be text, but got 1"),
        (("[preprocess]", 'source = ["hf:a/b"]\n[preprocess]'), "source must be text"),
        (("[preprocess]", "description = []\n[preprocess]"), "description must be text"),
        (("[preprocess]", "revision = 5\n[preprocess]"), "revision must be text"),
        (("[preprocess]", "paper = true\n[preprocess]"), "paper must be text"),
        (("[preprocess]", "[sizes]\na = true\n[preprocess]"), "sizes must be bytes"),
        (('family = "onnx_tagger"', "family = 5"), "family must be text"),
        (("size = [16, 16]", "size = [16, 16]\nscale = 0"), "scale must be a number above 0"),
        (('"model.onnx" = "', '"model.onnx" = "x'), "sha256 of model.onnx must be 64 digits"),
        (('"model.onnx"', '"../model.onnx"'), "'../model.onnx' cannot be the name"),
        (("[preprocess]", "[sizes]\na = -1\n[preprocess]"), "sizes must be bytes"),
        (("[preprocess]", "[thresholds.best]\na = 1\n[preprocess]"), "must be one of balanced"),
        (
            ("[preprocess]", "[thresholds.broad]\na = 2\n[preprocess]"),
            "'a' in broad must be in 0..1",
        ),
        (
            ("[preprocess]", "[thresholds]\nbroad = 2\n[preprocess]"),
            "thresholds.broad must be a table",
        ),
    ],
)
def test_a_wrong_card_says_what_is_wrong(tmp_path, change, message):
    directory = make_colours(tmp_path / "model")
    card = directory / "card.toml"
    assert change[0] in card.read_text()
    card.write_text(card.read_text().replace(*change))
    with pytest.raises(ModelError, match=message):
        read_card(directory)


def test_no_card(tmp_path):
    with pytest.raises(ModelError, match=r"no card\.toml"):
        read_card(tmp_path)


def test_damaged_and_missing_files_are_named(tmp_path):
    directory = make_colours(tmp_path / "model")
    card = read_card(directory)
    (directory / "tags.csv").write_text("name\nother\n")
    with pytest.raises(ModelError, match=r"tags\.csv is damaged"):
        check_files(card, directory)
    (directory / "tags.csv").unlink()
    with pytest.raises(ModelError, match=r"tags\.csv is missing"):
        check_files(card, directory)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "tag\nred\n",
        "name,category,balanced\nred,colour,high\n",
        "name,category,balanced\nred,colour,5\n",
        "name,category,balanced\nred,colour,nan\n",
        "name,category\nred,colour\n,colour\n",
        'name,category\n"red,colour\n' + "green,colour\n" * 20_000,  # longer than csv reads
    ],
)
def test_wrong_tags_say_which_file(tmp_path, content):
    (tmp_path / "tags.csv").write_text(content)
    with pytest.raises(ModelError, match=r"tags\.csv"):
        read_vocabulary(tmp_path)


def test_a_table_of_a_spreadsheet_is_read(tmp_path):
    (tmp_path / "tags.csv").write_bytes(b"\xef\xbb\xbfname,category\r\nred,colour\r\n")
    assert read_vocabulary(tmp_path).names == ("red",)


def test_the_fingerprint_follows_every_file(tmp_path):
    directory = make_colours(tmp_path / "model")
    before = fingerprint(directory)
    assert fingerprint(make_colours(tmp_path / "same")) == before
    with (directory / "card.toml").open("a") as file:
        file.write("# changed")
    assert fingerprint(directory) != before
    with pytest.raises(ModelError, match=r"no card\.toml"):
        fingerprint(tmp_path / "none")
    changed = fingerprint(directory)
    (directory / ".DS_Store").touch()
    assert fingerprint(directory) == changed


def test_a_vocabulary_is_consistent():
    with pytest.raises(ValueError, match="unique"):
        Vocabulary(("a", "a"), ("", ""))
    with pytest.raises(ValueError, match="categories must have 1 rows, but got 0"):
        Vocabulary(("a",), ())
    with pytest.raises(ValueError, match="balanced must have 1 rows, but got 2"):
        Vocabulary(("a",), ("",), {"balanced": (0.1, 0.2)})


def test_the_activation_is_known():
    with pytest.raises(ValueError, match="activation"):
        Card("a", "1", "f", "MIT", PreprocessSpec((1, 1)), activation="softmax")  # type: ignore[arg-type]


def test_shipped_models_are_whole():
    assert "starter" in weights.shipped()
    for directory in weights.shipped().values():
        card = read_card(directory)
        assert card.name == directory.name
        assert card.files
        check_files(card, directory)
        vocabulary = read_vocabulary(directory)
        assert set(vocabulary.thresholds) == set(PRESETS)
        for precise, broad in zip(
            vocabulary.thresholds["precise"], vocabulary.thresholds["broad"], strict=True
        ):
            assert 0.0 < broad <= precise <= 1.0


def test_known_models_have_cards():
    assert set(weights.shipped()) < set(weights.known())
    for name, directory in weights.known().items():
        card = read_card(directory)
        assert card.name == name
        assert card.files
        if name not in weights.shipped():
            assert card.source.startswith("hf:")
            assert card.revision


def test_thresholds_by_category():
    vocabulary = Vocabulary(("a", "b", "c"), ("x", "y", ""))
    made = vocabulary.with_thresholds({"balanced": {"x": 0.1, "*": 0.5}})
    assert made.thresholds == {"balanced": (0.1, 0.5, 0.5)}
    assert made.with_thresholds({"balanced": {"*": 0.9}}) == made
    assert vocabulary.with_thresholds({}) == vocabulary
    with pytest.raises(ValueError, match="balanced has no threshold for , y"):
        vocabulary.with_thresholds({"balanced": {"x": 0.1}})


@pytest.mark.parametrize(
    "name",
    ["model.onnx", "top_tags.txt", "model-q8.onnx", "a b.txt", "日本.csv", "onnx/text_model.onnx"],
)
def test_names_of_files(name):
    check_file_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b/c",
        "a/../b",
        "a/.b",
        "a//b",
        "a/",
        "../a",
        "/a",
        "a\\b",
        "C:a",
        ".hidden",
        "a\n",
        "a.",
        "a" * 201,
        None,
    ],
)
def test_names_that_lead_elsewhere(name):
    with pytest.raises(ValueError, match="cannot be the name of a model's file"):
        check_file_name(name)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.tuples(*[st.floats(-1e6, 1e6)] * 3)
CARDS = st.builds(
    Card,
    **dict.fromkeys(("name", "version", "family", "licence"), TEXT.filter(bool)),
    **dict.fromkeys(("description", "source", "revision", "paper"), TEXT),
    preprocess=st.builds(
        PreprocessSpec,
        size=st.tuples(*[st.integers(1, 2000)] * 2),
        fit=st.sampled_from(("squash", "pad", "crop")),
        layout=st.sampled_from(("nhwc", "nchw")),
        scale=st.floats(1e-3, 1e3),
        mean=NUMBERS,
        std=st.tuples(*[st.floats(1e-3, 1e3)] * 3),
    ),
    files=st.dictionaries(
        st.sampled_from(("model.onnx", "tags.csv")), st.sampled_from(("", "a" * 64))
    ),
    sizes=st.dictionaries(TEXT, st.integers(0, 2**40), max_size=3),
    thresholds=st.dictionaries(
        st.sampled_from(PRESETS), st.dictionaries(TEXT, st.floats(0, 1), min_size=1, max_size=3)
    ),
    activation=st.sampled_from(("none", "sigmoid")),
)


@given(CARDS)
def test_a_card_that_is_written_is_read_as_the_same(card):
    with TemporaryDirectory() as folder:
        (Path(folder) / "card.toml").write_text(card_text(card), encoding="utf-8", newline="")
        assert read_card(Path(folder)) == card


@given(
    st.dictionaries(TEXT.filter(lambda t: t and "\0" not in t), TEXT, min_size=1, max_size=8),
    st.booleans(),
)
def test_a_vocabulary_that_is_written_is_read_as_the_same(tags, has_thresholds):
    presets = {"broad": tuple(i / 8 for i in range(len(tags)))} if has_thresholds else {}
    vocabulary = Vocabulary(tuple(tags), tuple(tags.values()), presets)
    with TemporaryDirectory() as folder:
        (Path(folder) / "tags.csv").write_text(
            vocabulary_text(vocabulary), encoding="utf-8", newline=""
        )
        assert read_vocabulary(Path(folder)) == vocabulary
