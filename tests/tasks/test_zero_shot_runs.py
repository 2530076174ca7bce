"""Zero-shot classification as it is run: over photos, with labels of single images, with texts embedded once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annotary.images import DecodeOptions
from annotary.pipeline import PipelineOptions
from annotary.pipeline.local import annotate
from annotary.records import Annotation, Item, Label, from_line, to_line
from annotary.sources import Reader, SourceOptions
from annotary.tasks.label_sets import (
    DEFAULT_BACKGROUND,
    LabelOptions,
    LabelSet,
    read_labels,
    read_templates,
)
from annotary.tasks.text_cache import TextCache
from annotary.tasks.zero_shot import (
    ZeroShot,
    ZeroShotOptions,
    own_labels,
)
from tests.pictures import seen
from tests.small_encoder import COLOURS, SmallEncoder, plain

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.jpg"))
PICTURES = np.concatenate([plain(colour) for colour in COLOURS.values()])
ITEMS = [Item(name, pixels=np.zeros((1, 1, 3), np.uint8)) for name in COLOURS]


def labels_of(task: ZeroShot, item: Item = ITEMS[0]) -> dict[str, float]:
    (parts,) = task.annotate(seen([item]), PICTURES[:1])
    assert list(parts) == ["labels"]
    assert isinstance(parts["labels"], tuple)
    return {label.name: label.score for label in parts["labels"]}


def softmax(logits: Sequence[float]) -> list[float]:
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / math.fsum(powers) for power in powers]


# Labels of single images


def item(image: str, relative: str = "") -> Item:
    return Item(image, pixels=np.zeros((1, 1, 3), np.uint8), relative=relative)


def test_own_labels_are_found_by_the_name_as_given_else_below_the_folder():
    of_image = {"photos/a.jpg": (1,), "a.jpg": (2,), "sub/b.jpg": (3,)}
    assert own_labels(of_image, item("photos/a.jpg", "a.jpg")) == (1,)
    assert own_labels(of_image, item("other/a.jpg", "a.jpg")) == (2,)
    assert own_labels(of_image, item("photos/sub/b.jpg", "sub/b.jpg")) == (3,)
    assert own_labels(of_image, item("photos/c.jpg", "c.jpg")) == ()
    assert own_labels({"": (1,)}, item("c.jpg")) == ()


def of_table(content: str, **options: Any) -> LabelSet:
    path = Path("table.csv")
    path.write_text(content, encoding="utf-8")
    return read_labels(LabelOptions(labels_from=path, template=("{}",), **options))


def test_each_image_has_labels_of_its_own():
    labels = of_table(
        'image,labels\nred,"red,blue"\ngreen,"green,red,white"\nblue,blue\nred,black\n'
    )
    model = SmallEncoder()
    task = ZeroShot(model, labels)
    assert sorted(text for call in model.calls for text in call) == sorted(labels.names)
    found = [parts["labels"] for parts in task.annotate(seen(ITEMS), PICTURES)]
    assert [{label.name for label in one} for one in found] == [
        {"red", "blue", "black"},
        {"green", "red", "white"},
        {"blue"},
        set(),
        set(),
        set(),
    ]
    assert [one[0].name for one in found[:3]] == ["red", "green", "blue"]
    # They compete with each other alone: scores are those of a run with these labels only.
    alone = ZeroShot(SmallEncoder(), LabelSet.of(["red", "blue", "black"], "{}"))
    (expected,) = alone.annotate(seen(ITEMS[:1]), PICTURES[:1])
    assert [label.name for label in found[0]] == [label.name for label in expected["labels"]]
    assert [label.score for label in found[0]] == pytest.approx(
        [label.score for label in expected["labels"]], abs=1e-6
    )


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_an_image_without_labels_is_none_of_them(kind, multi_label):
    labels = of_table("image,labels\nred,red\ngreen,\n", none_label="none")
    options = ZeroShotOptions(multi_label=multi_label)
    task = ZeroShot(SmallEncoder(kind), labels, options)
    found = [parts["labels"] for parts in task.annotate(seen(ITEMS[:3]), PICTURES[:3])]
    assert {label.name for label in found[0]} == {"red", "none"}
    assert found[1] == found[2] == (Label("none", 1.0),)


def test_a_table_names_images_as_they_were_given_or_below_their_folder():
    first, second, third = EXAMPLES[:3]
    folder = first.parent
    labels = of_table(
        f'image,labels\n{first},"red,blue"\n{second.name},green\nsub/{third.name},white\n'
    )
    task = ZeroShot(SmallEncoder(), labels)
    items = [Item.from_path(path, path.relative_to(folder).as_posix()) for path in EXAMPLES[:3]]
    results = annotate(items, [task], Reader(SourceOptions()), DecodeOptions(), PipelineOptions())
    records = [result.record for result in results]
    assert [{label.name for label in record.labels} for record in records] == [
        {"red", "blue"},
        {"green"},
        set(),
    ]
    assert all(record.to_json()["sources"] == {"labels": "small@1.0"} for record in records)


def test_thresholds_go_with_the_labels_of_each_image():
    labels = of_table('image,labels\nwhite,"white,green"\nred,"blue,red"\n')
    for told in ({"red": 1.0, "blue": 0.0}, {"red": 0.0, "blue": 1.0}):
        task = ZeroShot(SmallEncoder(), labels, thresholds=told)
        found = labels_of(task)
        assert list(found) == [name for name, threshold in told.items() if threshold == 0.0]


# Texts once


def run(task: ZeroShot, paths: Sequence[Path], batch_size: int | None = None) -> list[Annotation]:
    items = [Item.from_path(path) for path in paths]
    results = annotate(
        items, [task], Reader(SourceOptions()), DecodeOptions(), PipelineOptions(batch_size)
    )
    records = [result.record for result in results]
    assert all(isinstance(record, Annotation) for record in records)
    return records  # type: ignore[return-value]


def test_texts_are_embedded_once_however_many_images_there_are():
    # The reference embeds them again for every image (T2, A6).
    for count in (1, 8, 40):
        model = SmallEncoder(batch_size=3)
        model.streams = 2
        task = ZeroShot(model, LabelSet.of(list(COLOURS), none_label="none"))
        before = list(model.calls)
        records = run(task, (EXAMPLES * 5)[:count])
        assert len(records) == model.images == count
        assert model.calls == before
        assert model.texts == len(COLOURS) + len(DEFAULT_BACKGROUND)


def test_a_real_run_over_photos_gives_what_numpy_gives():
    from PIL import Image

    names = ["blue sky", "green grass", "a black night", "white snow", "red flower"]
    model = SmallEncoder(batch_size=3)
    records = run(ZeroShot(model, LabelSet.of(names)), EXAMPLES)
    texts = model.embed_texts([f"a photo of a {name}." for name in names]).vectors
    for path, record in zip(EXAMPLES, records, strict=True):
        with Image.open(path) as photo:
            small = photo.convert("RGB").resize((8, 8), Image.Resampling.BOX)
        pixels = np.asarray(small, dtype=np.float32).transpose(2, 0, 1)[None] / 255
        image = model.embed_images(pixels)[0].astype(np.float64)
        expected = softmax(list(20 * texts.astype(np.float64) @ image))
        order = np.argsort([-score for score in expected], kind="stable")
        assert record.image == str(path)
        assert [label.name for label in record.labels] == [names[i] for i in order]
        # JPEGs are decoded at a reduced size, so pixels differ a little.
        assert [label.score for label in record.labels] == pytest.approx(
            [expected[i] for i in order], abs=0.05
        )
        assert record.sources == {"labels": "small@1.0"}
        assert from_line(to_line(record)) == record


def test_batches_change_nothing():
    labels = LabelSet.of(list(COLOURS))
    one, other = (
        run(ZeroShot(SmallEncoder(), labels), EXAMPLES, batch_size) for batch_size in (1, 8)
    )
    for first, second in zip(one, other, strict=True):
        assert [label.name for label in first.labels] == [label.name for label in second.labels]
        assert [label.score for label in first.labels] == pytest.approx(
            [label.score for label in second.labels], abs=1e-5
        )


def test_a_second_run_with_a_cache_embeds_no_text_and_says_the_same():
    labels = LabelSet.of(list(COLOURS), read_templates("imagenet"), none_label="none")
    cache = TextCache("small", Path("cache"))
    first, second = SmallEncoder(), SmallEncoder()
    one = run(ZeroShot(first, labels, cache=cache), EXAMPLES)
    other = run(ZeroShot(second, labels, cache=TextCache("small", Path("cache"))), EXAMPLES)
    assert first.texts == 80 * len(COLOURS) + len(DEFAULT_BACKGROUND)
    assert second.texts == 0
    assert one == other


def test_labels_that_are_too_long_are_told_by_name():
    words = " ".join(["very"] * 30)
    labels = LabelSet.of(["cat", f"a {words} long label", "dog"], none_label="none")
    assert ZeroShot(SmallEncoder(), labels).truncated == (f"a {words} long label",)
    cache = TextCache("small", Path("cache"))
    for _ in range(2):
        assert ZeroShot(SmallEncoder(), labels, cache=cache).truncated == labels.names[1:2]
    ontology = LabelSet.of({"short": "a", words: "b"}, background=["fine", f"{words} background"])
    assert ZeroShot(SmallEncoder(), ontology).truncated == ("b", f"{words} background")
