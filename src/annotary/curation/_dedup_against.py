"""Evaluation sets, and the rows whose image or text is in one of them, nearly so included."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.catalog.perceptual_hash import near_hashes
from annotary.curation._dedup_embedding import EmbedStep
from annotary.curation._dedup_found import Found, FoundFiles, Numbers, Standing
from annotary.curation._dedup_images import Vectors, exact_keys, look_batches, phash_keys
from annotary.curation._dedup_keys import KeyFile, Keys, bucket, cells_of, keys_of, normalised
from annotary.curation._dedup_plan import PlannedPart, numbered
from annotary.curation._dedup_vectors import VectorStep, joined_vectors, read_vectors
from annotary.curation.columns import text_columns
from annotary.curation.looks import LooksStep
from annotary.curation.steps import StepOptions, run_step
from annotary.curation.tables import Part, PartWriter, Rows, column_types, find_parts
from annotary.errors import NothingToDo, UsageError
from annotary.records import Failure
from annotary.sources import SourceOptions, open_sources
from annotary.sources._paths import kind_of

if TYPE_CHECKING:
    import pyarrow as pa

_LISTED = 1_000
"""Images of a folder in a part of their list: what one process measures at a time."""

_BLOCK = 2**20
"""Rows that are compared at a time."""


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """Images that training must not see.

    Attributes:
        name: As it was named.
        files: The images of a folder; None when it is tables.
        parts: The parts of tables.
        digest: A text that changes with what is in it.
    """

    name: str
    files: tuple[str, ...] | None
    parts: tuple[Part, ...]
    digest: str


class KnownImages(NamedTuple):
    """What the images of all evaluation sets are compared by.

    Attributes:
        sets: int64[n], which set each image is of.
        exact: Keys of their bytes; rows are numbers of images.
        phash: Keys of their looks.
        vectors: Those that a model made of them, and those in the column of vectors.
        unreadable: How many could not be read, so that nobody knows whether rows are the same.
    """

    sets: Numbers
    exact: Keys
    phash: Keys
    vectors: Vectors
    unreadable: int


def evaluation_set(path: str) -> EvaluationSet:
    """A folder of images, or tables with images.

    Raises:
        NothingToDo: There is no image.
        UsageError: It is not there.
    """
    files = _images_of(path) if kind_of(path) == "folder" else []
    if files:
        return EvaluationSet(path, tuple(files), (), _digest(files))
    try:
        parts = find_parts([path])
    except NothingToDo as error:
        raise NothingToDo(f"neither an image nor a table in {path} (--against)") from error
    return EvaluationSet(path, None, tuple(parts), _digest([part.file for part in parts]))


def _images_of(folder: str) -> list[str]:
    """The paths of the images of a folder.

    Raises:
        UsageError: It cannot be read.
    """
    files = []
    with suppress(NothingToDo):
        for one in open_sources([folder], SourceOptions()):
            if isinstance(one, Failure):
                raise UsageError(f"{one.image}: {one.message} (--against)")
            if one.path is not None:
                files.append(os.path.abspath(one.path))  # noqa: PTH100 - a link stays what it is
    return files


def known_images(
    sets: Sequence[EvaluationSet],
    step: LooksStep,
    embedding: EmbedStep | VectorStep | None,
    folder: Path,
    options: StepOptions,
) -> tuple[KnownImages, list[str]]:
    """What images of evaluation sets are compared by, and their names.

    Args:
        sets: The sets.
        step: How pictures are measured.
        embedding: How their vectors are had; None where they are not compared by vectors.
        folder: Where measures are kept.
        options: How the work is spread; all of it is done here, whatever the shard.
    """
    names: list[str] = []
    sets_of, exact, phash, vectors, unreadable = [], [], [], [], 0
    for number, one in enumerate(sets):
        place = folder / blake2b(one.digest.encode(), digest_size=8).hexdigest()
        parts, own = (list(one.parts), step) if one.files is None else _listed(one, place, step)
        result = run_step(own, parts, place / "looks", options)
        if result.failed:  # not to be compared with it would be worse than not to go on
            raise UsageError(f"{result.total.failures[-1].message} (--against {one.name})")
        unreadable += int(result.total.beside.get("unreadable_images", 0))
        rows = [result.tallies[part.name].rows_out for part in parts]
        planned = numbered(parts, rows, [None] * len(parts))
        first = len(names)
        names += _names(one, planned)
        for start, batch in look_batches(place / "looks", planned):
            exact.append(exact_keys(batch, first + start))
            phash.append(phash_keys(batch, first + start))
        vectors.append(_vectors_of(one, own, parts, planned, embedding, place, options, first))
        sets_of.append(np.full(len(names) - first, number, np.int64))
    joined = np.concatenate([np.empty(0, np.int64), *sets_of])
    together = joined_vectors(vectors)
    keys = Keys.joined(exact), Keys.joined(phash)
    return KnownImages(joined, *keys, together, unreadable), names


def leaked_images(
    batches: Iterator[tuple[int, pa.RecordBatch]],
    known: KnownImages,
    ways: Sequence[tuple[int, int]],
    distance: int,
    standing: Standing,
    found: FoundFiles,
) -> None:
    """Let rows go whose image is in an evaluation set.

    A photo that was learned from is known without its colours, too, so colours do not count here.

    Args:
        batches: What was measured of all rows.
        known: The images of the sets.
        ways: For each set the numbers of its reasons: the same bytes, the same look.
        distance: In how many bits perceptual hashes may differ.
        standing: It is told which go.
        found: Gets them.
    """
    numbers = np.array(ways, np.uint8)
    held: list[tuple[int, Any]] = []
    size = 0

    def flush() -> None:
        exact = Keys.joined([exact_keys(batch, first) for first, batch in held])
        phash = Keys.joined([phash_keys(batch, first) for first, batch in held])
        same, of = _same(exact, known.exact)
        is_new = np.isin(phash.rows, same, invert=True)
        near, near_of, far = _near(phash.rows[is_new], phash.high[is_new], known.phash, distance)
        rows, images = np.concatenate([same, near]), np.concatenate([of, near_of])
        column = np.repeat([0, 1], [len(same), len(near)])
        order = np.argsort(rows)
        far = np.concatenate([np.zeros(len(same), np.float32), far])
        way = numbers[known.sets[images], column]
        found.write(Found(rows[order], images[order], far[order], way[order]), is_known=True)
        standing.go(rows)
        held.clear()

    for first, batch in batches:
        held.append((first, batch))
        size += batch.num_rows
        if size >= _BLOCK:
            flush()
            size = 0
    if held:
        flush()


def leaked_vectors(
    vectors: Vectors,
    known: Vectors,
    sets: Numbers,
    ways: Sequence[int],
    cosine: float,
    standing: Standing,
    found: FoundFiles,
) -> None:
    """Let rows go whose vector is near to that of an image of an evaluation set.

    Args:
        vectors: Of the rows.
        known: Of the images of the sets.
        sets: int64[images], which set each is of.
        ways: For each set the number of its reason.
        cosine: How alike they must be.
        standing: It is told which go.
        found: Gets them.
    """
    if not len(known.rows):
        return
    numbers = np.array(ways, np.uint8)
    theirs = np.asarray(known.vectors)
    step = max(1, min(2**14, 2**26 // len(theirs)))
    for start in range(0, len(vectors.rows), step):
        rows = vectors.rows[start : start + step]
        likeness = np.asarray(vectors.vectors[start : start + step]) @ theirs.T
        best = np.argmax(likeness, axis=1)
        most = np.minimum(likeness[np.arange(len(rows)), best], np.float32(1.0))
        is_near = (most >= cosine - 2e-6) & standing.left(rows)
        images = known.rows[best[is_near]]
        gone = Found(rows[is_near], images, 1 - most[is_near], numbers[sets[images]])
        found.write(gone, is_known=True)
        standing.go(gone.rows)


@dataclass(frozen=True, slots=True)
class KnownTexts:
    """Texts that training must not see.

    Attributes:
        keys: Their hashes; rows are numbers of texts.
        sets: int64[n], which set each is of.
    """

    keys: Keys
    sets: Numbers


def text_parts(path: str) -> list[Part]:
    """The parts of a table of texts; a .txt is read as lines and has none.

    Raises:
        UsageError: It is not there, or no table.
    """
    if path.lower().endswith(".txt") and kind_of(path) == "file":
        return []
    return find_parts([path])


def leaked_texts(
    files: Sequence[KeyFile],
    count: int,
    known: KnownTexts,
    ways: Sequence[int],
    first_name: int,
    standing: Standing,
    found: FoundFiles,
) -> None:
    """Let rows go whose text is in an evaluation set.

    Args:
        files: Keys of the texts of rows, of all parts.
        count: In how many buckets they are gone through.
        known: The texts of the sets.
        ways: For each set the number of its reason.
        first_name: How many names of images come before those of texts.
        standing: It is told which go.
        found: Gets them.
    """
    numbers = np.array(ways, np.uint8)
    for number in range(count):
        keys = bucket(files, number, count)
        rows, of = _same(keys, known.keys)
        is_left = standing.left(rows)
        rows, of = rows[is_left], of[is_left]
        order = np.argsort(rows)
        way = numbers[known.sets[of]]
        zero = np.zeros(len(rows), np.float32)
        found.write(Found(rows[order], of[order] + first_name, zero, way[order]), is_known=True)
        standing.go(rows)


def text_digest(path: str) -> str:
    """A text that changes with a table of texts.

    Raises:
        UsageError: It is not there, or no table.
    """
    return _digest([part.file for part in text_parts(path)] or [path])


def lines_of(path: str) -> list[str]:
    """The lines of a text file.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8: {error}") from error


