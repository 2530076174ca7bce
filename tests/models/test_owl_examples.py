"""Image-guided detection, and what transformers makes of the same: threads of huggingface/transformers are named."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from annotary.models import find, load_model
from annotary.models._owl_examples import chosen_place, overlap
from annotary.runtime import RuntimeOptions
from annotary.tasks.detection import Detection, DetectionOptions
from annotary.tasks.queries import Example
from tests.encoders import quiet_transformers
from tests.owl import KINDS, image_processor, make_owl, reference
from tests.tasks.detectors import pictures_of
from tests.tasks.test_detection import ListedDetector


def test_the_best_of_the_covering_boxes_is_least_like_the_image():
    boxes = np.array(
        [[0, 0, 1, 1], [0, 0, 0.95, 0.95], [0, 0, 0.9, 1], [0, 0, 0.2, 0.2]], np.float32
    )
    classes = np.array([[1, 0], [0.9, 0.1], [-1, 3], [-5, -5]], np.float32)
    whole = np.array([0, 0, 1, 1], np.float32)
    # The last one is least like the mean, but does not cover the example.
    assert chosen_place(boxes, whole, classes, None) == np.argmin(
        (classes @ classes.mean(axis=0))[:3]
    )
    objectness = np.array([0.1, 0.7, 0.2, 0.9], np.float32)
    assert chosen_place(boxes, whole, classes, objectness) == 1


def test_overlap_is_that_of_transformers():
    """Also where boxes are apart."""
    from transformers.models.owlvit.modeling_owlvit import box_iou, generalized_box_iou

    torch = pytest.importorskip("torch")
    random = np.random.default_rng(1)
    corners = np.sort(random.random((200, 2, 2)), axis=1).reshape(-1, 4).astype(np.float32)
    example = np.array([0.1, 0.2, 0.4, 0.9], np.float32)
    shares, generalised = overlap(corners, example)
    told = torch.from_numpy(example)[None], torch.from_numpy(corners)
    np.testing.assert_allclose(shares, box_iou(*told)[0][0].numpy(), atol=1e-6)
    np.testing.assert_allclose(generalised, generalized_box_iou(*told)[0].numpy(), atol=1e-6)


def test_an_example_that_no_box_overlaps(tmp_path, monkeypatch):
    """huggingface/transformers#25490: there the fallback asks for 0.8 of the best, which is below 0, so that not even
    the best passes, and there is no query at all. OWL-ViT's own rule is 1.2 of it."""
    torch = pytest.importorskip("torch")
    theirs = reference(make_owl(tmp_path / "owlvit", "owlvit"), "owlvit")
    places = torch.randn(1, 3, 32)
    apart = torch.tensor([[[2.0, 2.0, 0.1, 0.1], [1.6, 1.6, 0.1, 0.1], [3.0, 3.0, 0.1, 0.1]]])
    with quiet_transformers(), torch.no_grad():
        monkeypatch.setattr(theirs, "box_predictor", lambda *_: apart)
        query, indices, _ = theirs.embed_image_query(places, places[:, None])
        classes = theirs.class_predictor(places)[1][0].numpy()
    assert query is None
    assert indices is None
    middle, size = apart[0, :, :2].numpy(), apart[0, :, 2:].numpy()
    boxes = np.concatenate([middle - size / 2, middle + size / 2], axis=1)
    whole = np.array([0, 0, 1, 1], np.float32)
    _, generalised = overlap(boxes, whole)
    assert generalised.max() < 0
    assert generalised[chosen_place(boxes, whole, classes, None)] >= 1.2 * generalised.max()


LOGITS = np.array([[[-3.0], [-2.0], [-4.0]], [[-200.0], [-200.0], [-200.0]]], np.float32)
BOXES = np.array(
    [[[0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 0.8, 0.8], [0.8, 0.1, 0.9, 0.2]]] * 2, np.float32
)


class Guided(ListedDetector):
    """Finds the boxes above in the first image, and nothing in the second."""

    def __init__(self):
        super().__init__(BOXES[0], LOGITS[0])

    def queries_like(self, batch, boxes):
        return np.ones((len(batch), 2), np.float32)

    def locate(self, batch, queries):
        return super().locate(batch, queries)._replace(logits=LOGITS[: len(batch)])


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_true_and_no_image_is_lost(kind):
    """huggingface/transformers#25490, #26920 and #42340: there the best box of every image has the score 1.000, however
    little it is like the example, because opacities for a picture take the place of scores; and images without a box
    are left out of the list, so that all that follow stand for others."""
    torch = pytest.importorskip("torch")
    centred = np.concatenate(
        [(BOXES[..., :2] + BOXES[..., 2:]) / 2, BOXES[..., 2:] - BOXES[..., :2]], axis=-1
    )
    outputs = SimpleNamespace(
        logits=torch.from_numpy(LOGITS[::-1].copy()), target_pred_boxes=torch.from_numpy(centred)
    )
    with quiet_transformers():
        theirs = image_processor(kind).post_process_image_guided_detection(
            outputs, threshold=0.0, nms_threshold=0.3, target_sizes=torch.tensor([[100, 100]] * 2)
        )
    assert len(theirs) == 1  # of two images
    assert theirs[0]["scores"].max() == pytest.approx(1.0, abs=1e-4)
    assert len(theirs[0]["scores"]) == 3

    photos = [np.zeros((100, 100, 3), np.uint8)] * 2
    task = Detection(
        Guided(), None, DetectionOptions(threshold=0.0), examples=[Example("x", photos[0])]
    )
    found = task.annotate(pictures_of(photos), np.zeros((2, 3, 4, 4), np.float32))
    assert len(found) == 2
    scores = [box.score for box in found[0]["boxes"]]
    expected = [1 / (1 + np.exp(value)) for value in (2.0, 3.0, 4.0)]
    assert scores == pytest.approx(expected, abs=1e-6)
    assert all(box.score == 0.0 for box in found[1]["boxes"])
    task = Detection(Guided(), None, examples=[Example("x", photos[0])])
    found = task.annotate(pictures_of(photos), np.zeros((2, 3, 4, 4), np.float32))
    assert [len(answer["boxes"]) for answer in found] == [1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_finds_itself(tmp_path, kind):
    """A place of an image is most like itself: its logit is the highest that the query can have there."""
    directory = make_owl(tmp_path / kind, kind)
    model = load_model(find(f"dir:{directory}"), RuntimeOptions(precision="fp32"))
    random = np.random.default_rng(5)
    batch = random.normal(size=(1, 3, 64, 64)).astype(np.float32)
    found = model.locate(batch, model.embed_queries(["cat"]).vectors)
    queries = model.queries_like(np.repeat(batch, 4, axis=0), found.boxes[0, :4])
    assert np.linalg.norm(queries, axis=1) == pytest.approx(np.ones(4), abs=1e-4)
    every = model.locate(batch, queries)
    np.testing.assert_array_equal(every.boxes, found.boxes)
    alike = np.linalg.norm(queries[:, None] - queries[None], axis=2)
    assert (alike[np.triu_indices(4, 1)] > 0.01).any()  # places differ, and so do their queries
