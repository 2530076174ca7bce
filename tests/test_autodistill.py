"""The adapter for autodistill: its interface, and none of the defects A1 to A11 of the module that it replaces."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotary.errors import OutputError, UnreadableImage, UsageError
from tests.conftest import child_environment
from tests.small_encoder import COLOURS, SmallEncoder, plain

# Without the system library that OpenCV draws with, both are installed and cannot be imported.
pytest.importorskip("supervision", exc_type=ImportError)
pytest.importorskip("autodistill", exc_type=ImportError)

import supervision as sv

from annotary.autodistill import Annotary, CaptionOntology

ROOT = Path(__file__).parent.parent
ONTOLOGY = {"a photo of a red wall": "warm", "yellow": "warm", "something blue": "cold"}


@pytest.fixture
def model(monkeypatch, tmp_path):
    monkeypatch.setenv("ANNOTARY_CACHE", str(tmp_path / "cache"))
    return Annotary(CaptionOntology(ONTOLOGY), model=SmallEncoder())


@pytest.fixture
def images(tmp_path):
    """Pictures of many kinds, some in folders."""
    folder = tmp_path / "images"
    (folder / "deep" / "deeper").mkdir(parents=True)
    for i in range(10):
        Image.new("RGB", (20 + i, 10), COLOURS["red"]).save(folder / f"red-{i}.jpg")
        Image.new("RGB", (20 + i, 10), COLOURS["blue"]).save(
            folder / "deep" / "deeper" / f"blue-{i}.png"
        )
    return folder


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (30, 20), COLOURS[colour])


def test_a1_images_and_texts_are_on_one_device(model):
    assert model._model.choice.device == "cpu"
    assert isinstance(model.embed_image(picture("red")), np.ndarray)
    assert isinstance(model.embed_text("red"), np.ndarray)
    assert isinstance(model.predict(picture("red")).confidence, np.ndarray)


def test_a1_on_a_gpu(tmp_path):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here, where images and texts would have to meet on it")
    from tests.encoders import make_encoder

    checkpoint = f"dir:{make_encoder(tmp_path / 'clip', 'clip')}"
    there = Annotary(ONTOLOGY, model=checkpoint, device="cuda", confidence=0.0)
    here = Annotary(ONTOLOGY, model=checkpoint, device="cpu", confidence=0.0)
    assert there._model.choice.device == "cuda"
    found, expected = there.predict(picture("red")), here.predict(picture("red"))
    assert found.class_id.tolist() == expected.class_id.tolist()
    assert found.confidence == pytest.approx(expected.confidence, abs=0.02)


def test_a2_probabilities_are_of_unit_vectors_and_scaled(model):
    encoder = SmallEncoder()
    prompts = encoder.embed_texts(list(ONTOLOGY)).vectors.astype(np.float64)
    warm = prompts[:2].sum(axis=0)
    classes = np.stack([warm / np.linalg.norm(warm), prompts[2]])
    image = encoder.embed_images(plain(COLOURS["white"]))[0].astype(np.float64)
    assert np.linalg.norm(image) == pytest.approx(1.0, abs=1e-6)
    powers = np.exp(20.0 * classes @ image)
    expected = dict(enumerate(powers / powers.sum()))
    found = model.predict(picture("white"), confidence=0.0)
    assert dict(zip(found.class_id, found.confidence, strict=True)) == pytest.approx(
        expected, abs=1e-5
    )
    assert found.confidence.dtype == np.float32


def test_a3_nothing_is_dropped_out(tmp_path):
    from tests.encoders import make_encoder

    folder = make_encoder(tmp_path / "clip", "clip")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["attention_dropout"] = config["vision_config"]["attention_dropout"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    one, other = (
        Annotary(ONTOLOGY, model=f"dir:{folder}", confidence=0.0).predict(picture("red"))
        for _ in range(2)
    )
    assert one.confidence.tolist() == other.confidence.tolist()


def test_a4_embeddings_are_had_and_compared(model):
    red, text = model.embed_image(picture("red")), model.embed_text("a red wall")
    assert red.dtype == text.dtype == np.float32
    assert red.shape == text.shape == (24,)
    assert np.linalg.norm(red) == pytest.approx(1.0, abs=1e-5)
    assert model.embed_text(["a red wall", "blue"]).shape == (2, 24)
    likeness = model.compare(red, text)
    assert isinstance(likeness, float)
    assert likeness == pytest.approx(float(red @ text), abs=1e-6)
    assert likeness > model.compare(model.embed_image(picture("blue")), text)
    assert model.compare(red[None], 3 * red) == pytest.approx(1.0)
    with pytest.raises(UsageError, match="alike in length, but got 24 and 3"):
        model.compare(red, [1.0, 0.0, 0.0])
    with pytest.raises(UsageError, match="which are arrays"):
        model.compare("a.jpg", red)


def test_a4_ontologies_of_images_can_be_processed(model):
    from autodistill.core import EmbeddingOntologyImage

    ontology = EmbeddingOntologyImage({"warm": [picture("red"), picture("yellow")]})
    ontology.process(model)
    assert ontology.embeddingMap["warm"].shape == (24,)


def test_a5_it_is_a_classifier_and_labels_like_one(model, images):
    from autodistill.classification import ClassificationBaseModel
    from autodistill.detection import DetectionBaseModel

    assert isinstance(model, ClassificationBaseModel)
    assert not isinstance(model, DetectionBaseModel)
    before = {path: path.read_bytes() for path in images.rglob("*.*")}
    dataset = model.label(str(images))
    assert isinstance(dataset, sv.ClassificationDataset)
    assert dataset.classes == ["warm", "cold"]
    assert len(dataset) == 20
    output = images.with_name("images_labeled")
    counts = {
        part: {label: len(list((output / part / label).iterdir())) for label in ("warm", "cold")}
        for part in ("train", "valid", "test")
    }
    assert counts["train"] == {"warm": 7, "cold": 7}
    assert {label: sum(given[label] for given in counts.values()) for label in counts["train"]} == {
        "warm": 10,
        "cold": 10,
    }
    assert sum(counts["valid"].values()) == sum(counts["test"].values()) == 3
    assert {path: path.read_bytes() for path in images.rglob("*.*")} == before
    # In folders, of any suffix, and as they were: no PNG becomes a JPEG.
    assert len(list(output.rglob("*.png"))) == 10
    for path, _, found in dataset:
        assert dataset.classes[found.class_id[0]] == Path(path).parent.name
    loaded = sv.ClassificationDataset.from_folder_structure(str(output / "train"))
    assert loaded.classes == ["cold", "warm"]
    assert len(loaded) == 14


def test_a5_labelling_is_seeded_and_goes_on(model, images, tmp_path):
    first = model.label(images, output_folder=tmp_path / "a")
    again = model.label(images, output_folder=tmp_path / "b")
    other = model.label(images, output_folder=tmp_path / "c", seed=1)

    def parts(dataset, root):
        return {Path(path).relative_to(tmp_path / root) for path in dataset.image_paths}

    assert parts(first, "a") == parts(again, "b") != parts(other, "c")
    seen = model._model.images
    Image.new("RGB", (50, 50), COLOURS["red"]).save(images / "more.webp")
    assert len(model.label(images, output_folder=tmp_path / "a")) == 21
    assert model._model.images == seen + 1
    with pytest.raises(OutputError, match="other settings"):
        model.label(images, output_folder=tmp_path / "a", seed=2)


def test_a5_an_extension_is_an_extension(model, images):
    Image.new("RGB", (9, 9), COLOURS["red"]).save(images / "UPPER.JPG")
    assert len(model.label(f"{images}/", extension=".jpg")) == 11
    assert images.with_name("images_labeled").is_dir()
    with pytest.raises(UsageError, match=r"no image|nothing"):
        model.label(images, extension=".tiff", output_folder=images.with_name("none"))
    assert not images.with_name("none").exists()


def test_a6_texts_are_embedded_once(model):
    encoder = model._model
    assert encoder.texts == len(ONTOLOGY)
    for colour in COLOURS:
        model.predict(picture(colour))
    assert encoder.texts == len(ONTOLOGY)
    model.set_ontology({"green": "green"})
    assert encoder.texts == len(ONTOLOGY) + 1
    assert model.classes == ["green"]


def test_a7_nothing_sure_is_no_crash(model, images, tmp_path):
    found = model.predict(picture("white"), confidence=1.0)
    assert isinstance(found, sv.Classifications)
    assert len(found) == 0
    assert found.class_id.dtype.kind == "i"
    (best,) = model.predict(picture("white"), confidence=1.0, at_least_one=True).class_id
    everything = model.predict(picture("white"), confidence=0.0)
    assert best == everything.get_top_k(1)[0][0] == everything.class_id[0]
    assert model.predict(images / "red-0.jpg").confidence[0] < 0.995
    dataset = model.label(images, confidence=0.995)
    dataset.as_folder_structure(str(tmp_path / "again"))
    assert len(list((tmp_path / "again" / "cold").iterdir())) == len(dataset) == 10
    unsure = (images.with_name("images_labeled") / "unsure").rglob("*.*")
    assert sorted(path.name for path in unsure) == [f"red-{i}.jpg" for i in range(10)]
    every = model.label(images, output_folder=tmp_path / "every", confidence=0.0)
    assert len(every) == 20


def test_a8_several_prompts_make_one_class(model):
    assert model.classes == model.ontology.classes() == ["warm", "cold"]
    assert model.ontology.prompts() == list(ONTOLOGY)
    for colour, expected in {"red": "warm", "yellow": "warm", "blue": "cold"}.items():
        found = model.predict(picture(colour))
        assert [model.ontology.classes()[place] for place in found.class_id] == [expected]
    assert sorted(model.predict(picture("white"), confidence=0.0).class_id) == [0, 1]


def test_a9_the_example_imports_what_it_uses():
    import annotary.autodistill

    for text in (annotary.autodistill.__doc__, (ROOT / "docs" / "autodistill.md").read_text()):
        assert "from annotary.autodistill import Annotary" in text
    assert annotary.autodistill.__all__ == ["Annotary", "AnnotaryDetection", "CaptionOntology"]


def test_a10_what_is_imported_is_asked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["optional-dependencies"]["autodistill"]
    # autodistill imports scikit-learn and does not ask for it.
    assert [re.split(r"[<>=]", one)[0] for one in asked] == [
        *("autodistill", "scikit-learn", "supervision")
    ]


def test_a11_one_licence():
    assert metadata.metadata("annotary")["License-Expression"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


IMPORT = """
import sys, os
before = set(os.listdir(os.environ["HOME"]))
import annotary.autodistill
from autodistill.detection import CaptionOntology
assert "roboflow" not in sys.modules
assert not {"torch", "transformers", "onnxruntime"} & set(sys.modules)
assert set(os.listdir(os.environ["HOME"])) == before
model = sys.modules["autodistill.detection.detection_base_model"]
try:
    model.roboflow.login()
