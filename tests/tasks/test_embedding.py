"""Embedding: every image as a unit vector, the same through JSON and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from annotary.images import DecodeOptions
from annotary.pipeline import PipelineOptions
from annotary.pipeline.local import annotate
from annotary.records import Annotation, Embedding, Item, from_line, to_line
from annotary.sources import Reader, SourceOptions
from annotary.tasks.embedding import Embed
from annotary.tasks.label_sets import LabelSet
from annotary.tasks.zero_shot import ZeroShot
from tests.small_encoder import COLOURS, DIMENSIONS, SmallEncoder, plain

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.jpg"))


def test_vectors_are_those_of_the_model_in_eight_decimals():
    model = SmallEncoder()
    pictures = np.concatenate([plain(colour) for colour in COLOURS.values()])
    items = [Item(name, pixels=np.zeros((1, 1, 3), np.uint8)) for name in COLOURS]
    found = Embed(model).annotate(items, pictures)
    expected = model.embed_images(pictures)
    assert [list(parts) for parts in found] == [["embedding"]] * len(items)
    for parts, vector in zip(found, expected, strict=True):
        assert isinstance(parts["embedding"], Embedding)
        np.testing.assert_allclose(parts["embedding"].vector, vector, rtol=0, atol=5.1e-9)
        assert all(
            len(repr(value)) <= 11 or "e" in repr(value) for value in parts["embedding"].vector
        )


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_real_run_gives_records_that_are_the_same_through_json(batch_size: int):
    model = SmallEncoder()
    items = [Item.from_path(path) for path in EXAMPLES]
    options = PipelineOptions(batch_size=batch_size)
    results = list(
        annotate(items, [Embed(model)], Reader(SourceOptions()), DecodeOptions(), options)
    )
    assert len(results) == model.images == len(EXAMPLES)
    vectors = set()
    for result in results:
        record = result.record
        assert isinstance(record, Annotation)
        assert record.embedding is not None
        assert len(record.embedding.vector) == DIMENSIONS
        assert np.linalg.norm(record.embedding.vector) == pytest.approx(1, abs=1e-6)
        assert record.sources == {"embedding": "small@1.0"}
        assert from_line(to_line(record)) == record
        assert result.beside == {}
        vectors.add(record.embedding.vector)
    assert len(vectors) == len(EXAMPLES)


def test_embeddings_and_labels_in_one_pass():
    model = SmallEncoder()
    tasks = [Embed(model), ZeroShot(model, LabelSet.of(list(COLOURS)))]
    items = [Item.from_path(path) for path in EXAMPLES[:3]]
    for result in annotate(
        items, tasks, Reader(SourceOptions()), DecodeOptions(), PipelineOptions()
    ):
        assert isinstance(result.record, Annotation)
        assert result.record.embedding is not None
        assert len(result.record.labels) == len(COLOURS)
        assert result.record.sources == {"embedding": "small@1.0", "labels": "small@1.0"}


def test_no_images_are_no_vectors():
    assert Embed(SmallEncoder()).annotate([], np.zeros((0, 3, 8, 8), np.float32)) == []


def test_a_task_says_what_it_works_with():
    model = SmallEncoder(batch_size=5)
    task = Embed(model)
    assert (task.part, task.source, task.settings()) == ("embedding", "small@1.0", {})
    assert task.inputs == (model.card.preprocess,)
    assert (task.streams, task.batch_size) == (1, 5)
