"""The executor: order, failures, bounded work, clean ends."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from annotary.errors import ModelError, NothingToDo
from annotary.images import DecodeOptions
from annotary.models import load_model
from annotary.pipeline import PipelineOptions, Result, annotate
from annotary.records import Annotation, Failure, Item
from annotary.runtime import RuntimeOptions
from annotary.sources import Reader, SourceOptions
from annotary.tasks.tagging import SingleTagger, Tagging, TaggingOptions
from tests.conftest import colour_of


def run(items, model: Path, options: PipelineOptions | None = None) -> Iterator[Result]:
    task = Tagging(SingleTagger(load_model(f"dir:{model}")), TaggingOptions(threshold=0.0))
    reader = Reader(SourceOptions())
    return annotate(items, [task], reader, DecodeOptions(), options or PipelineOptions())


def test_order_scores_and_sizes_are_those_of_the_input(colours, photos):
    folder = photos(100)
    items = [Item.from_path(path) for path in sorted(folder.iterdir())]
    pairs = list(run(items, colours))
    assert [item for item, _, _ in pairs] == items
    for index, (item, record, _) in enumerate(pairs):
        assert isinstance(record, Annotation)
        assert record.image == item.image
        assert (record.width, record.height) == (24, 18)
        scores = {tag.name: tag.score for tag in record.tags}
        expected = dict(
            zip(("red", "green", "blue"), np.array(colour_of(index)) / 255, strict=True)
        )
        assert scores == pytest.approx(expected, abs=1e-5)
        assert [tag.score for tag in record.tags] == sorted(scores.values(), reverse=True)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("threads", [1, 3])
def test_results_depend_neither_on_batches_nor_on_threads(colours, photos, batch_size, threads):
    items = [Item.from_path(path) for path in sorted(photos(40).iterdir())]
    expected = [record for _, record, _ in run(items, colours)]
    model = load_model(f"dir:{colours}", RuntimeOptions(threads=threads))
    task = Tagging(SingleTagger(model), TaggingOptions(threshold=0.0))
    options = PipelineOptions(batch_size=batch_size, decoders=threads)
    found = annotate(items, [task], Reader(SourceOptions()), DecodeOptions(), options)
    assert [record for _, record, _ in found] == expected


def test_failures_keep_their_place(colours, photos):
    folder = photos(30)
    for index in (0, 7, 8, 29):
        (folder / f"{index:05}.png").write_bytes(b"not an image")
    items: list[Item | Failure] = [Item.from_path(path) for path in sorted(folder.iterdir())]
    items.insert(12, Failure("list.txt:3", "UnreachableImage", "no path in this row"))
    records = [record for _, record, _ in run(items, colours)]
    assert [record.image for record in records] == [item.image for item in items]
    failed = [index for index, record in enumerate(records) if not record.ok]
    assert failed == [0, 7, 8, 12, 30]


def test_only_failures(colours, tmp_path):
    items = [Item.from_path(tmp_path / f"missing-{i}.png") for i in range(200)]
    records = [record for _, record, _ in run(items, colours)]
    assert {record.error for record in records if isinstance(record, Failure)} == {
        "UnreachableImage"
    }
    assert len(records) == 200


def test_pixels_and_bytes_in_memory(colours, photos):
    file = photos(1) / "00000.png"
    pixels = np.full((5, 7, 3), colour_of(0), dtype=np.uint8)
    items = [Item("a", data=file.read_bytes()), Item("b", pixels=pixels)]
    first, second = (record for _, record, _ in run(items, colours))
    assert isinstance(first, Annotation)
    assert isinstance(second, Annotation)
    assert first.tags == second.tags
    assert (second.width, second.height) == (7, 5)


def test_work_ahead_of_the_caller_is_bounded(colours, photos):
    path = photos(1) / "00000.png"
    taken = 0

    def endless() -> Iterator[Item]:
        nonlocal taken
        while True:
            taken += 1
            yield Item(f"{taken}", path=path)

    results = run(endless(), colours, PipelineOptions(batch_size=4, decoders=2))
    for _ in range(10):
        next(results)
    time.sleep(0.2)  # whatever would run ahead has the time to do so
    assert taken < 150
    results.close()


def test_a_slow_source_does_not_delay_what_is_there(colours, photos):
    paths = sorted(photos(3).iterdir())
    second_may_come = threading.Event()

    def source() -> Iterator[Item]:
        yield Item.from_path(paths[0])
        assert second_may_come.wait(10)
        yield Item.from_path(paths[1])

    results = run(source(), colours, PipelineOptions(batch_size=64))
    item, _, _ = next(results)
    second_may_come.set()
    assert item is not None
    assert item.path == paths[0]
    assert [item.path for item, _, _ in results if item] == [paths[1]]


def test_an_error_of_the_source_comes_after_what_was_before_it(colours, photos):
    paths = sorted(photos(5).iterdir())

    def source() -> Iterator[Item]:
        yield from map(Item.from_path, paths)
        raise NothingToDo("no more")

    seen = []
    with pytest.raises(NothingToDo, match="no more"):
        seen.extend(item.path for item, _, _ in run(source(), colours) if item)
    assert seen == paths


def test_an_error_of_the_network_stops_the_run(colours, photos):
    class Broken:
        def __init__(self, model) -> None:
            self.__dict__.update(vars(model))

        def tag_scores(self, batch):
            raise ModelError("the network broke")

    task = Tagging(
        SingleTagger(Broken(load_model(f"dir:{colours}"))), TaggingOptions(threshold=0.0)
    )
    items = [Item.from_path(path) for path in sorted(photos(20).iterdir())]
    with pytest.raises(ModelError, match="the network broke"):
        list(annotate(items, [task], Reader(SourceOptions()), DecodeOptions(), PipelineOptions()))


def test_threads_end_with_the_run(colours, photos):
    items = [Item.from_path(path) for path in sorted(photos(20).iterdir())]
    before = threading.active_count()
    results = run(items, colours)
    next(results)
    results.close()
    list(run(items, colours))
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_an_endless_source_is_let_go(colours, photos):
    path = photos(1) / "00000.png"
    ended = threading.Event()

    def endless() -> Iterator[Item]:
        try:
            for number in itertools.count():
                yield Item(f"{number}", path=path)
        finally:
            ended.set()

    results = run(endless(), colours)
    next(results)
    results.close()
    assert ended.wait(10)


def test_batches_become_full_while_the_networks_are_busy(colours, photos):
    """A first image is not waited for; behind it, what is read while networks are at work goes in together."""
    items = [Item.from_path(path) for path in sorted(photos(17).iterdir())]
    is_read = threading.Semaphore(0)
    sizes: list[int] = []

    class SlowReader(Reader):
        def read(self, item: Item) -> bytes:
            data = super().read(item)
            time.sleep(0.005)
            is_read.release()
            return data

    class Busy(Tagging):
        def annotate(self, pictures, *batches):
            if not sizes:
                for _ in items:
                    assert is_read.acquire(timeout=30)
            sizes.append(len(pictures))
            return super().annotate(pictures, *batches)

    model = load_model(f"dir:{colours}", RuntimeOptions(threads=1))
    task = Busy(SingleTagger(model), TaggingOptions(threshold=0.0))
    options = PipelineOptions(batch_size=8)
    found = annotate(items, [task], SlowReader(SourceOptions()), DecodeOptions(), options)
    assert [result.record.image for result in found] == [item.image for item in items]
    # Two may be read at the same moment; and of those that are read, the last may still be decoded.
    assert (sizes[0], sizes[1], sum(sizes)) in ((1, 8, 17), (2, 8, 17))
    assert len(sizes) <= 4
