"""OWL-ViT and OWLv2 against transformers, with small random checkpoints: logits, boxes, queries of examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from annotary import preprocess
from annotary.models import find, load_model
from annotary.runtime import RuntimeOptions
from annotary.tasks.detection import Detection, DetectionOptions
from annotary.tasks.label_sets import LabelSet
from annotary.tasks.queries import OWL_TEMPLATES, Example
from tests.encoders import quiet_transformers
from tests.owl import KINDS, PLACES, WIDTH, image_processor, make_owl, reference
from tests.tasks.detectors import pictures_of

TEXTS = ["a cat", "dog of the snow", "photo"]
SIZES = [(90, 50), (50, 90), (64, 64), (33, 200)]
EXACT = RuntimeOptions(precision="fp32")


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def directory(kind, tmp_path_factory) -> Path:
    return make_owl(tmp_path_factory.mktemp("owl") / kind, kind)


@pytest.fixture(scope="module")
def model(directory):
    return load_model(find(f"dir:{directory}"), EXACT)


@pytest.fixture(scope="module")
def theirs(directory, kind):
    return reference(directory, kind)


@pytest.fixture(scope="module")
def photos():
    random = np.random.default_rng(3)
    return [random.integers(0, 256, (height, width, 3), np.uint8) for width, height in SIZES]


def batch_of(model, photos):
    spec = model.card.preprocess
    return preprocess.to_batch([preprocess.fit(photo, spec) for photo in photos], spec)


def asked(theirs, directory, pixels, texts):
    """What transformers gives for the same texts on all images."""
    import torch

    with quiet_transformers() as transformers, torch.no_grad():
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        tokens = tokenizer(
            list(texts) * len(pixels), padding="max_length", max_length=16, return_tensors="pt"
        )
        return theirs(**tokens, pixel_values=torch.from_numpy(pixels))


def corners(boxes):
    from transformers.image_transforms import center_to_corners_format

    return center_to_corners_format(boxes).numpy()


def test_pixels_are_those_of_the_image_processor(model, kind, photos):
    with quiet_transformers():
        found = image_processor(kind)(photos, return_tensors="np").pixel_values
    assert np.abs(batch_of(model, photos) - found).max() < 1e-5


def test_logits_and_boxes(model, theirs, directory, photos):
    batch = batch_of(model, photos)
    found = model.locate(batch, model.embed_queries(TEXTS).vectors)
    expected = asked(theirs, directory, batch, TEXTS)
    assert found.logits.shape == (len(photos), PLACES, len(TEXTS))
    assert found.logits.std() > 1.0  # they tell places and texts apart
    np.testing.assert_allclose(found.logits, expected.logits.numpy(), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(found.boxes, corners(expected.pred_boxes), atol=1e-6)


def test_one_image_and_many_are_the_same(model, photos):
    queries = model.embed_queries(TEXTS).vectors
    together = model.locate(batch_of(model, photos), queries)
    for number, photo in enumerate(photos):
        alone = model.locate(batch_of(model, [photo]), queries)
        np.testing.assert_allclose(alone.logits[0], together.logits[number], atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(alone.boxes[0], together.boxes[number], atol=1e-6)


def test_boxes_in_pixels_are_those_of_the_post_processing(model, theirs, directory, kind, photos):
    """transformers is right where the image is not cut: boxes within it, to 0.01 pixels, in the same order."""
    import torch

    batch = batch_of(model, photos)
    expected = asked(theirs, directory, batch, TEXTS)
    sizes = torch.tensor([photo.shape[:2] for photo in photos])
    with quiet_transformers():
        every = image_processor(kind).post_process_object_detection(
            expected, threshold=0.05, target_sizes=sizes
        )
    task = Detection(model, LabelSet.of(TEXTS, "{}"), DetectionOptions(threshold=0.05))
    compared = 0
    for answer, them, photo in zip(
        task.annotate(pictures_of(photos), batch), every, photos, strict=True
    ):
        height, width = photo.shape[:2]
        edges = them["boxes"].numpy().clip(0, (width, height, width, height))
        has_area = (edges[:, 2:].round(3) > edges[:, :2].round(3)).all(axis=1)
        order = np.argsort(-them["scores"].numpy()[has_area], kind="stable")
        edges, scores = edges[has_area][order], them["scores"].numpy()[has_area][order]
        labels = [TEXTS[i] for i in them["labels"].numpy()[has_area][order]]
        assert [box.label for box in answer["boxes"]] == labels
        np.testing.assert_allclose([box.score for box in answer["boxes"]], scores, atol=2e-6)
        found = np.array([box.xyxy for box in answer["boxes"]]).reshape(-1, 4)
        np.testing.assert_allclose(found, edges, atol=0.01)
        compared += len(labels)
    assert compared > 10


def test_the_query_of_an_example(model, theirs, kind, photos):
    """Of OWL-ViT the whole image, of OWLv2 the place with the highest objectness: what transformers looks for."""
    import torch

    batch = batch_of(model, photos[:2])
    pixels = torch.from_numpy(batch)
    with quiet_transformers(), torch.no_grad():
        expected = theirs.image_guided_detection(
            pixel_values=pixels.flip(0), query_pixel_values=pixels
        )
        best = np.array([[0, 0, 1, 1]] * 2, np.float32)
        if kind == "owlv2":
            places = theirs.image_embedder(pixels)[0].reshape(2, PLACES, -1)
            chosen = theirs.objectness_predictor(places).argmax(dim=-1).numpy()
            best = corners(expected.query_pred_boxes)[np.arange(2), chosen]
    queries = model.queries_like(batch, best)
    assert queries.shape == (2, WIDTH)
    for number, query in enumerate(queries):
        found = model.locate(batch[1 - number : 2 - number], query[None])
        wanted = expected.logits[number].numpy()
        np.testing.assert_allclose(found.logits[0], wanted, atol=1e-5, rtol=1e-5)
        boxes = corners(expected.target_pred_boxes)[number]
        np.testing.assert_allclose(found.boxes[0], boxes, atol=1e-6)


def test_templates_give_the_mean_of_their_logits(model, photos):
    """As the evaluation of OWL-ViT takes it; here it costs as much as one text."""
    batch = batch_of(model, photos[:1])
    single = [
        model.locate(batch, model.embed_queries([template.replace("{}", "cat")]).vectors).logits
        for template in OWL_TEMPLATES
    ]
    task = Detection(model, LabelSet.of(["cat"], OWL_TEMPLATES), DetectionOptions(threshold=0.0))
    (answer,) = task.annotate(pictures_of(photos[:1]), batch)
    logits = np.mean(single, axis=0)[0, :, 0].astype(np.float64)
    expected = np.sort(1 / (1 + np.exp(-logits)))[::-1]
    scores = [box.score for box in answer["boxes"]]
    assert task.empty + len(scores) == PLACES
    assert len(scores) > PLACES // 2
    assert all(np.abs(expected - score).min() < 2e-6 for score in scores)


def test_heads_compute_in_float32_whatever_the_tower_computes_in(directory, photos):
    """In bf16 a box would have two or three digits; only what the tower rounds may differ."""
    import torch

    half = load_model(find(f"dir:{directory}"), RuntimeOptions(precision="bf16"))
    batch = batch_of(half, photos)
    queries = half.embed_queries(TEXTS).vectors
    found = half.locate(batch, queries)
    assert {parameter.dtype for parameter in half._heads.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in half._images._module.parameters()} == {torch.bfloat16}
    with half._images.computing():
        (hidden,) = half._images.compute(torch.from_numpy(batch))
        boxes = half._heads.boxes(half._heads.places(hidden)).numpy()
    np.testing.assert_array_equal(found.boxes, boxes)
    # More digits than bf16 has: rounded to it, boxes fall together.
    rounded = torch.tensor(boxes).bfloat16().float().numpy()
    assert len(np.unique(boxes)) > 1.5 * len(np.unique(rounded))
    exact = load_model(find(f"dir:{directory}"), EXACT)
    np.testing.assert_array_equal(queries, exact.embed_queries(TEXTS).vectors)


def test_the_tower_runs_once_an_image(model, photos, monkeypatch):
    """huggingface/transformers#32490: its pipeline runs it once a label, so that time grows with their number."""
    runs = []
    compute = model._images.compute
    monkeypatch.setattr(model._images, "compute", lambda batch: runs.append(1) or compute(batch))
    texts = monkeypatch_count(monkeypatch, model._texts)
    names = [f"thing {number}" for number in range(40)]
    task = Detection(model, LabelSet.of(names, "{}"))
    for photo in photos:
        task.annotate(pictures_of([photo]), batch_of(model, [photo]))
    assert len(runs) == len(photos)
    assert sum(texts) == len(names)


