"""Exports are whole models that are near the one they came from, or there is nothing."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

import annotary
from annotary.cards import check_files, read_card
from annotary.errors import ModelError, OutputError, UsageError
from annotary.export import ExportOptions, export_model
from annotary.export import _model as model_module
from annotary.export._photos import Photos, drawn
from annotary.models import load_model
from annotary.runtime import RuntimeOptions, precision_of
from annotary.tasks.encoding import dual_encoder

needs_nncf = pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None, reason="the extra export is not installed"
)


def scores(directory: Path, calibration: Path, **options: str) -> np.ndarray:
    model = load_model(f"dir:{directory}", RuntimeOptions(device="cpu", **options))
    with Photos([str(calibration)], model.card.preprocess, 8) as photos:
        return np.concatenate([model.tag_scores(b) for b in photos.comparing()])


@needs_nncf
def test_int8_of_a_convolutional_network(convolutional, calibration, tmp_path):
    target = tmp_path / "made" / "small"
    options = ExportOptions("int8", (str(calibration),), samples=12)
    done = export_model(f"dir:{convolutional}", options, target)
    assert done.directory == target
    assert {path.name for path in target.iterdir()} == {
        *("card.toml", "model.onnx", "tags.csv", "parity.json")
    }
    card = read_card(target)
    assert (card.name, card.version, card.family) == ("convolutional-int8", "2.0", "onnx_tagger")
    assert (card.source, card.licence) == ("convolutional@2.0", "Apache-2.0")
    assert card.preprocess == read_card(convolutional).preprocess
    assert set(card.files) == {"model.onnx", "tags.csv"}
    check_files(card, target)
    assert precision_of(target / "model.onnx") == "int8"
    exact = scores(convolutional, calibration, precision="fp32", runtime="onnxruntime")
    for library in ("onnxruntime", "openvino"):
        if importlib.util.find_spec(library) is not None:
            made = scores(target, calibration, runtime=library)
            assert np.abs(made - exact).max() < 0.05
            assert 0 < np.abs(made - exact).mean() < 0.01
    model = annotary.load(f"dir:{target}")
    assert model.choice.precision == "int8"
    assert model.vocabulary.thresholds["balanced"][:4] == (0.3, 0.4, 0.5, 0.6)
    assert model.vocabulary.categories[:2] == ("even", "odd")
    parity = json.loads((target / "parity.json").read_text())
    assert parity["calibrated_on"] == 12
    assert (
        5 <= parity["compared_on"] <= 6
    )  # the file that is none may be among those that were chosen
    assert parity["largest_difference"] == pytest.approx(done.parity.largest_difference)
    assert 0 < parity["mean_difference"] < parity["largest_difference"] < 0.05
    assert not list(tmp_path.glob("made/.annotary-*"))


@needs_nncf
def test_int8_of_a_convolutional_network_is_computed_in_integers(
    convolutional, calibration, tmp_path
):
    import onnx
    import onnxruntime

    options = ExportOptions("int8", (str(calibration),), samples=8)
    done = export_model(f"dir:{convolutional}", options, tmp_path / "made")
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "fused.onnx")
    settings.log_severity_level = 4
    path = done.directory / "model.onnx"
    onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert operators.count("QLinearConv") == 3
    assert "Conv" not in operators
    assert {"Gemm", "FusedGemm"} & set(operators)  # the head stays in floats


@needs_nncf
def test_int8_of_a_network_of_torch(joytag, calibration, tmp_path):
    options = ExportOptions("int8", (str(calibration),), samples=8)
    done = export_model(f"dir:{joytag}", options, tmp_path / "made")
    assert precision_of(done.directory / "model.onnx") == "int8"
    exact = scores(joytag, calibration, precision="fp32", runtime="torch")
    assert np.abs(scores(done.directory, calibration) - exact).max() < 0.1
    made = load_model(f"dir:{done.directory}", RuntimeOptions(device="cpu"))
    batch = next(drawn(made.card.preprocess, 1))
    assert made.features(batch).shape == (1, 32)


def test_a_network_of_torch_gives_the_same_scores_in_onnx(joytag, calibration, tmp_path):
    pytest.importorskip("onnxscript")
    done = export_model(f"dir:{joytag}", ExportOptions("fp32"), tmp_path / "made")
    assert done.parity.compared_on == 0
    assert done.parity.largest_difference < 1e-5
    assert "pictures that were made up" in next(done.parity.lines())
    exact = scores(joytag, calibration, precision="fp32", runtime="torch")
    made = scores(done.directory, calibration, precision="fp32", runtime="onnxruntime")
    assert np.abs(made - exact).max() < 1e-5
    source = load_model(f"dir:{joytag}", RuntimeOptions(device="cpu", precision="fp32"))
    model = load_model(f"dir:{done.directory}", RuntimeOptions(device="cpu", precision="fp32"))
    several = np.concatenate(list(drawn(model.card.preprocess, 5)))
    assert np.abs(source.tag_scores(several) - model.tag_scores(several)).max() < 1e-5
    assert np.abs(source.features(several) - model.features(several)).max() < 1e-4


def test_an_onnx_file_gains_its_features(convolutional, tmp_path):
    done = export_model(f"dir:{convolutional}", ExportOptions("fp32"), tmp_path / "made")
    assert done.parity.largest_difference < 1e-6
    model = load_model(f"dir:{done.directory}", RuntimeOptions(device="cpu", precision="fp32"))
    batch = next(drawn(model.card.preprocess, 1))
    assert model.features(batch).shape == (1, 16)


def test_the_starter_becomes_fp32(calibration, tmp_path):
    done = export_model("starter", ExportOptions("fp32", (str(calibration),)), tmp_path / "made")
    assert precision_of(done.directory / "model.onnx") == "fp32"
    assert done.parity.compared_on == 8
    assert done.parity.mean_difference < 0.003
    assert done.size > done.size_before
    assert done.card.source == "starter@1.3"
    # What knows texts goes on knowing them, and says the same of them.
    exported, shipped = load_model(f"dir:{done.directory}"), load_model("starter")
    texts = ["a cat", "ein Hafen"]
    np.testing.assert_array_equal(
        dual_encoder(exported).embed_texts(texts).vectors,
        dual_encoder(shipped).embed_texts(texts).vectors,
    )
    assert dual_encoder(exported).similarity == dual_encoder(shipped).similarity


# What is refused


def test_int8_needs_photos(convolutional):
    with pytest.raises(UsageError, match="int8 needs --calibrate PHOTOS"):
        export_model(f"dir:{convolutional}", ExportOptions("int8"))


def test_too_few_photos_are_too_few(convolutional, photos, tmp_path):
    folder = photos(7)
    (folder / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match="at least 8 photos that can be read, but there are 7"):
        export_model(
            f"dir:{convolutional}", ExportOptions("int8", (str(folder),)), tmp_path / "made"
        )
    assert not (tmp_path / "made").exists()


def test_int8_of_int8_is_refused(calibration):
    with pytest.raises(UsageError, match=r"starter@1\.3 computes in int8 already"):
        export_model("starter", ExportOptions("int8", (str(calibration),)))


def test_what_is_there_is_never_touched(convolutional, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for target in (taken, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(OutputError, match="exists; choose another --output"):
            export_model(f"dir:{convolutional}", ExportOptions("fp32"), target)
    assert (taken / "mine.txt").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"taken", "file", "link"}


def test_an_empty_folder_is_used(convolutional, tmp_path):
    (tmp_path / "made").mkdir()
    export_model(f"dir:{convolutional}", ExportOptions("fp32"), tmp_path / "made")
    assert (tmp_path / "made" / "card.toml").is_file()


def test_the_name_is_the_default(convolutional, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = export_model(f"dir:{convolutional}", ExportOptions("fp32"))
    assert done.directory == Path("convolutional-fp32")
    assert (tmp_path / "convolutional-fp32" / "model.onnx").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left"), MemoryError])
def test_an_export_that_is_stopped_leaves_nothing(convolutional, tmp_path, monkeypatch, error):
    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(model_module, "compare", stop)
    expected = OutputError if isinstance(error, OSError) else error
    with pytest.raises(expected):
        export_model(f"dir:{convolutional}", ExportOptions("fp32"), tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_an_export_that_is_not_faithful_is_not_kept(convolutional, tmp_path, monkeypatch):
    def other(source: Path, *_: object) -> object:
        import onnx

        model = onnx.load(source)
        for tensor in model.graph.initializer:
            if tensor.name == "head_bias":
                changed = onnx.numpy_helper.to_array(tensor) + 1
                tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
        return model

    monkeypatch.setattr(model_module, "read_model", other)
    with pytest.raises(ModelError, match=r"gives other scores in ONNX, by up to 0\.\d+; nothing"):
        export_model(f"dir:{convolutional}", ExportOptions("fp32"), tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_a_damaged_network_is_one_line(convolutional, calibration, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(convolutional, folder)
    (folder / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError) as raised:
        export_model(f"dir:{folder}", ExportOptions("int8", (str(calibration),)), tmp_path / "made")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "made").exists()


def test_options_are_checked():
    with pytest.raises(ValueError, match="samples must be at least 8, but got 7"):
        ExportOptions(samples=7)
    with pytest.raises(ValueError, match=r"threshold must be in 0\.\.1, but got 2"):
        ExportOptions(threshold=2)
    with pytest.raises(ValueError, match="calibrate must be several places"):
        ExportOptions(calibrate="photos")  # type: ignore[arg-type]
