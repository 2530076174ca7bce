"""The loader: its order, going on anywhere, images that cannot be had, workers that die, and that nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from annotary import images, preprocess
from annotary.cards import PreprocessSpec
from annotary.errors import AnnotaryError, UsageError
from annotary.images import DecodeOptions
from annotary.models.joytag import preprocess_of
from annotary.records import Failure
from annotary.training._preparing import Layout, Pictures, Preparation, Wanted
from annotary.training.augmentation import AugmentationOptions, Chance, fit_augmented
from annotary.training.loading import NO_ROW, Batch, Loader, LoadingOptions, epoch_order
from tests.conftest import child_environment, colour_of

SPEC = replace(preprocess_of(16), resample="bilinear")
TRIVIAL = AugmentationOptions("trivial2")


@dataclass
class Photos:
    """Images of a folder; image i has tag i modulo 3."""

    paths: list[Path]

    @property
    def ids(self) -> list[str]:
        return [f"photo {i}" for i in range(len(self.paths))]

    def __len__(self) -> int:
        return len(self.paths)

    def weights(
        self,
        rows: Sequence[int] | npt.NDArray[np.integer],
        unknown: float = 0.0,
    ) -> None:
        return None

    def targets(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        return np.eye(3, dtype=np.uint8)[np.asarray(rows) % 3]

    def path(self, row: int) -> Path:
        return self.paths[row]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for i in range(23):
        generator = np.random.default_rng(i)
        pixels = generator.integers(0, 256, (20 + i, 24, 3), dtype=np.uint8)
        pixels[:8] = colour_of(i)
        paths.append(folder / f"{i}.{('webp', 'jpg', 'png')[i % 3]}")
        Image.fromarray(pixels).save(paths[-1])
    return Photos(paths)


def loader(photos: Photos, *, workers: int = 0, **given) -> Loader:
    options = LoadingOptions(
        workers=workers,
        **{name: given.pop(name) for name in LoadingOptions.__dataclass_fields__ if name in given},
    )
    return Loader(photos, given.pop("spec", SPEC), options, **given)


def taken(source: Loader, count: int) -> list[Batch]:
    batches = iter(source)
    found = [next(batches) for _ in range(count)]
    batches.close()  # type: ignore[attr-defined]
    return found


def assert_same(found: Sequence[Batch], expected: Sequence[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.epoch, one.place) == (other.epoch, other.place)
        for here, there in zip(one[:4], other[:4], strict=True):
            np.testing.assert_array_equal(here, there)


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(1, 300))
def test_the_order_is_a_permutation_of_its_own_for_each_epoch(seed, epoch, count):
    order = epoch_order(seed, epoch, count)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))
    np.testing.assert_array_equal(order, epoch_order(seed, epoch, count))
    if count > 20:
        assert (order != epoch_order(seed, epoch + 1, count)).any()
        assert (order != epoch_order(seed + 1, epoch, count)).any()


def test_the_order_does_not_change_with_versions():
    # Written down once: training that was stopped goes on with it.
    assert epoch_order(42, 1, 10).tolist() == ORDER


ORDER = [1, 2, 8, 5, 3, 9, 6, 0, 4, 7]


def test_pictures_are_those_of_preprocess_and_augmentation(photos):
    for augmentation in (None, TRIVIAL, AugmentationOptions("sw", cutout=0.2)):
        with loader(photos, batch_size=5, augmentation=augmentation, seed=9) as source:
            batch = next(source.epoch())
        assert batch.images.shape == (5, 16, 16, 3)
        assert batch.images.dtype == batch.targets.dtype == np.uint8
        assert batch.weights.tolist() == [1.0] * 5
        assert batch.rows.tolist() == epoch_order(9, 0, 23)[:5].tolist()
        np.testing.assert_array_equal(batch.targets, photos.targets(batch.rows))
        for picture, row in zip(batch.images, batch.rows.tolist(), strict=True):
            found = images.decode(photos.path(row).read_bytes())
            expected = (
                preprocess.fit(found.pixels, SPEC)
                if augmentation is None
                else fit_augmented(found.pixels, SPEC, augmentation, Chance(9, 0, f"photo {row}"))
            )
            np.testing.assert_array_equal(picture, expected)


def test_pictures_are_padded_and_resized_as_published_taggers_were(photos):
    with loader(photos, batch_size=23, shuffle=False) as source:
        (batch,) = source.epoch()
    for picture, path in zip(batch.images, photos.paths, strict=True):
        with Image.open(path) as image:
            side = max(image.size)
            square = Image.new("RGB", (side, side), (255, 255, 255))
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        expected = np.asarray(square.resize((16, 16), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(picture, expected)


def test_epochs_follow_one_another_and_each_has_every_image_once(photos):
    with loader(photos, batch_size=4, drop_last=False, seed=3) as source:
        assert source.samples_per_epoch == 23
        assert source.batches_per_epoch == 6
        found = taken(source, 12)
    assert [(one.epoch, one.place) for one in found] == [
        (epoch, place) for epoch in (0, 1) for place in range(0, 24, 4)
    ]
    for epoch in (0, 1):
        rows = [row for one in found if one.epoch == epoch for row in one.rows.tolist()]
        assert rows == epoch_order(3, epoch, 23).tolist()
    assert len(found[5].images) == 3


def test_what_fills_no_batch_is_dropped(photos):
    with loader(photos, batch_size=4) as source:
        assert source.samples_per_epoch == 20
        assert source.batches_per_epoch == 5
        places = [(one.epoch, one.place) for one in source.epoch()]
        assert places == [(0, place) for place in range(0, 20, 4)]
        assert source.position == (1, 0)
        assert [one.epoch for one in source.epoch()] == [1] * 5


def test_validation_comes_in_the_order_of_the_dataset(photos):
    with loader(photos, batch_size=10, shuffle=False, drop_last=False) as source:
        for _ in range(2):
            rows = np.concatenate([one.rows for one in source.epoch()])
            assert rows.tolist() == list(range(23))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_of_training_share_what_one_would_have_alone(photos, world):
    with loader(photos, batch_size=2 * world, seed=5, augmentation=TRIVIAL) as whole:
        together = list(whole.epoch())
    apart = []
    for rank in range(world):
        with loader(
            photos, batch_size=2, seed=5, rank=rank, world=world, augmentation=TRIVIAL
        ) as source:
            apart.append(list(source.epoch()))
            assert source.position == (1, 0)
    for i, batch in enumerate(together):
        assert {own[i].place for own in apart} == {batch.place}
        for rank in range(world):
            np.testing.assert_array_equal(apart[rank][i].rows, batch.rows[rank::world])
            np.testing.assert_array_equal(apart[rank][i].images, batch.images[rank::world])


@pytest.mark.parametrize("world", [2, 3, 4, 30])
def test_a_last_batch_is_filled_up_for_all_processes_alike(photos, world):
    seen: list[int] = []
    shapes = set()
    for rank in range(world):
        with loader(
            photos, batch_size=5, drop_last=False, rank=rank, world=world, shuffle=False
        ) as source:
            own = list(source.epoch())
        shapes.add(tuple(one.images.shape for one in own))
        for one in own:
            is_image = one.rows != NO_ROW
            seen += one.rows[is_image].tolist()
            np.testing.assert_array_equal(one.weights, is_image)
            assert (one.images[~is_image] == 255).all()
            assert not one.targets[~is_image].any()
    assert sorted(seen) == list(range(23))
    assert len(shapes) == 1


def test_going_on_anywhere_gives_the_same_batches(photos):
    with loader(photos, batch_size=3, seed=1, augmentation=TRIVIAL, drop_last=False) as source:
        whole = taken(source, 20)
    for stop in range(19):
        with loader(photos, batch_size=3, seed=1, augmentation=TRIVIAL, drop_last=False) as first:
            taken(first, stop) if stop else None
            position = first.position
        assert position == (whole[stop].epoch, whole[stop].place)
        with loader(photos, batch_size=3, seed=1, augmentation=TRIVIAL, drop_last=False) as again:
            again.start_at(*position)
            assert_same(taken(again, 1), whole[stop : stop + 1])


def test_any_sample_can_be_the_first(photos):
    order = epoch_order(0, 2, 23).tolist()
    with loader(photos, batch_size=4, drop_last=False) as source:
        for place in range(23):
            source.start_at(2, place)
            found = next(source.epoch())
            assert found.rows.tolist() == order[place : place + 4]
        source.start_at(2, 23)
        assert source.position == (3, 0)
        for epoch, place in ((0, 24), (0, -1), (-1, 0)):
            with pytest.raises(ValueError, match="there are 23"):
                source.start_at(epoch, place)


def test_going_on_with_more_processes_of_training(photos):
    with loader(photos, batch_size=6, seed=8) as source:
        first, *rest = source.epoch()
    with loader(photos, batch_size=3, seed=8, rank=1, world=2) as source:
        source.start_at(0, first.place + 6)
        np.testing.assert_array_equal(next(source.epoch()).rows, rest[0].rows[1::2])


def test_joined_epochs_leave_no_image_out_whatever_the_batch_and_the_processes(photos):
    order = [
        (epoch, row) for epoch in range(3) for row in epoch_order(6, epoch, len(photos)).tolist()
    ]
    for size, world in ((4, 1), (5, 2), (1, 3), (30, 1)):  # 30 are more than there are images
        seen: dict[int, int] = {}
        for rank in range(world):
            with loader(
                photos, batch_size=size, is_joined=True, seed=6, rank=rank, world=world
            ) as source:
                assert source.samples_per_epoch == len(photos)
                for k, batch in enumerate(taken(source, 60 // (size * world))):
                    assert len(batch.rows) == size
                    for i, row in enumerate(batch.rows.tolist()):
                        seen[k * size * world + i * world + rank] = row
        assert [seen[k] for k in range(len(seen))] == [row for _, row in order[: len(seen)]]


@pytest.mark.parametrize(
    ("share", "size", "expected"),
    [(7, 5, [4, 3]), (7, 3, [3, 2, 2]), (8, 4, [4, 4]), (2, 5, [2]), (7, 1, [1] * 7)],
)
def test_joined_batches_come_to_a_share_exactly(photos, share, size, expected):
    whole = taken(loader(photos, batch_size=share, is_joined=True), 4)
    with loader(photos, batch_size=size, is_joined=True, share=share) as source:
        parts = taken(source, 4 * len(expected))
    assert [len(part.rows) for part in parts] == 4 * expected
    for name in ("images", "targets", "weights", "rows"):
        told = [np.concatenate([getattr(one, name) for one in side]) for side in (parts, whole)]
        np.testing.assert_array_equal(*told)


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_of_a_joined_batch_are_drawn_for_their_own_epoch(photos, workers):
    options = {"is_joined": True, "seed": 4, "augmentation": TRIVIAL}
    with loader(photos, batch_size=1, **options) as source:
        single = taken(source, 60)
    with loader(photos, batch_size=20, workers=workers, **options) as source:
        whole = taken(source, 3)
        place = source.position
    np.testing.assert_array_equal(
        np.concatenate([one.images for one in whole]),
        np.concatenate([one.images for one in single]),
    )
    assert [(one.epoch, one.place) for one in whole] == [(0, 0), (0, 20), (1, 17)]
    assert place == (2, 14)
    with loader(photos, batch_size=20, workers=workers, **options) as again:
        again.start_at(0, 20)
        assert_same(taken(again, 2), whole[1:])


@pytest.fixture(scope="module")
def broken(photos: Photos, tmp_path_factory: pytest.TempPathFactory) -> Photos:
    folder = tmp_path_factory.mktemp("broken")
    paths = list(photos.paths)
    paths[4] = folder / "gone.jpg"
    paths[7] = folder / "torn.webp"
    paths[7].write_bytes(photos.paths[6].read_bytes()[:100])
    return Photos(paths)


def test_workers_make_the_same_as_none(broken):
    def made(workers: int) -> list[Batch]:
        with loader(broken, workers=workers, batch_size=5, seed=2, augmentation=TRIVIAL) as source:
            return taken(source, 9)

    alone = made(0)
    assert {one.epoch for one in alone} == {0, 1, 2}
    for workers in (1, 2):
        assert_same(made(workers), alone)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_had_is_told_once_and_has_no_weight(broken, workers):
    told: list[Failure] = []
    with loader(
        broken,
        workers=workers,
        batch_size=23,
        shuffle=False,
        on_failure=told.append,
        cache_mb=1,
    ) as source:
        for _ in range(3):
            (batch,) = source.epoch()
            assert (batch.weights == 0).nonzero()[0].tolist() == [4, 7]
            assert batch.rows.tolist() == list(range(23))
            assert (batch.images[[4, 7]] == 255).all()
            assert not batch.targets[[4, 7]].any()
            assert batch.targets[5].any()
        assert sorted(source.failures) == ["photo 4", "photo 7"]
    assert sorted(one.image for one in told) == ["photo 4", "photo 7"]
    reasons = {one.image: one for one in told}
    assert reasons["photo 4"].error == "UnreachableImage"
    assert reasons["photo 4"].message.endswith("gone.jpg: No such file or directory")
    assert reasons["photo 7"].error == "UnreadableImage"
    assert "truncated WebP" in reasons["photo 7"].message


def test_limits_of_decoding_are_kept(photos):
    with loader(
        photos, batch_size=23, shuffle=False, decode=DecodeOptions(max_pixels=24 * 30)
    ) as source:
        (batch,) = source.epoch()
    assert batch.weights.tolist() == [1.0] * 11 + [0.0] * 12


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_pictures_change_nothing(photos, workers):
    def made(cache_mb: int, spec: PreprocessSpec) -> list[Batch]:
        with loader(
            photos,
            workers=workers,
            batch_size=6,
            augmentation=TRIVIAL,
            cache_mb=cache_mb,
            spec=spec,
        ) as source:
            return taken(source, 9)

    assert_same(made(1, SPEC), made(0, SPEC))


def test_pictures_are_kept_up_to_the_budget(photos, monkeypatch):
    spec = replace(SPEC, size=(256, 256))  # 192 KB each: 5 fit in a megabyte
    decoded: list[bytes] = []
    decode = images.decode

    def counted(data: bytes, **given):
        decoded.append(data)
        return decode(data, **given)

    monkeypatch.setattr(images, "decode", counted)
    with loader(photos, batch_size=23, cache_mb=1, spec=spec) as source:
        for _ in range(3):
            list(source.epoch())
    assert len(decoded) == 23 + 18 + 18
    decoded.clear()
    sw = AugmentationOptions("sw")
    with loader(photos, batch_size=23, cache_mb=1, spec=spec, augmentation=sw) as source:
        for _ in range(2):
            list(source.epoch())
    assert len(decoded) == 46


def test_large_jpegs_are_decoded_at_reduced_scale(tmp_path):
    path = tmp_path / "large.jpg"
    Image.new("RGB", (800, 600), (200, 30, 90)).save(path, quality=95)
    layout = Layout((16, 16), 1, 1, 0)
    pictures = Pictures(bytearray(layout.bytes), layout)
    target = np.zeros((1, 16, 16, 3), np.uint8)
    wanted = [Wanted(0, "large", str(path))]
    assert Preparation(SPEC).fill(target, wanted, 0, pictures) == []
    found = images.decode(path.read_bytes(), at_least=preprocess.needed_by_all(SPEC))
    assert found.pixels.shape == (75, 100, 3)
    np.testing.assert_array_equal(target[0], preprocess.fit(found.pixels, SPEC, (800, 600)))


def test_batches_belong_to_whoever_gets_them(photos):
    with loader(photos, workers=1, batch_size=4, prefetch=1) as source:
        found = taken(source, 5)
        first = [one.images.copy() for one in found]
        list(source.epoch())
    for one, copy in zip(found, first, strict=True):
        np.testing.assert_array_equal(one.images, copy)
        assert one.images.flags.writeable


def test_only_so_many_batches_are_made_ahead(photos):
    asked: list[int] = []

    class Watched(Photos):
        def path(self, row: int) -> Path:
            asked.append(row)
            return super().path(row)

    with loader(Watched(photos.paths), workers=2, batch_size=2, prefetch=3) as source:
        batches = iter(source)
        for taken_so_far in range(1, 5):
            next(batches)
            time.sleep(0.05)
            assert len(asked) <= 2 * (taken_so_far + 3)
        batches.close()  # type: ignore[attr-defined]


def test_an_iteration_may_be_left_and_another_begun(photos):
    with loader(photos, batch_size=3, seed=4, drop_last=False) as source:
        whole = taken(source, 16)
    with loader(photos, workers=2, batch_size=3, seed=4, drop_last=False) as source:
        found = []
        for count in (1, 4, 2, 9):
            found += taken(source, count)
    assert_same(found, whole)


def test_time_is_counted(photos):
    with loader(photos, workers=1, batch_size=4) as source:
        batches = iter(source)
        for _ in range(5):
            next(batches)
        time.sleep(0.2)
        next(batches)
        found = source.take_throughput()
        assert found.samples == 24
        assert found.seconds >= 0.2
        assert 0 < found.waited <= found.seconds - 0.2
        assert found.rate == pytest.approx(24 / found.seconds)
        assert found.waited_share == pytest.approx(found.waited / found.seconds)
        nothing = source.take_throughput()
        assert (nothing.samples, nothing.rate, nothing.waited_share) == (0, 0.0, 0.0)
        batches.close()  # type: ignore[attr-defined]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(
    sys.platform != "linux", reason="counts files and processes as Linux shows them"
)
def test_closing_leaves_no_process_no_thread_and_no_file(photos):
    def once() -> None:
        with loader(photos, workers=2, batch_size=4) as source:
            batches = iter(source)
            next(batches)
            assert len(source.worker_ids) == 2
            source.close()
            assert source.worker_ids == ()
            with pytest.raises(UsageError, match="closed"):
                next(batches)

    others = psutil.Process().children(recursive=True)  # of other tests
    once()
    files, threads = open_files(), threading.active_count()
    once()
    assert open_files() == files
    assert threading.active_count() == threads
    left = psutil.Process().children(recursive=True)
    assert [one for one in left if one not in others] == []


def test_a_closed_loader_starts_again(photos):
    with loader(photos, workers=1, batch_size=4) as source:
        first = taken(source, 1)
        source.close()
        source.start_at(0, 0)
        assert_same(taken(source, 1), first)


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_a_worker_that_dies_is_replaced(photos):
    with loader(photos, batch_size=4, seed=6) as source:
        whole = taken(source, 10)
    with loader(photos, workers=2, batch_size=4, seed=6) as source:
        found = taken(source, 2)
        for worker in source.worker_ids:
            os.kill(worker, signal.SIGKILL)
        found += taken(source, 8)
        assert source.failures == {}
    assert_same(found, whole)


@dataclass(frozen=True)
class Deadly(Preparation):
    """Brings the process down at one image."""

    def _picture(self, wanted: Wanted, epoch: int, pictures: Pictures) -> npt.NDArray[np.uint8]:
        if wanted.identity == "photo 5":
            print("out of luck", file=sys.stderr, flush=True)
            os._exit(7)
        return super()._picture(wanted, epoch, pictures)


@dataclass(frozen=True)
class Wrong(Preparation):
    """Is wrong at one image."""

    def _picture(self, wanted: Wanted, epoch: int, pictures: Pictures) -> npt.NDArray[np.uint8]:
        if wanted.identity == "photo 5":
            raise ZeroDivisionError("a mistake")
        return super()._picture(wanted, epoch, pictures)


def test_an_image_that_brings_a_worker_down_costs_that_image_alone(photos, monkeypatch):
    monkeypatch.setattr("annotary.training.loading.Preparation", Deadly)
    with loader(photos, workers=2, batch_size=23, shuffle=False) as source:
        (batch,) = source.epoch()
        assert (batch.weights == 0).nonzero()[0].tolist() == [5]
        assert (batch.images[5] == 255).all()
        failure = source.failures["photo 5"]
    assert failure.error == "UnreadableImage"
    assert failure.message == "the process that prepared it ended with 7: out of luck"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_of_the_program_is_no_broken_image(photos, monkeypatch, workers):
    monkeypatch.setattr("annotary.training.loading.Preparation", Wrong)
    with (
        loader(photos, workers=workers, batch_size=23) as source,
        pytest.raises((RuntimeError, ZeroDivisionError), match="a mistake"),
    ):
        next(iter(source))


def test_workers_that_cannot_be_started_are_told(photos, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        loader(photos, workers=1, batch_size=4) as source,
        pytest.raises(AnnotaryError, match="cannot be started: it ended with 1"),
    ):
        next(iter(source))


SCRIPT = """
import sys, time
from pathlib import Path
from tests.training.test_loading import Photos, SPEC
from annotary.training.loading import Loader, LoadingOptions
photos = Photos(sorted(Path(sys.argv[1]).iterdir()))
loader = Loader(photos, SPEC, LoadingOptions(batch_size=4, workers=2))
batches = iter(loader)
next(batches)
print(*loader.worker_ids, flush=True)
while True:
    next(batches)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_workers_end_when_training_is_killed(photos):
    root = str(Path(__file__).parents[2])
    environment = child_environment()
    environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], root])
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(photos.paths[0].parent)],
        stdout=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        workers = [int(one) for one in process.stdout.readline().split()]
        assert len(workers) == 2
        assert all(psutil.pid_exists(one) for one in workers)
        process.kill()
    deadline = time.monotonic() + 20
    while any(_runs(one) for one in workers):
        assert time.monotonic() < deadline, "workers go on without training"
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_too_few_images_are_refused(photos):
    with pytest.raises(UsageError, match="23 images are too few for a batch of 24"):
        loader(photos, batch_size=12, world=2)
    assert loader(photos, batch_size=24, drop_last=False).batches_per_epoch == 1
    with pytest.raises(UsageError, match="too few"):
        loader(Photos([]), drop_last=False)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"prefetch": 0}, "prefetch must be at least 1"),
        ({"cache_mb": -1}, "cache_mb must be at least 0"),
        ({"workers": -1}, "workers must not be negative"),
        ({"share": 7}, "share must be at least 1, and is of joined batches alone"),
        ({"share": 0, "is_joined": True}, "share must be at least 1"),
    ],
)
def test_options_are_checked(values, told):
    with pytest.raises(ValueError, match=told):
        LoadingOptions(**values)