def _same(keys: Keys, known: Keys) -> tuple[Numbers, Numbers]:
    """Rows whose keys are known, and the first of the known ones that each is the same as."""
    places: dict[tuple[int, int], int] = {}
    chosen = np.isin(known.high, keys.high)
    columns = (column[chosen].tolist() for column in known)
    for high, low, image in zip(*columns, strict=True):
        places.setdefault((high, low), image)
    is_likely = np.isin(keys.high, known.high)
    rows, of = [], []
    columns = (column[is_likely].tolist() for column in keys)
    for high, low, row in zip(*columns, strict=True):
        image = places.get((high, low))
        if image is not None:
            rows.append(row)
            of.append(image)
    return np.array(rows, np.int64), np.array(of, np.int64)


def _near(
    rows: Numbers, hashes: npt.NDArray[np.uint64], known: Keys, distance: int
) -> tuple[Numbers, Numbers, npt.NDArray[np.float32]]:
    """Rows whose hashes are near to known ones, the nearest of these (of several the first), and how far it is."""
    own, theirs = np.unique(hashes), np.unique(known.high)
    best: dict[int, tuple[int, int]] = {}  # hash of a row -> distance, image
    images: dict[int, int] = {}
    for value, image in zip(known.high.tolist(), known.rows.tolist(), strict=True):
        images.setdefault(value, image)

    def offer(value: int, far: int, image: int) -> None:
        best[value] = min(best.get(value, (65, 0)), (far, image))

    for value in np.intersect1d(own, theirs).tolist():
        offer(value, 0, images[value])
    for pairs in near_hashes(np.union1d(own, theirs), distance):
        for mine, other in ((pairs.first, pairs.second), (pairs.second, pairs.first)):
            is_across = np.isin(mine, own) & np.isin(other, theirs)
            columns = (column[is_across].tolist() for column in (mine, other, pairs.distance))
            for value, other_value, far in zip(*columns, strict=True):
                offer(value, far, images[other_value])
    if not best:
        empty = np.empty(0, np.int64)
        return empty, empty, empty.astype(np.float32)
    values = np.array(sorted(best), np.uint64)
    found = np.array([best[value] for value in values.tolist()], np.int64)
    is_near = np.isin(hashes, values)
    place = np.searchsorted(values, hashes[is_near])
    return rows[is_near], found[place, 1], found[place, 0].astype(np.float32)


