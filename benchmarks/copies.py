"""How near copies of photos are to their originals, and different photos to each other, by hash and by a model.

python -m benchmarks.copies --photos ../shared/data
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

from annotary import images, preprocess
from annotary.cards import PreprocessSpec
from annotary.errors import UsageError
from annotary.models import load_model
from annotary.tasks.encoding import image_encoder
from annotary.tasks.perceptual_hash import SPEC, perceptual_hashes

COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "half the size": lambda image: _scaled(image, 0.5),
    "a quarter": lambda image: _scaled(image, 0.25),
    "twice": lambda image: _scaled(image, 2.0),
    "thumbnail of 128 pixels": lambda image: _scaled(image, 128 / max(image.size)),
    "JPEG of quality 30": lambda image: _jpeg(image, 30),
    "JPEG of quality 10": lambda image: _jpeg(image, 10),
    "brightness 0.85": lambda image: _jpeg(ImageEnhance.Brightness(image).enhance(0.85)),
    "brightness 1.1": lambda image: _jpeg(ImageEnhance.Brightness(image).enhance(1.1)),
    "contrast 1.2": lambda image: _jpeg(ImageEnhance.Contrast(image).enhance(1.2)),
    "grey": lambda image: _jpeg(image.convert("L")),
    "mirrored": lambda image: _jpeg(ImageOps.mirror(image)),
    "2 % cut off each side": lambda image: _cut(image, 0.02),
    "5 % cut off each side": lambda image: _cut(image, 0.05),
    "10 % cut off each side": lambda image: _cut(image, 0.1),
}

BITS = (4, 6, 8)
COSINES = (0.85, 0.9, 0.95)


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--photos", type=Path, required=True, help="a folder of different photos")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--count", type=int, default=1000, help="how many photos are taken")
    options = parser.parse_args()
    photos = sorted(options.photos.rglob("*.jpg"))
    chosen = np.random.default_rng(0).permutation(len(photos))[: options.count]
    photos = [photos[i] for i in sorted(chosen.tolist())]

    def hashes(batch: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return perceptual_hashes(batch.astype(np.uint8)).values

    print(f"{len(photos)} photos; copies within so many bits\n")
    _table(photos, SPEC, hashes, lambda a, b: -np.bitwise_count(a ^ b).astype(int), BITS, -1)
    model = load_model(options.model)
    try:
        encoder = image_encoder(model)
    except UsageError as error:
        raise SystemExit(str(error)) from error
    print(f"\n{model.card.id}; copies whose cosine is at least\n")
    spec = model.card.preprocess
    _table(photos, spec, encoder.embed_images, lambda a, b: (a * b).sum(axis=-1), COSINES, 1)


def _table(
    photos: Sequence[Path],
    spec: PreprocessSpec,
    look: Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]],
    likeness: Callable[..., npt.NDArray[Any]],
    limits: Sequence[float],
    sign: int,
) -> None:
    """The shares of copies that are near enough, and how many pairs of different photos are."""
    print(f"| copy | {' | '.join(map(str, limits))} |\n|{'---|' * (len(limits) + 1)}")
    originals = _seen([photo.read_bytes() for photo in photos], spec, look)
    for name, change in COPIES.items():
        copies = _seen([_changed(photo, change) for photo in photos], spec, look)
        near = likeness(originals, copies)
        cells = (f"{np.mean(near >= sign * limit):.1%}" for limit in limits)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    counts = np.zeros(len(limits), np.int64)
    for i in range(len(originals) - 1):
        near = likeness(originals[i], originals[i + 1 :])
        counts += [int((near >= sign * limit).sum()) for limit in limits]
    pairs = len(originals) * (len(originals) - 1) // 2
    print(f"| of {pairs:,} pairs of different photos | {' | '.join(map(str, counts))} |")


def _changed(photo: Path, change: Callable[[Image.Image], bytes]) -> bytes:
    with Image.open(photo) as image:
        return change(image.convert("RGB"))


def _seen(
    files: Sequence[bytes],
    spec: PreprocessSpec,
    look: Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]],
) -> npt.NDArray[np.generic]:
    found = []
    for start in range(0, len(files), 32):
        pictures = []
        for data in files[start : start + 32]:
            decoded = images.decode(data, at_least=preprocess.needed_by_all(spec))
            size = decoded.width, decoded.height
            pictures.append(preprocess.fit(decoded.pixels, spec, size))
        found.append(look(preprocess.to_batch(pictures, spec)))
    return np.concatenate(found)


def _jpeg(image: Image.Image, quality: int = 90) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _scaled(image: Image.Image, factor: float) -> bytes:
    return _jpeg(image.resize([max(1, round(side * factor)) for side in image.size]))


def _cut(image: Image.Image, share: float) -> bytes:
    width, height = image.size
    left, top = round(width * share), round(height * share)
    return _jpeg(image.crop((left, top, width - left, height - top)))


if __name__ == "__main__":
    main()
