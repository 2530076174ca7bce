"""Files to measure on, made from real photos: large JPEGs, and folders of very many small ones."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SIZE = (4000, 3000)
"""12 megapixels."""

GRAIN = 4.0
"""Standard deviation of the sensor noise that is added, of 255. Without it an enlarged photo compresses to a fifth of
what a camera writes and decodes too fast."""


def large_jpegs(source: Path, folder: Path, count: int) -> list[Path]:
    """Make JPEGs of 12 megapixels, unless they are there.

    Args:
        source: A folder of photos.
        folder: Where they go.
        count: How many; each photo is used again mirrored, then upside down, when there are fewer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    photos = sorted(source.glob("*.jpg"))
    jobs = [
        (photos[i % len(photos)], folder / f"{i:04}.jpg", i // len(photos)) for i in range(count)
    ]
    with ProcessPoolExecutor() as pool:
        list(pool.map(_large_jpeg, jobs))
    return [job[1] for job in jobs]


def _large_jpeg(job: tuple[Path, Path, int]) -> None:
    source, target, turn = job
    if target.exists():
        return
    image = ImageOps.exif_transpose(Image.open(source)).convert("RGB")
    image = (image, ImageOps.mirror(image), ImageOps.flip(image))[turn % 3]
    pixels = np.asarray(image.resize(SIZE, Image.Resampling.LANCZOS), dtype=np.float32)
    grain = np.random.default_rng(int(target.stem)).normal(0, GRAIN, pixels.shape[:2])
    pixels = np.clip(pixels + grain[:, :, None], 0, 255).astype(np.uint8)
    temporary = target.with_suffix(".tmp")
    Image.fromarray(pixels).save(temporary, "JPEG", quality=92)
    temporary.replace(target)


def many_names(source: Path, folder: Path, count: int) -> Path:
    """A folder with so many JPEGs, each a hard link (or else a copy) of one of the photos."""
    folder.mkdir(parents=True, exist_ok=True)
    photos = sorted(source.glob("*.jpg"))
    copies = folder.parent / "originals"
    copies.mkdir(exist_ok=True)
    for photo in photos:
        if not (copies / photo.name).exists():
            (copies / photo.name).write_bytes(photo.read_bytes())
    for i in range(count):
        target = folder / f"{i:06}.jpg"
        if not target.exists():
            os.link(copies / photos[i % len(photos)].name, target)
    return folder