def _vectors_of(
    one: EvaluationSet,
    looks: LooksStep,
    parts: Sequence[Part],
    planned: Sequence[PlannedPart],
    embedding: EmbedStep | VectorStep | None,
    place: Path,
    options: StepOptions,
    first: int,
) -> Vectors:
    """The vectors of the images of a set, numbered from `first`; none where tables have none."""
    if embedding is None:
        return joined_vectors([])
    if isinstance(embedding, VectorStep):
        if one.files is not None or embedding.column not in column_types(parts[0]):
            return joined_vectors([])
    else:
        embedding = replace(embedding, looks=looks)
        options = replace(options, workers=1)
    run_step(embedding, parts, place / "vectors", options)
    found = read_vectors(place / "vectors", planned, place)
    return found._replace(rows=found.rows + first)


def _listed(one: EvaluationSet, folder: Path, step: LooksStep) -> tuple[list[Part], LooksStep]:
    """The images of a folder as tables that name them, and the step that measures these."""
    import pyarrow as pa

    assert one.files is not None
    parts = []
    for start in range(0, len(one.files), _LISTED):
        path = folder / "list" / f"{start // _LISTED:06d}.parquet"
        if not path.exists():  # its folder is called by what is in it
            # Bytes of names that are no UTF-8 are escapes, as in all tables of names.
            cells = [
                os.fsencode(name)
                .decode("utf-8", "surrogateescape")
                .encode("utf-8", "backslashreplace")
                for name in one.files[start : start + _LISTED]
            ]
            with PartWriter(path) as writer:
                writer.write(pa.RecordBatch.from_pydict({"image": [c.decode() for c in cells]}))
        parts.append(Part(str(path), "parquet", path.stem))
    source = SourceOptions(image_column="image", max_bytes=step.source.max_bytes)
    return parts, LooksStep(source, step.decode)


