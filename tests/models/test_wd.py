"""WD taggers: colours, padding, categories and thresholds, and batches of one."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from annotary import weights
from annotary.cards import read_card
from annotary.errors import ModelError, UsageError
from annotary.models import find, load_model, wd
from annotary.preprocess import fit, to_batch
from annotary.runtime import RuntimeOptions
from tests.taggers import WD_TAGS, make_wd

CARDS = [name for name in weights.known() if name.startswith("wd-")]


def load(folder):
    return load_model(f"dir:{folder}", RuntimeOptions(precision="fp32"))


def expected_scores(batch):
    """The specification of `make_wd`, for batches as the network gets them."""
    means = batch.mean(axis=(1, 2))[:, np.arange(len(WD_TAGS)) % 3]
    return 1 / (1 + np.exp(-(means / 64 - 2)))


def colours(*values):
    return [np.full((9, 16, 3), value, np.uint8) for value in values]


@pytest.mark.parametrize("fixed_batch", [None, 1])
def test_scores_of_a_batch(tmp_path, fixed_batch):
    model = load(make_wd(tmp_path / "wd", fixed_batch=fixed_batch))
    spec = model.card.preprocess
    images = [fit(image, spec) for image in colours((255, 128, 0), (0, 0, 0), (9, 99, 199))]
    batch = to_batch(images, spec)
    assert batch.shape == (3, 16, 16, 3)
    scores = model.tag_scores(batch)
    assert scores == pytest.approx(expected_scores(batch), abs=1e-5)
    for i in range(3):
        assert model.tag_scores(batch[i : i + 1]) == pytest.approx(scores[i : i + 1], abs=1e-6)
    assert fixed_batch is None or model.batch_size == 1


def reference(image, size):
    """What SmilingWolf's demonstration gives the network, written from the specification."""
    longest = max(image.size)
    canvas = Image.new("RGB", (longest, longest), (255, 255, 255))
    canvas.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    if longest != size:
        canvas = canvas.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(canvas, np.float32)[:, :, ::-1]


@pytest.mark.parametrize("size", [(5, 3), (4, 5), (448, 448), (1000, 333), (31, 700)], ids=str)
def test_images_are_blue_first_and_on_white(size):
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, (size[1], size[0], 3), np.uint8)
    spec = wd.preprocess_of((448, 448))
    batch = to_batch([fit(pixels, spec)], spec)
    assert np.array_equal(batch[0], reference(Image.fromarray(pixels), 448))


def test_names_categories_and_thresholds(tmp_path):
    vocabulary = load(make_wd(tmp_path / "wd")).vocabulary
    assert vocabulary.names == tuple(name for name, _ in WD_TAGS)
    assert vocabulary.categories == (*["rating"] * 4, *["general"] * 3, "character")
    assert vocabulary.thresholds == {"balanced": (*[0.35] * 7, 0.85)}


def test_a_directory_needs_no_card(tmp_path):
    folder = make_wd(tmp_path / "my-wd", size=32)
    found = find(f"dir:{folder}")
    assert found.card.family == "wd"
    assert found.card.name == "my-wd"
    assert found.card.preprocess == wd.preprocess_of((32, 32))
    before = found.fingerprint()
    (folder / "README.md").write_text("-")
    assert find(f"dir:{folder}").fingerprint() == before
    (folder / "selected_tags.csv").write_text("name,category\nx,0\n")
    assert find(f"dir:{folder}").fingerprint() != before


def test_a_file_without_the_sigmoid_is_noticed(tmp_path):
    model = load(make_wd(tmp_path / "wd", is_logit=True))
    with pytest.raises(
        ModelError, match=r"scores outside of 0\.\.1; does its card lack activation"
    ):
        model.tag_scores(np.full((1, 16, 16, 3), 255, np.float32))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "no rows"),
        ("tag,category\na,0\n", "not the columns"),
        ("name,category\na,7\n", "unknown categories: 7"),
        ("name,category\na\n", "cannot read the tags"),
        ("name,category\na,0\na,0\n", "unique"),
    ],
)
def test_tags_that_are_none(tmp_path, table, message):
    folder = make_wd(tmp_path / "wd")
    (folder / "selected_tags.csv").write_text(table)
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_tags_of_another_network(tmp_path):
    folder = make_wd(tmp_path / "wd")
    (folder / "selected_tags.csv").write_text("name,category\na,0\n")
    with pytest.raises(ModelError, match=r"gives scores \(1, 8\) for 1 tags"):
        load(folder).tag_scores(np.zeros((1, 16, 16, 3), np.float32))


def test_two_families_or_none_are_not_guessed(tmp_path):
    folder = make_wd(tmp_path / "wd")
    (folder / "top_tags.txt").write_text("a")
    with pytest.raises(
        UsageError, match=r"no card\.toml, and could be of joytag or wd; annotary mod"
    ):
        load(folder)
    (folder / "selected_tags.csv").unlink()
    (folder / "top_tags.txt").unlink()
    with pytest.raises(
        UsageError, match=r"not the files of a family \(.*joytag: .*; wd: .*models add"
    ):
        load(folder)


def test_the_models_in_a_folder_that_is_none_are_named(tmp_path):
    run = tmp_path / "run"
    for number, name in enumerate(("checkpoints/samples_64", "checkpoints/samples_128", ".old")):
        (run / name).mkdir(parents=True)
        (run / name / "card.toml").write_text("")
        os.utime(run / name / "card.toml", (number, number))
    first, last = run / "checkpoints" / "samples_64", run / "checkpoints" / "samples_128"
    with pytest.raises(UsageError, match=f"is no model, but .*: say dir:{last} or dir:{first}$"):
        load(run)


def test_no_wd_network(tmp_path):
    from tests.conftest import make_colours

    folder = make_colours(tmp_path / "wd")
    (folder / "card.toml").unlink()
    (folder / "selected_tags.csv").write_text("name,category\na,0\n")
    (folder / "model.onnx").write_bytes(b"\x00")
    with pytest.raises(ModelError, match="is no ONNX file"):
        load(folder)


@pytest.mark.parametrize("name", CARDS)
def test_published_cards_are_those_of_the_code(name):
    card = read_card(weights.known()[name])
    assert card.name == name
    assert card.source == f"hf:SmilingWolf/{name}"
    assert card.preprocess == wd.preprocess_of((448, 448))
    assert card.thresholds["balanced"] == {"general": 0.35, "character": 0.85, "rating": 0.35}
    assert set(card.files) == {"model.onnx", "selected_tags.csv"}