def test_other_mistakes_are_told(photos):
    with pytest.raises(UsageError, match=r"rank must be in 0\.\.1"):
        loader(photos, batch_size=2, rank=2, world=2)
    with pytest.raises(UsageError, match="one size"):
        loader(photos, spec=PreprocessSpec(size=(16, 16), fit="patches", patches=4))


def test_the_images_of_a_dataset_folder_can_be_loaded(photos, tmp_path):
    from annotary.training.dataset.index import Split, cached_path

    digests = np.arange(23 * 32, dtype=np.uint8).reshape(23, 32)
    tags = np.arange(23, dtype=np.int32) % 3
    split = Split(
        photos.ids,
        np.arange(24),
        tags,
        digests,
        [str(path) for path in photos.paths],
        tag_count=3,
        cache=tmp_path,
        suffix=".webp",
    )
    small = cached_path(tmp_path, digests[1].tobytes().hex(), ".webp")
    small.parent.mkdir(parents=True)
    Image.new("RGB", (16, 16), (1, 2, 3)).save(small, lossless=True)
    for workers in (0, 1):
        with Loader(split, SPEC, LoadingOptions(5, workers, shuffle=False)) as source:
            batch = next(source.epoch())
        assert (batch.images[1] == (1, 2, 3)).all()
        assert batch.targets.argmax(1).tolist() == [0, 1, 2, 0, 1]
        assert batch.weights.all()