def _names(one: EvaluationSet, parts: Sequence[PlannedPart]) -> list[str]:
    if one.files is not None:
        return list(one.files)
    return [f"{part.file}/{part.first_in_file + row}" for part in parts for row in range(part.rows)]


def _digest(files: Sequence[str]) -> str:
    """A text that changes with files."""
    digest = blake2b(digest_size=16)
    for file in files:
        try:
            status = os.stat(file)  # noqa: PTH116
            told = f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0"
        except OSError:
            told = f"{file}\0gone\0"
        digest.update(told.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _one_each(array: pa.Array) -> tuple[pa.Array, list[int]]:
    """The texts of a column, of which a row may have several, and the row of each."""
    import pyarrow as pa
    from pyarrow import compute

    rows = pa.array(range(len(array)))
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        rows = rows.take(compute.list_parent_indices(array))
        array = array.flatten()
    return array, rows.to_pylist()


def known_texts(
    paths: Sequence[str], column: str | None, *, is_normalised: bool
) -> tuple[KnownTexts, list[str]]:
    """The texts of evaluation sets, and where each stands.

    Args:
        paths: Tables, or .txt with a text a line.
        column: The column with texts, of tables that have it; of others the first with a usual name.
        is_normalised: Whether texts are normalised before they are compared.
    """
    found, sets, names = [], [], list[str]()
    for number, path in enumerate(paths):
        first = len(names)
        parts = text_parts(path)
        if not parts:
            lines = [normalised(line) if is_normalised else line for line in lines_of(path)]
            found.append(keys_of([line.encode() for line in lines], len(names)))
            names += [f"{path}:{place}" for place in range(1, len(lines) + 1)]
        for part in parts:
            named = [column] if column in column_types(part) else []
            (name,) = text_columns(part, named)
            place = 0
            for batch in Rows(part, [name]).batches():
                texts, rows = _one_each(batch.column(0))
                found.append(keys_of(cells_of(texts, is_normalised=is_normalised), len(names)))
                names += [f"{part.file}/{place + row}" for row in rows]
                place += batch.num_rows
        sets.append(np.full(len(names) - first, number, np.int64))
    return KnownTexts(Keys.joined(found), np.concatenate([np.empty(0, np.int64), *sets])), names
