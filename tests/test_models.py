"""Models by name, and taggers in ONNX."""

from __future__ import annotations

import numpy as np
import pytest

from annotary.errors import ModelError, UnknownName, UsageError
from annotary.models import load_model
from annotary.runtime import RuntimeOptions, available_cores
from tests.conftest import make_colours


def test_scores_features_and_the_reason(colours):
    model = load_model(f"dir:{colours}", RuntimeOptions(threads=3))
    batch = np.zeros((2, 16, 16, 3), np.uint8)
    batch[1, ..., 2] = 51
    assert model.tag_scores(batch) == pytest.approx(np.array([[0, 0, 0], [0, 0, 0.2]]))
    assert model.features(batch) == pytest.approx(np.array([[0, 0, 0], [0, 0, 51]]))
    assert (model.choice.device, model.choice.streams, model.choice.threads) == ("cpu", 3, 1)
    assert "as asked" in model.choice.reason


def test_all_cores_when_nothing_is_said(colours):
    options = RuntimeOptions(runtime="onnxruntime")
    assert load_model(f"dir:{colours}", options).choice.streams == available_cores()
    with pytest.raises(ValueError, match="threads"):
        RuntimeOptions(threads=0)


def test_sigmoid_when_the_card_says_so(tmp_path):
    directory = make_colours(tmp_path / "model")
    card = directory / "card.toml"
    card.write_text('activation = "sigmoid"\n' + card.read_text())
    scores = load_model(f"dir:{directory}").tag_scores(np.zeros((1, 16, 16, 3), np.uint8))
    assert scores == pytest.approx(np.full((1, 3), 0.5))
    assert scores.dtype == np.float32


def test_unknown_names_say_what_exists(colours):
    with pytest.raises(UnknownName, match=r"unknown model 'stater'; known: .*dir:PATH"):
        load_model("stater")
    with pytest.raises(UsageError, match=f"say --model dir:{colours}"):
        load_model(str(colours))
    with pytest.raises(UsageError, match="no model directory 'nowhere'"):
        load_model("dir:nowhere")


def without_files(directory):
    """A directory whose card lists no files, so that none is checked."""
    card = directory / "card.toml"
    card.write_text(card.read_text().split("[files]")[0])
    return directory


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "model.onnx").write_bytes(b"nothing"), "model.onnx is damaged"),
        (lambda d: (without_files(d) / "model.onnx").write_bytes(b"nothing"), "cannot load"),
        (lambda d: (d / "model.onnx").unlink(), "is missing"),
        (lambda d: (without_files(d) / "model.onnx").unlink(), "is missing"),
        (
            lambda d: (without_files(d) / "tags.csv").unlink(),
            r"cannot read the tags of .*tags\.csv",
        ),
        (lambda d: (d / "card.toml").unlink(), r"no card\.toml"),
        (
            lambda d: (d / "card.toml").write_text(
                (d / "card.toml").read_text().replace("onnx_tagger", "tager")
            ),
            "unknown model family 'tager'; known: ",
        ),
    ],
)
def test_a_damaged_model_says_what_is_wrong(tmp_path, damage, message):
    directory = make_colours(tmp_path / "model")
    damage(directory)
    with pytest.raises((ModelError, UsageError), match=message):
        load_model(f"dir:{directory}")


def test_a_table_that_does_not_fit_the_network(tmp_path):
    directory = without_files(make_colours(tmp_path / "model"))
    with (directory / "tags.csv").open("a") as file:
        file.write("grey,colour,0.5,0.8,0.2\n")
    model = load_model(f"dir:{directory}")
    with pytest.raises(ModelError, match=r"gives scores \(1, 3\) for 4 tags"):
        model.tag_scores(np.zeros((1, 16, 16, 3), np.uint8))


def test_a_batch_that_does_not_fit_the_network(colours):
    model = load_model(f"dir:{colours}")
    with pytest.raises(ModelError, match="cannot run"):
        model.tag_scores(np.zeros((1, 8, 8, 3), np.uint8))


def rebuilt(directory, change):
    """A model directory with a changed network."""
    import onnx

    model = onnx.load(directory / "model.onnx")
    change(model.graph)
    onnx.save(model, directory / "model.onnx")
    return load_model(f"dir:{without_files(directory)}")


def test_the_output_is_found_by_its_name(tmp_path):
    def swap(graph):
        graph.output.reverse()

    model = rebuilt(make_colours(tmp_path / "model"), swap)
    batch = np.full((1, 16, 16, 3), 51, np.uint8)
    assert model.tag_scores(batch) == pytest.approx(np.full((1, 3), 0.2))


def test_outputs_without_a_known_name_are_not_guessed(tmp_path):
    def rename(graph):
        graph.node[-1].output[0] = graph.output[0].name = "logits"

    with pytest.raises(ModelError, match="none is called scores"):
        rebuilt(make_colours(tmp_path / "model"), rename)


def test_a_network_for_one_image_at_a_time(tmp_path):
    def fix(graph):
        for value in (graph.input[0], *graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1

    model = rebuilt(make_colours(tmp_path / "model"), fix)
    assert model.batch_size == 1
    batch = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 3), np.uint8)
    expected = np.repeat(np.arange(3)[:, None] / 255, 3, axis=1)
    assert model.tag_scores(batch) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("most", "message"),
    [
        (25.5, r"outside of 0\.\.1; does its card lack activation"),
        (float("nan"), "no numbers; does it need --precision fp32"),
    ],
)
def test_scores_that_are_no_probabilities_are_refused(tmp_path, most, message):
    def break_(graph):
        graph.initializer[1].float_data[0] = most

    model = rebuilt(make_colours(tmp_path / "model"), break_)
    with pytest.raises(ModelError, match=message):
        model.tag_scores(np.full((1, 16, 16, 3), 255, np.uint8))


def test_a_device_that_is_not_there(colours):
    with pytest.raises(UsageError, match="offers no CUDA"):
        load_model(f"dir:{colours}", RuntimeOptions(device="cuda"))
    options = RuntimeOptions(device="cpu", runtime="onnxruntime")
    assert "as asked" in load_model(f"dir:{colours}", options).choice.reason


def test_a_family_must_be_one(tmp_path):
    directory = make_colours(tmp_path / "model")
    card = directory / "card.toml"
    card.write_text(card.read_text().replace("onnx_tagger", "_loading"))
    with pytest.raises(UnknownName, match="unknown model family '-loading'"):
        load_model(f"dir:{directory}")
