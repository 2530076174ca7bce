"""Images a second that training gets: the parts of the work, workers, and processes against threads.

python -m benchmarks.training_loading --photos PHOTOS --work build/benchmarks

`--sheet FILE` makes the picture of all augmentations instead.
"""

from __future__ import annotations

import argparse
import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
from PIL import Image, ImageDraw, ImageFont

from annotary import images, preprocess
from annotary.models.joytag import preprocess_of
from annotary.training._loading_processes import Processes, Task
from annotary.training._operations import BINS, trivial_space
from annotary.training._preparing import Layout, Pictures, Preparation, Wanted
from annotary.training.augmentation import AugmentationOptions, Chance, apply, augment
from annotary.training.dataset.index import Split, cached_path
from annotary.training.loading import Loader, LoadingOptions

CACHED = 512
"""Longer side in pixels of the cached pictures, as JoyTag's were."""

TAGS, TAGS_OF_AN_IMAGE = 5813, 28  # JoyTag's vocabulary, and its mean
PART = 16


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--photos", type=Path, help="a folder of real photos")
    parser.add_argument("--work", type=Path, help="a folder for the small pictures")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--sheet", type=Path, help="write the picture of augmentations")
    options = parser.parse_args()
    if options.sheet:
        draw_sheet(options.sheet)
        return
    if not options.photos or not options.work:
        parser.error("--photos and --work are needed")
    split = small_pictures(options.photos, options.work / f"cache-{CACHED}", options.images)
    tell_parts(split, options.size)
    tell_workers(split, options.size, options.batch, options.workers)
    tell_threads(split, options.size, [one for one in options.workers if one])