def monkeypatch_count(monkeypatch, session):
    """How many texts were embedded, a call."""
    counts = []
    run = session.run
    monkeypatch.setattr(session, "run", lambda *told: counts.append(len(told[0])) or run(*told))
    return counts


def test_two_thousand_labels_are_as_labels_asked_apart(model, photos):
    names = [f"thing {number}" for number in range(2000)]
    batch, seen = batch_of(model, photos[:2]), pictures_of(photos[:2])
    options = DetectionOptions(threshold=0.9, multi_label=True)
    every = Detection(model, LabelSet.of(names, "{}"), options).annotate(seen, batch)
    found = [{(box.label, box.xyxy): box.score for box in answer["boxes"]} for answer in every]
    assert sum(map(len, found)) > 100
    apart: list[dict] = [{}, {}]
    for start in range(0, 2000, 500):
        task = Detection(model, LabelSet.of(names[start : start + 500], "{}"), options)
        for own, answer in zip(apart, task.annotate(seen, batch), strict=True):
            own |= {(box.label, box.xyxy): box.score for box in answer["boxes"]}
    for one, other in zip(found, apart, strict=True):
        assert one.keys() == other.keys()
        assert all(abs(score - other[key]) < 2e-6 for key, score in one.items())


def test_examples_and_words_together(model, photos):
    batch = batch_of(model, photos[:1])
    words = Detection(model, LabelSet.of(TEXTS, "{}"), DetectionOptions(multi_label=True, nms=1))
    example = Example("shown", photos[1], (10, 10, 40, 60))
    both = Detection(
        model,
        LabelSet.of(TEXTS, "{}"),
        DetectionOptions(multi_label=True, nms=1),
        examples=[example],
    )
    assert both.names == (*TEXTS, "shown")
    (alone,), (together,) = (t.annotate(pictures_of(photos[:1]), batch) for t in (words, both))
    shown = [box for box in together["boxes"] if box.label == "shown"]
    rest = [box for box in together["boxes"] if box.label != "shown"]
    assert [(box.label, box.xyxy) for box in rest] == [
        (box.label, box.xyxy) for box in alone["boxes"]
    ]
    assert [box.score for box in rest] == pytest.approx([b.score for b in alone["boxes"]], abs=2e-6)
    assert shown
