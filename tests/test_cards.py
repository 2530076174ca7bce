"""Cards: reading, refusing, checking."""

from __future__ import annotations

import pytest

from annotary import weights
from annotary.cards import (
    PRESETS,
    Card,
    PreprocessSpec,
    Vocabulary,
    check_files,
    fingerprint,
    read_card,
    read_vocabulary,
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
        (('family = "onnx_tagger"', "family = 5"), "family must be text"),
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