def small_pictures(photos: Path, cache: Path, count: int) -> Split:
    """A dataset with a cache of WebP of quality 90 on disk; a photo is taken again, mirrored, when there are fewer."""
    paths = sorted(path for path in photos.iterdir() if path.suffix.lower() == ".jpg")
    digests = np.zeros((count, 32), np.uint8)
    for i in range(count):
        digest = hashlib.sha256(f"{paths[i % len(paths)].name} {i // len(paths)}".encode())
        digests[i] = np.frombuffer(digest.digest(), np.uint8)
        target = cached_path(cache, digest.hexdigest(), ".webp")
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = images.decode(paths[i % len(paths)].read_bytes()).pixels
        image = Image.fromarray(pixels if i // len(paths) % 2 == 0 else pixels[:, ::-1].copy())
        scale = CACHED / max(image.size)
        size = round(image.width * scale), round(image.height * scale)
        image.resize(size, Image.Resampling.BICUBIC).save(target, "WEBP", quality=90)
    generator = np.random.default_rng(0)
    tags = [np.sort(generator.choice(TAGS, TAGS_OF_AN_IMAGE, replace=False)) for _ in range(count)]
    return Split(
        [str(i) for i in range(count)],
        np.arange(count + 1) * TAGS_OF_AN_IMAGE,
        np.concatenate(tags).astype(np.int32),
        digests,
        [""] * count,
        tag_count=TAGS,
        cache=cache,
        suffix=".webp",
    )


def tell_parts(split: Split, size: int) -> None:
    """What each part of the work takes on one core."""
    spec = replace(preprocess_of(size), resample="bilinear")
    trivial = AugmentationOptions("trivial2")
    count = min(len(split), 300)
    data = [split.path(row).read_bytes() for row in range(count)]
    decoded = [images.decode(one).pixels for one in data]
    fitted = [preprocess.fit(one, spec) for one in decoded]
    work: dict[str, Callable[[int], object]] = {
        "read": lambda i: split.path(i).read_bytes(),
        "decode": lambda i: images.decode(data[i]),
        f"pad and resize to {size}": lambda i: preprocess.fit(decoded[i], spec),
        "trivial2": lambda i: augment(fitted[i], trivial, Chance(0, 0, str(i))),
        "targets": lambda i: split.targets([i]),
    }
    shape = np.mean([one.shape[:2] for one in decoded], axis=0)
    mean = f"mean size {shape[1]:.0f} x {shape[0]:.0f}, {np.mean([len(one) for one in data]) / 1e3:.0f} KB"
    print(f"{len(split):,} images ({mean}).\n")
    print("| part | ms of a core an image |\n|---|---|")
    for name, do in work.items():
        started = time.process_time()
        for i in range(count):
            do(i)
        print(f"| {name} | {(time.process_time() - started) / count * 1e3:.2f} |")


def tell_workers(split: Split, size: int, batch: int, workers: Sequence[int]) -> None:
    """Images a second from the cache on disk, and once pictures are kept in memory, with what the cores work for it."""
    spec = replace(preprocess_of(size), resample="bilinear")
    kept = -(-len(split) * (size * size * 3 + 1) // 2**20) + 1
    print("\n| workers | pictures | images/s | ms of a core an image: workers | the caller |")
    print("|---|---|---|---|---|")
    for count in workers:
        for cache in (0, kept):
            options = LoadingOptions(batch, count, cache_mb=cache, drop_last=False)
            with Loader(split, spec, options, augmentation=AugmentationOptions()) as loader:
                batches = iter(loader)
                for _ in range(loader.batches_per_epoch if cache else 2):
                    next(batches)
                loader.take_throughput()
                before = _worked(loader), time.process_time()
                for _ in range(loader.batches_per_epoch):
                    next(batches)
                found = loader.take_throughput()
                worked = _worked(loader) - before[0], time.process_time() - before[1]
                cells = [f"{seconds / found.samples * 1e3:.2f}" for seconds in worked]
            told = "kept in memory" if cache else "from disk"
            print(f"| {count} | {told} | {found.rate:.0f} | {' | '.join(cells)} |", flush=True)


def _worked(loader: Loader) -> float:
    """Seconds that cores have worked for the loader's processes."""
    times = (psutil.Process(one).cpu_times() for one in loader.worker_ids)
    return float(sum(one.user + one.system for one in times))


def tell_threads(split: Split, size: int, workers: Sequence[int]) -> None:
    """Images a second of threads and of processes that do the same work, alone and beside a caller who computes."""
    preparation = Preparation(
        replace(preprocess_of(size), resample="bilinear"), AugmentationOptions()
    )
    layout = Layout((size, size), PART, -(-len(split) // PART), 0)
    parts = [
        tuple(range(first, min(first + PART, len(split)))) for first in range(0, len(split), PART)
    ]

    def wanted(rows: Sequence[int]) -> list[Wanted]:
        return [Wanted(row, split.ids[row], str(split.path(row))) for row in rows]

    pictures = Pictures(bytearray(layout.bytes), layout)

    def in_thread(slot: int) -> None:
        target = pictures.slots[slot, : len(parts[slot])]
        preparation.fill(target, wanted(parts[slot]), 0, pictures)

    print("\n| workers | the caller | threads, images/s | processes, images/s |\n|---|---|---|---|")
    for count in workers:
        processes = Processes(preparation, layout, wanted, count)
        for _ in range(2):  # they start
            for future in [processes.submit(Task(0, 0, 0, parts[0])) for _ in range(2 * count)]:
                future.result()
        for is_busy in (False, True):

            def with_threads(count: int = count) -> None:
                with ThreadPoolExecutor(count) as pool:
                    list(pool.map(in_thread, range(len(parts))))

            def with_processes(processes: Processes = processes) -> None:
                tasks = (Task(slot, 0, 0, rows) for slot, rows in enumerate(parts))
                for future in [processes.submit(task) for task in tasks]:
                    future.result()

            cells = [
                f"{len(split) / _seconds(do, is_busy=is_busy):.0f}"
                for do in (with_threads, with_processes)
            ]
            told = "computes in Python" if is_busy else "waits"
            print(f"| {count} | {told} | {' | '.join(cells)} |", flush=True)
        processes.close()


def _seconds(do: Callable[[], None], *, is_busy: bool) -> float:
    is_over = threading.Event()

    def compute() -> None:
        number = 1
        while not is_over.is_set():
            for _ in range(1000):
                number = number * 3 % 65521

    beside = threading.Thread(target=compute)
    if is_busy:
        beside.start()
    started = time.perf_counter()
    do()
    seconds = time.perf_counter() - started
    is_over.set()
    if is_busy:
        beside.join()
    return seconds


def draw_sheet(path: Path, side: int = 96, step: int = 5) -> None:
    """A picture of every operation of TrivialAugment at some of its bins, with signs in turn."""
    photo = Path(__file__).parents[1] / "examples" / "cat.jpg"
    spec = replace(preprocess_of(side), resample="bilinear")
    fitted: npt.NDArray[np.uint8] = preprocess.fit(images.decode(photo.read_bytes()).pixels, spec)
    space, bins, gap, left, top = trivial_space(2), range(0, BINS, step), 4, 92, 18
    size = left + len(bins) * (side + gap), top + len(space) * (side + gap)
    sheet = Image.new("RGB", size, (236, 236, 236))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, bin_ in enumerate(bins):
        draw.text((left + column * (side + gap) + 4, 1), f"bin {bin_}", (0, 0, 0), font)
    for row, (name, strengths) in enumerate(space.items()):
        y = top + row * (side + gap)
        draw.text((4, y + side // 2 - 8), name, (0, 0, 0), font)
        columns = bins if len(strengths.magnitudes) > 1 else bins[:1]
        for column, bin_ in enumerate(columns):
            sign = -1 if strengths.is_signed and column % 2 == 0 else 1
            changed = apply(fitted, name, sign * strengths.magnitudes[bin_])
            sheet.paste(Image.fromarray(changed), (left + column * (side + gap), y))
    sheet.save(path, quality=78, optimize=True)


if __name__ == "__main__":
    main()