except ImportError as error:
    print(error)
"""


def child(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, env=child_environment(), check=False
    )


def test_importing_does_nothing_but_import():
    """No weights are fetched, as in autodistill-metaclip, nothing is written, and roboflow is not needed."""
    if (found := child("import roboflow")).returncode == 0:
        pytest.skip("roboflow is installed here, and autodistill takes it")
    assert "No module named 'roboflow'" in found.stderr
    result = child(IMPORT)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "this part of autodistill needs roboflow: pip install roboflow\n"
    assert result.stderr == ""


def test_a_missing_extra_is_one_line():
    result = child(
        "import sys; sys.modules['supervision'] = None\n"
        "from annotary.errors import MissingExtra\n"
        "try:\n    import annotary.autodistill\n"
        "except MissingExtra as error:\n    print(error)"
    )
    assert result.stdout == (
        "The adapter for autodistill needs an optional part: pip install 'annotary[autodistill]'\n"
    ), result.stderr


def test_arrays_are_of_opencv(model, tmp_path):
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "red.png"
    picture("red").save(path)
    array = cv2.imread(str(path))
    assert array[0, 0].tolist() == list(COLOURS["red"])[::-1]
    expected = model.predict(path)
    assert model.ontology.classes()[expected.class_id[0]] == "warm"
    with_alpha = cv2.cvtColor(array, cv2.COLOR_BGR2BGRA)
    for given in (str(path), array, with_alpha, Image.open(path), path.read_bytes()):
        assert model.predict(given) == expected
        assert model.embed_image(given) == pytest.approx(model.embed_image(path))
    assert len(model.predict(cv2.cvtColor(array, cv2.COLOR_BGR2GRAY), confidence=0.0)) == 2


def test_addresses_are_fetched(model, images):
    handler = functools.partial(
        type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}),
        directory=str(images),
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        found = model.predict(f"http://127.0.0.1:{server.server_port}/red-1.jpg")
    finally:
        server.shutdown()
        server.server_close()
    assert found == model.predict(images / "red-1.jpg")


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ("missing.jpg", UsageError, "missing.jpg"),
        (3, UsageError, "but got int"),
        (b"no image", UnreadableImage, "not an image"),
        ("images", UsageError, "one image at a time, but got 20"),
        (np.zeros((2, 2, 3), np.float32), UsageError, "uint8"),
    ],
)
def test_what_is_no_image_is_told(model, images, given, error, said):
    with pytest.raises(error, match=said):
        model.predict(given)


def test_options_that_make_no_sense_are_told(model, images):
    with pytest.raises(UsageError, match=r"confidence must be in 0\.\.1"):
        Annotary(ONTOLOGY, model=SmallEncoder(), confidence=2)
    with pytest.raises(UsageError, match=r"confidence must be in 0\.\.1"):
        model.predict(picture("red"), confidence=-1)
    with pytest.raises(UsageError, match="split must have shares"):
        model.label(images, split="train=0.2")
    with pytest.raises(UsageError, match="unknown model"):
        Annotary(ONTOLOGY, model="nothing-of-the-kind")


def test_none_of_the_classes_can_be_asked_for():
    model = Annotary({"red": "red"}, model=SmallEncoder(), background=["blue", "white"])
    assert len(model.predict(picture("red"))) == 1
    assert len(model.predict(picture("blue"))) == 0


def test_prompts_that_are_too_long_are_told():
    long = {"red " * 20: "warm", "blue": "cold"}
    with pytest.warns(
        UserWarning, match=r"^longer than small@1.0 reads, .*: prompts of warm$"
    ) as told:
        model = Annotary(long, model=SmallEncoder())
    assert told[0].filename == __file__
    model.set_ontology({"blue": "cold", "red": "warm"})
    with pytest.warns(UserWarning, match=r"prompts of n{77}\.\.\., a, b, \.\.\.$") as told:
        model.set_ontology({f"{name} " * 20: name for name in ("n" * 100, "a", "b", "c")})
    assert told[0].filename == __file__


def test_it_is_asked_as_composed_models_ask(model, tmp_path):
    """`ComposedDetectionModel` looks at the number of classes, then at the best."""
    result = model.predict(os.fspath(_saved(picture("blue"), tmp_path / "temp.jpeg")))
    assert len(result.class_id) > 0
    assert result.get_top_k(1)[0][0] == 1


def test_the_starter_predicts_photos(monkeypatch, tmp_path):
    monkeypatch.setenv("ANNOTARY_CACHE", str(tmp_path / "cache"))
    classes = {"a photo of a cat": "cat", "a cup of coffee": "coffee", "mountains": "mountains"}
    model = Annotary(CaptionOntology(classes))
    for name in classes.values():
        found = model.predict(ROOT / "examples" / f"{name}.jpg")
        assert [model.classes[number] for number in found.class_id] == [name]
    cat = model.embed_image(ROOT / "examples" / "cat.jpg")
    assert model.compare(cat, model.embed_text("a cat")) > 0.2
    assert model.compare(cat, model.embed_text("a cat")) > model.compare(
        cat, model.embed_text("mountains")
    )


def _saved(image: Image.Image, path: Path) -> Path:
    image.save(path)
    return path


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.predict(picture("red"), confidence="x"), "confidence must be in 0"),
        (lambda model: model.set_ontology(["cat"]), "an ontology is like"),
        (lambda model: Annotary(["cat", "dog"], model=SmallEncoder()), "an ontology is like"),
        (lambda model: Annotary(ontology={1: "cat"}, model=SmallEncoder()), "must be texts"),
        (lambda model: model.set_ontology(None), "an ontology is like"),
        (lambda model: model.set_ontology({}), "there are no labels"),
        (lambda model: model.compare([np.nan, 1.0], [1.0, 2.0]), "holds numbers"),
        (
            lambda model: Annotary(ONTOLOGY, model=SmallEncoder(), background=3),
            "background must be",
        ),
    ],
)
def test_wrong_types_are_told_and_what_was_there_stays(model, call, message):
    with pytest.raises(UsageError, match=message):
        call(model)
    assert model.predict(picture("red"), confidence=0.0).class_id[0] == 0
