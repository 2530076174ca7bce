"""Features of images, computed once: on the disk by the images' digests, so that a stopped run goes on.

A folder holds a folder for each way of computing (weights, preparation, mirrored or not), and in it parts of some
hundred images each. A part is written whole or not at all; what is in none is computed.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from annotary.cards import PreprocessSpec
from annotary.errors import ImageError, OutputError, UnreachableImage
from annotary.images import decode
from annotary.preprocess import Fitted, fit, needed_size, to_batch
from annotary.runtime import available_cores

_IN_A_PART = 256
"""Images between two writings: what a killed run has to compute again at most."""

_Entry = TypeVar("_Entry")

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CachedFeatures:
    """Features of a list of images.

    Attributes:
        features: float32[views, n, d], of the images as they are and, where asked, mirrored; 0 for those that failed.
        is_known: bool[n], whether an image could be read.
        failures: Path and reason of each that could not.
        computed: How many were not on the disk.
    """

    features: Features
    is_known: npt.NDArray[np.bool_]
    failures: tuple[tuple[Path, str], ...]
    computed: int


def image_keys(sha256: npt.NDArray[np.uint8], paths: Sequence[Path]) -> list[str]:
    """Keys of a dataset's images: the digest of the original, and which form of it is read.

    Args:
        sha256: uint8[n, 32], of the originals.
        paths: Where each is read from; a reduced picture gives other features than its original.
    """
    return [
        digest.tobytes().hex() + ("-" + path.suffix if path.stem == digest.tobytes().hex() else "")
        for digest, path in zip(sha256, paths, strict=True)
    ]


def cached_features(
    run: Callable[[npt.NDArray[np.generic]], Features],
    spec: PreprocessSpec,
    fingerprint: str,
    paths: Sequence[Path],
    keys: Sequence[str],
    folder: Path,
    *,
    is_mirrored: bool = False,
    batch_size: int = 16,
    report: Callable[[int, int], None] | None = None,
) -> CachedFeatures:
    """Features of images, from the disk as far as they are there.

    Args:
        run: From a batch prepared as `spec` says to float[b, d].
        spec: How images are prepared.
        fingerprint: Changes with anything else that the features depend on.
        paths: The images.
        keys: Of the images: the same key means the same features.
        folder: The cache.
        is_mirrored: Whether there is a second view, mirrored left to right.
        batch_size: Images that the network takes at a time.
        report: Told after every part how many images are done, and how many there are.

    Raises:
        OutputError: The cache cannot be written.
    """
    told = repr((fingerprint, spec, spec.later, is_mirrored)).encode()
    place = folder / hashlib.blake2b(told, digest_size=12).hexdigest()
    found = _read_parts(place, set(keys))
    missing: dict[str, Path] = {}
    for key, path in zip(keys, paths, strict=True):
        if key not in found:
            missing.setdefault(key, path)
    failures: dict[str, str] = {}
    done = len(keys) - len(missing)
    for part in _groups(missing.items(), _IN_A_PART):
        names, values = [], []
        for name, value in _computed(part, run, spec, is_mirrored, batch_size):
            if isinstance(value, str):
                failures[name] = value
            else:
                names.append(name)
                values.append(value)
        if names:
            _write_part(place, names, np.stack(values))
            found |= dict(zip(names, values, strict=True))
        done += len(part)
        if report is not None:
            report(done, len(keys))
    shape = next(iter(found.values())).shape if found else (1 + is_mirrored, 0)
    features = np.zeros((shape[0], len(keys), shape[1]), np.float32)
    for row, key in enumerate(keys):
        if key in found:
            features[:, row] = found[key]
    return CachedFeatures(
        features,
        np.array([key in found for key in keys], np.bool_),
        tuple((missing[key], why) for key, why in failures.items()),
        len(missing),
    )


def _computed(
    part: Sequence[tuple[str, Path]],
    run: Callable[[npt.NDArray[np.generic]], Features],
    spec: PreprocessSpec,
    is_mirrored: bool,
    batch_size: int,
) -> Iterator[tuple[str, Features | str]]:
    """Key and features [views, d] of images, or why there are none."""
    with ThreadPoolExecutor(available_cores()) as threads:
        fitted = threads.map(lambda entry: (entry[0], _fitted(entry[1], spec)), part)
        for group in _groups(fitted, batch_size):
            good = [(name, image) for name, image in group if not isinstance(image, str)]
            yield from ((name, image) for name, image in group if isinstance(image, str))
            if not good:
                continue
            pictures = [image for _, image in good]
            views = [run(to_batch(pictures, spec))]
            if is_mirrored:
                mirrored = [np.ascontiguousarray(image[:, ::-1]) for image in pictures]
                views.append(run(to_batch(mirrored, spec)))
            for row, (name, _) in enumerate(good):
                yield name, np.stack([view[row] for view in views]).astype(np.float32)


def _groups(entries: Iterable[_Entry], size: int) -> Iterator[tuple[_Entry, ...]]:
    """Entries, so many at a time."""
    waiting = iter(entries)
    while group := tuple(islice(waiting, size)):
        yield group


def _fitted(path: Path, spec: PreprocessSpec) -> Fitted | str:
    """A picture in the network's size, or why there is none."""
    try:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UnreachableImage(f"cannot read: {error.strerror}") from error
        decoded = decode(
            data, at_least=lambda width, height: needed_size(spec, width, height), alpha=spec.alpha
        )
        return fit(decoded.pixels, spec, (decoded.width, decoded.height))
    except ImageError as error:
        return str(error)


def _read_parts(place: Path, wanted: set[str]) -> dict[str, Features]:
    """What the disk has of some keys; a part that is damaged counts as absent."""
    found: dict[str, Features] = {}
    for path in sorted(place.glob("*.npz")) if place.is_dir() else ():
        try:
            with path.open("rb") as file, np.load(file) as part:
                names, values = part["keys"], part["features"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue
        every = zip(names.tolist(), values, strict=True)
        found |= {name: value for name, value in every if name in wanted}
    return found


def _write_part(place: Path, names: Sequence[str], values: Features) -> None:
    """Write a part, whose name is that of what is in it."""
    digest = hashlib.blake2b("\n".join(names).encode(), digest_size=12).hexdigest()
    path = place / f"{digest}.npz"
    temporary = path.with_name(f".{digest}-{os.getpid()}.tmp")
    try:
        place.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, keys=np.array(names), features=values)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
