"""annotary from Python: what is taken, what is given."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import annotary
from annotary.errors import NothingToDo, UnknownName, UsageError
from annotary.sources import SourceOptions
from annotary.tasks.label_sets import LabelSet
from tests.conftest import child_environment, colour_of, make_colours
from tests.small_encoder import SmallEncoder

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def model(colours) -> annotary.Annotator:
    return annotary.load(f"dir:{colours}", threads=2)


def scores(record) -> dict[str, float]:
    assert isinstance(record, annotary.Annotation), record
    return {tag.name: tag.score for tag in record.tags}


def expected(index: int = 0) -> object:
    values = np.array(colour_of(index)) / 255
    return pytest.approx(dict(zip(("red", "green", "blue"), values, strict=True)), abs=1e-5)


def test_every_kind_of_input_gives_the_same(model, photos):
    path = photos(1) / "00000.png"
    image = Image.open(path)
    inputs = [str(path), path, path.parent, path.read_bytes(), image, np.asarray(image)]
    for value in inputs:
        (record,) = model.tag(value, threshold=0)
        assert scores(record) == expected()
        assert (record.width, record.height) == (24, 18)
    records = list(model.tag(iter([*inputs, [inputs, (path,)]]), threshold=0))
    assert len(records) == 2 * len(inputs) + 1
    assert all(scores(record) == expected() for record in records)


def test_names_are_paths_as_written_or_made_up(model, photos):
    folder = photos(2)
    names = [record.image for record in model.tag([str(folder / "00001.png"), b"x", b"y", folder])]
    files = [str(folder / f"0000{i}.png") for i in (1, 0, 1)]
    assert names == [files[0], "image-1", "image-2", *files[1:]]


def test_a_transparent_pillow_image_is_put_on_white(model):
    (record,) = model.tag(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), threshold=0)
    assert scores(record) == {"red": 1.0, "green": 1.0, "blue": 1.0}


def test_it_is_lazy(model, photos):
    path = photos(1) / "00000.png"
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield path

    records = model.tag(endless())
    assert taken == 0
    assert next(records).ok
    assert taken < 200
    records.close()


def test_failures_are_records(model, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    broken, missing = model.tag([tmp_path / "a.jpg", b"no image"])
    assert isinstance(broken, annotary.Failure)
    assert not broken.ok
    assert broken.error == "UnreadableImage"
    assert broken.message == "the file is empty"
    assert missing.image == "image-1"


def test_options(model, photos):
    folder = photos(1)
    (folder / "sub").mkdir()
    (record,) = model.tag(folder, threshold=0, top=1, source_options=SourceOptions(recursive=False))
    assert len(record.tags) == 1
    (record,) = model.tag(folder, threshold=0, exclude=["red", "gre*"])
    assert [tag.name for tag in record.tags] == ["blue"]


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        ("nowhere", {}, UsageError, "no such file or folder"),
        (".", {}, NothingToDo, "no images"),
        (3, {}, UsageError, "cannot read an image from int"),
        (np.zeros((2, 2)), {}, UsageError, r"uint8 \[H, W, 3\].* but got float64 \[2, 2\]"),
        (np.zeros((0, 2, 3), np.uint8), {}, UsageError, "uint8"),
        (b"", {"preset": "best"}, UsageError, "preset must be one of"),
        (b"", {"threshold": 7}, UsageError, r"0\.\.1"),
    ],
)
def test_what_is_refused(model, images, options, error, message):
    with pytest.raises(error, match=message):
        list(model.tag(images, **options))


def test_an_element_that_is_no_image_is_a_failure(model, photos, tmp_path):
    path = photos(1) / "00000.png"
    elements = [
        3,
        "nowhere.jpg",
        np.zeros((2, 2)),
        tmp_path / "photos",
        Image.new("RGB", (0, 0)),
        path,
    ]
    records = list(model.tag(elements))
    assert [record.ok for record in records] == [False, False, False, True, False, True]
    with path.open(encoding="latin-1") as text, path.open("rb") as closed:
        pass
    again = list(model.tag([text, closed, memoryview(path.read_bytes())]))
    assert [record.ok for record in again] == [False, False, True]
    assert records[1].image == "nowhere.jpg"
    assert "no such file" in records[1].message


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16", "LAB"]
)
def test_pillow_images_of_every_mode(model, mode):
    (record,) = model.tag(Image.new(mode, (4, 4)))
    assert record.ok, record


def test_pillow_images_and_arrays_are_read_as_files_are(model):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.new("RGB", (4, 2))
    turned.info["exif"] = exif.tobytes()
    grey, clear = np.full((3, 5), 51, np.uint8), np.zeros((3, 5, 4), np.uint8)
    first, second, third = model.tag([turned, grey, clear], threshold=0)
    assert (first.width, first.height) == (2, 4)
    assert scores(second) == {"red": 0.2, "green": 0.2, "blue": 0.2}
    assert scores(third) == {"red": 1.0, "green": 1.0, "blue": 1.0}


def test_open_files_and_one_pattern(model, photos):
    path = photos(1) / "00000.png"
    with path.open("rb") as file:
        (record,) = model.tag(file, threshold=0, exclude="red")
    assert [tag.name for tag in record.tags if tag.name == "red"] == []
    (record,) = model.tag(bytearray(path.read_bytes()), threshold=0)
    assert scores(record) == expected()
    with pytest.raises(UsageError, match="threads"):
        annotary.load(threads=0)


def test_a_model_says_what_it_is(model):
    assert model.card.id == "colours@1.0"
    assert model.vocabulary.names == ("red", "green", "blue")
    assert model.choice.streams == 2


def test_unknown_model_and_name():
    with pytest.raises(UnknownName, match="unknown model"):
        annotary.load("nothing")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        annotary.nothing  # noqa: B018
    assert set(annotary.__all__) <= set(dir(annotary))


# Tensors


@pytest.mark.parametrize("kind", ["uint8", "float32", "float16", "bfloat16", "float64", "stack"])
def test_torch_tensors_are_taken_as_their_images(model, kind):
    torch = pytest.importorskip("torch")
    pixels = torch.tensor(colour_of(0), dtype=torch.uint8).reshape(3, 1, 1).repeat(1, 5, 7)
    within = {"bfloat16": 4e-3, "float16": 3e-3}.get(kind, 1e-5)
    if kind == "stack":
        records = list(model.tag(torch.stack([pixels, pixels]), threshold=0))
        assert [record.image for record in records] == ["image-1", "image-2"]
    else:
        given = pixels if kind == "uint8" else (pixels / 255).to(getattr(torch, kind))
        records = list(
            model.tag([given.requires_grad_() if kind == "float32" else given], threshold=0)
        )
    for record in records:
        values = dict(zip(("red", "green", "blue"), np.array(colour_of(0)) / 255, strict=True))
        assert scores(record) == pytest.approx(values, abs=within)
        assert (record.width, record.height) == (7, 5)


def test_grey_and_transparent_tensors_are_read_as_images_are(model):
    torch = pytest.importorskip("torch")
    (grey,) = model.tag(torch.full((1, 2, 2), 51, dtype=torch.uint8), threshold=0)
    assert set(scores(grey).values()) == {0.2}
    (clear,) = model.tag(torch.zeros((4, 2, 2), dtype=torch.uint8), threshold=0)
    assert set(scores(clear).values()) == {1.0}


@pytest.mark.parametrize(
    ("shape", "low", "high", "message"),
    [
        ((3, 2, 2), -2.0, 2.0, r"must hold 0\.\.1: give it before"),
        ((2, 2), 0.0, 1.0, r"must be \[3, H, W\]"),
        ((2, 2, 3), 0.0, 1.0, r"must be \[3, H, W\]"),
        ((3, 0, 2), 0.0, 1.0, r"must be \[3, H, W\]"),
    ],
)
def test_tensors_that_are_no_images_are_refused(model, shape, low, high, message):
    torch = pytest.importorskip("torch")
    with pytest.raises(UsageError, match=message):
        model.tag(torch.rand(shape) * (high - low) + low)
    with pytest.raises(UsageError, match=r"must hold uint8 0\.\.255 or floats 0\.\.1"):
        model.tag(torch.zeros((3, 2, 2), dtype=torch.int64))


def test_a_stack_of_arrays_is_several_images(model):
    stack = np.stack([np.full((4, 4, 3), colour_of(i), np.uint8) for i in range(3)])
    records = list(model.tag(stack, threshold=0))
    assert [scores(record) for record in records] == [expected(i) for i in range(3)]


# Wishes


def test_rules_and_wishes_of_the_command_line(model):
    white = np.full((2, 2, 3), (255, 128, 26), np.uint8)

    def names(**wishes) -> list[str]:
        (record,) = model.tag(white, **wishes)
        return [tag.name for tag in record.tags]

    assert names(keep="*e*", threshold=0) == ["red", "green", "blue"]
    assert names(keep=["red", "blue"], threshold=0) == ["red", "blue"]
    assert names(category_threshold={"colour": 0.9}) == ["red"]
    assert names(threshold=1.0, min_tags=2) == ["red", "green"]
    assert names(mcut=True) == ["red"]
    assert names(threshold=0, order="vocabulary", first="blue") == [
        "blue",
        "red",
        "green",
    ]
    with pytest.raises(UsageError, match="no category 'x'"):
        names(category_threshold={"x": 0.5})


def test_several_models_are_asked_together(colours, tmp_path):
    other = make_colours(tmp_path / "other", version="2.0")
    both = annotary.load([f"dir:{colours}", f"dir:{other}"], threads=1)
    assert both.vocabulary.names == ("red", "green", "blue")
    (record,) = both.tag(np.full((4, 4, 3), colour_of(0), np.uint8), threshold=0)
    assert scores(record) == expected()
    assert record.sources == {"tags": "colours@1.0+colours@2.0"}
    with pytest.raises(UsageError, match="name at least one model"):
        annotary.load([])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: annotary.load(Path("x")), "a model's name is text, such as 'dir:x'"),
        (lambda model: annotary.load(["starter", "starter"]), "each once"),
        (lambda model: annotary.load(threads="2"), "threads must be whole and at least 1"),
        (lambda model: model.tag("x.png", top=1.5), "top must be whole and at least 1"),
        (lambda model: model.tag("x.png", min_tags="3"), "min_tags must be whole"),
        (lambda model: model.tag("x.png", threshold="x"), r"threshold must be in 0\.\.1"),
        (lambda model: model.tag("x.png", order="odd"), "order must be score"),
        (lambda model: model.tag("x.png", category_threshold="a=1"), "is like {'character': 0.85}"),
        (lambda model: model.tag({"a": 1}), "cannot read images from a mapping: give its values"),
    ],
)
def test_wrong_types_are_told(model, call, message):
    with pytest.raises(UsageError, match=message):
        call(model)


def test_nothing_said_is_nothing_excluded(model):
    (record,) = model.tag(np.zeros((2, 2, 3), np.uint8), exclude=None, keep=None, threshold=0)
    assert len(record.tags) == 3


def test_an_element_that_cannot_be_had_is_a_failure_and_the_others_are_done(model):
    torch = pytest.importorskip("torch")
    nowhere = torch.empty((3, 2, 2), device="meta")
    first, second = model.tag([nowhere, np.zeros((2, 2, 3), np.uint8)])
    assert (first.ok, second.ok) == (False, True)


def test_the_known_models_are_listed():
    assert {"starter", "joytag", "wd-vit-tagger-v3"} <= set(annotary.list_models())


def test_a_model_shows_what_it_is_and_runs_on(model):
    assert repr(model).startswith("Annotator('colours@1.0', ")
    assert repr(model).endswith(")")


def test_a_program_may_end_before_its_results_do(colours, photos):
    folder = photos(300)
    code = f"import annotary; r = annotary.load('dir:{colours}').tag({str(folder)!r}); print(next(r).ok)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


RED = np.full((8, 8, 3), (230, 20, 20), np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.classify(RED, "red", threshold="0.5"), r"threshold must be in 0\.\.1"),
        (lambda model: model.classify(RED, "red", top=1.5), "top must be whole and at least 1"),
        (lambda model: model.classify(RED, "red", multi_label="no"), "multi_label must be true or"),
        (lambda model: model.classify(RED, "red", none_label=3), "none_label must be text"),
        (lambda model: model.classify(RED, "red", calibration=3), "expected str"),
        (lambda model: model.classify(RED, "red", templates=3), "expected str"),
        (
            lambda model: model.classify(RED, "red", label_thresholds=["red"]),
            "thresholds of labels",
        ),
        (lambda model: model.classify(RED, "red", label_thresholds={"red": "x"}), "must be in 0"),
        (lambda model: model.classify(RED, "red", background="\udcff"), "background is not valid"),
        (lambda model: model.embed_texts(b"red"), "texts are a text or a list of texts"),
        (lambda model: model.embed_texts(None), "texts are a text or a list of texts"),
        (lambda model: model.embed_texts(["red", 3]), "must be text, but got 3"),
        (lambda model: model.embed_texts("\udcff"), "this is no text that a model can read"),
        (lambda model: model.compare(RED, "\udcff"), "this is no text that a model can read"),
    ],
)
def test_wrong_types_are_told_at_once_where_texts_are_asked_for(call, message):
    with pytest.raises(UsageError, match=message):
        call(annotary.Annotator(SmallEncoder()))


@pytest.mark.parametrize(
    "beside", [{"template": "a {}"}, {"none_label": "none"}, {"background": ["a photo."]}]
)
def test_what_a_set_of_labels_says_itself_is_not_said_again(beside):
    labels = LabelSet.of("red, blue")
    model = annotary.Annotator(SmallEncoder())
    (record,) = model.classify(RED, labels)
    assert record.labels[0].name == "red"
    with pytest.raises(UsageError, match=r"give them to LabelSet\.of"):
        model.classify(RED, labels, **beside)


def test_labels_of_numpy_are_plain_texts():
    (record,) = annotary.Annotator(SmallEncoder()).classify(RED, np.array(["red", "blue"]))
    assert [(label.name, type(label.name)) for label in record.labels] == [
        ("red", str),
        ("blue", str),
    ]


def test_a_warning_cites_the_beginning_of_a_long_text():
    model = SmallEncoder(most_words=3)
    with pytest.warns(UserWarning, match="the end is left out") as told:
        annotary.Annotator(model).embed_texts("word " * 10_000)
    assert len(str(told[0].message)) < 200


def test_policies_decide_from_python_too(tmp_path):
    rules = tmp_path / "policy.yaml"
    rules.write_text("rules: [{label: a cat, block: 0.5}, {label: boats, review: 0.5}]\n")
    model = annotary.load("starter")
    photos = [EXAMPLES / name for name in ("cat.jpg", "boats.jpg", "coffee.jpg")]
    found = list(model.classify(photos, "a cat, boats, coffee", policy=rules))
    assert [photo.decision.action for photo in found] == ["block", "review", "allow"]
    own = tmp_path / "own.yaml"
    own.write_text(
        "labels: {cat: [a photo of a cat], boat: [a boat]}\n"
        + rules.read_text().replace("a cat", "cat").replace("boats", "boat")
    )
    assert next(model.classify(photos, policy=own)).decision.action == "block"
    with pytest.raises(UsageError, match="labels of its own; give no others"):
        model.classify(photos, "cat", policy=own)
    with pytest.raises(UsageError, match="say the labels"):
        model.classify(photos)
    tags = tmp_path / "tags.yaml"
    tags.write_text("rules: [{tag: cat, block: 0.5}]\n")
    assert [p.decision.action for p in model.tag(photos, policy=tags)] == [
        "block",
        "allow",
        "allow",
    ]
    with pytest.raises(UsageError, match="need classify"):
        model.tag(photos, policy=own)


def test_of_many_images_to_compare_only_the_first_are_looked_at():
    encoder = SmallEncoder(batch_size=1)

    def endless() -> Iterator[np.ndarray]:
        while True:
            yield RED

    with pytest.raises(UsageError, match="one image on each side, but got more"):
        annotary.Annotator(encoder).compare(endless(), "red")
    with pytest.raises(UsageError, match="one image on each side, but got none"):
        annotary.Annotator(encoder).compare([], "red")
