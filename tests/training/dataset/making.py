"""A dataset folder from arrays, for tests of what reads one."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from annotary.training.dataset.index import IMAGES, cached_path
from annotary.training.dataset.tables import Rows, write_folder


def dataset_folder(
    folder: Path,
    pictures: np.ndarray,
    targets: np.ndarray,
    *,
    tags: Sequence[str] = (),
    categories: Sequence[str] = (),
    validation: int = 0,
    is_cached: bool = True,
) -> Path:
    """A finished dataset folder.

    Args:
        folder: It is made; originals come into `originals` in it.
        pictures: uint8[n, H, W, 3], RGB; or a sequence of pictures of different sizes.
        targets: bool or uint8[n, t], which tags each has.
        tags: Their names; "tag 0" and so on when nothing is said.
        categories: Of the tags; none when nothing is said.
        validation: How many of the last pictures are the validation set.
        is_cached: Whether there are reduced pictures (lossless WebP of the same size).
    """
    targets = np.asarray(targets)
    names = list(tags) or [f"tag {number}" for number in range(targets.shape[1])]
    originals = folder / "originals"
    originals.mkdir(parents=True)
    images, digests = [], []
    for number, picture in enumerate(pictures):
        data = encoded(picture, "PNG")
        path = originals / f"{number}.png"
        path.write_bytes(data)
        digest = hashlib.sha256(data)
        images.append(str(path))
        digests.append(np.frombuffer(digest.digest(), np.uint8))
        if is_cached:
            reduced = cached_path(folder / IMAGES, digest.hexdigest(), ".webp")
            reduced.parent.mkdir(parents=True, exist_ok=True)
            reduced.write_bytes(encoded(picture, "WEBP", lossless=True))
    first = len(images) - validation
    sha256 = np.array(digests, np.uint8).reshape(-1, 32)

    def rows(places: range) -> Rows:
        counts = [int(targets[place].astype(bool).sum()) for place in places]
        return Rows(
            [str(place) for place in places],
            [images[place] for place in places],
            sha256[places.start : places.stop],
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.concatenate([np.empty(0), *(np.flatnonzero(targets[p]) for p in places)]).astype(
                np.int32
            ),
        )

    told = {"cache_suffix": ".webp" if is_cached else "", "settings": {}, "counts": {}}
    write_folder(
        folder,
        rows(range(first)),
        rows(range(first, len(images))),
        names,
        list(categories) or [""] * len(names),
        told,
    )
    return folder


def encoded(picture: np.ndarray, form: str, **settings: object) -> bytes:
    """A picture as a file of some form."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(picture)).save(file, form, **settings)
    return file.getvalue()
