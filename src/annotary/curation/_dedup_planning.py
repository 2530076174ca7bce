"""Making the plan of a de-duplication: what rows are compared by goes to files, then it is settled which rows go."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from annotary.curation._dedup_against import (
    EvaluationSet,
    known_images,
    known_texts,
    leaked_images,
    leaked_texts,
    leaked_vectors,
)
from annotary.curation._dedup_embedding import EmbedStep
from annotary.curation._dedup_found import FoundFiles, Standing
from annotary.curation._dedup_groups import (
    Settling,
    bucket_count,
    buckets,
    equal_rows,
    settle_one,
)
from annotary.curation._dedup_images import (
    Candidates,
    ImageFiles,
    Vectors,
    equal_images,
    image_files,
    look_batches,
    near_by_vectors,
    near_images,
    settle_images,
)
from annotary.curation._dedup_keys import KeyFile, KeyStep, KeyWay, key_file
from annotary.curation._dedup_plan import (
    PlannedPart,
    Reason,
    dedup_folder,
    is_planned,
    new_plan,
    numbered,
    write_names,
)
from annotary.curation._dedup_vectors import VectorStep, read_vectors
from annotary.curation._dedup_ways import IMAGE_WAYS, stages, why
from annotary.curation.looks import LooksStep
from annotary.curation.steps import OnPart, Step, StepOptions, StepResult, Tally, run_step
from annotary.curation.tables import Part

_LEAKS = ("exact", "phash", "embedding")

Watch: TypeAlias = Callable[[str, int], AbstractContextManager[OnPart]]
"""Shows how far something is ("hashing") that is done for so many parts."""


@dataclass(frozen=True, slots=True)
class Planning:
    """What is compared with what.

    Attributes:
        folder: Where the rows that stay are written.
        parts: The tables.
        ways: How rows are the same, in the order in which it is told.
        key_ways: Those of them that compare columns, and the one that is needed for texts of evaluation sets.
        is_normalised: Whether texts are normalised before they are compared.
        looks: How pictures are measured.
        looks_folder: Where their measures are; None where none are needed.
        embedding: How vectors are had; None where none are needed.
        distance: In how many bits perceptual hashes may differ.
        cosine: How alike vectors must be.
        sets: Evaluation sets of images.
        text_sets: Evaluation sets of texts.
        text_column: The column with texts, of evaluation sets as well, if it has that name.
        against: What tells evaluation sets from others, as JSON.
    """

    folder: Path
    parts: Sequence[Part]
    ways: tuple[str, ...]
    key_ways: tuple[KeyWay, ...]
    is_normalised: bool
    looks: LooksStep
    looks_folder: Path | None
    embedding: EmbedStep | VectorStep | None
    distance: int
    cosine: float
    sets: tuple[EvaluationSet, ...]
    text_sets: tuple[str, ...]
    text_column: str | None
    against: Any


def make_plan(planning: Planning, steps: StepOptions, watch: Watch) -> int:
    """Make the plan.

    Args:
        planning: What is compared with what.
        steps: How the work is spread.
        watch: Shows how far it is.

    Returns:
        How many parts are left for other machines; while there are some, no plan can be made.
    """
    measured = _measure(planning, steps, watch)
    missing = max((result.missing for result in measured.values()), default=0)
    if missing:
        return missing
    parts = _numbered(planning.parts, list(measured.values()))

    def is_made() -> bool:
        return is_planned(planning.folder, parts, planning.against)

    if not is_made():
        reasons = _reasons(planning)
        beside: dict[str, int] = {}
        with (
            watch("comparing", max(1, len(stages(planning.ways)))) as on_part,
            new_plan(planning.folder, parts, reasons, planning.against, beside, is_made) as place,
        ):
            beside |= _Work(planning, parts, place, steps).settle(on_part)
    return 0


def _measure(planning: Planning, steps: StepOptions, watch: Watch) -> dict[str, StepResult]:
    """Put what rows are compared by into files, part by part."""
    place = dedup_folder(planning.folder)
    work: dict[str, tuple[str, Step, Path]] = {}
    if planning.key_ways:
        keys = KeyStep(planning.key_ways, planning.is_normalised)
        work["keys"] = ("hashing", keys, place / "keys")
    if planning.looks_folder is not None:
        work["looks"] = ("measuring pictures", planning.looks, planning.looks_folder)
    if planning.embedding is not None:
        verb = "embedding" if isinstance(planning.embedding, EmbedStep) else "reading vectors"
        work["vectors"] = (verb, planning.embedding, place / "vectors")
    results = {}
    for name, (verb, one, folder) in work.items():
        # A network takes all cores by itself.
        own = replace(steps, workers=1) if isinstance(one, EmbedStep) else steps
        with watch(verb, len(planning.parts)) as on_part:
            results[name] = run_step(one, planning.parts, folder, own, on_part=on_part)
    return results


def _numbered(parts: Sequence[Part], measured: Sequence[StepResult]) -> list[PlannedPart]:
    broken: dict[str, str] = {}
    for result in measured:
        failures = result.total.failures[len(result.total.failures) - len(result.failed) :]
        for name, failure in zip(result.failed, failures, strict=True):
            broken.setdefault(name, failure.message)
    rows = []
    for part in parts:
        counts = {r.tallies[part.name].rows_out for r in measured if part.name in r.tallies}
        if len(counts) > 1:
            broken.setdefault(part.name, f"{part.file} has changed meanwhile; run it again")
        rows.append(0 if part.name in broken else max(counts))
    return numbered(parts, rows, [broken.get(part.name) for part in parts])


def _reasons(planning: Planning) -> list[Reason]:
    """Why rows may go: those of evaluation sets first, then the ways."""
    found = [
        Reason(f"in evaluation set {one.name}", by, number)
        for number, one in enumerate(planning.sets)
        for by in _LEAKS
    ]
    found += [
        Reason(f"text in evaluation set {name}", "text", number)
        for number, name in enumerate(planning.text_sets)
    ]
    return found + [Reason(why(way), way) for way in planning.ways]


class _Work:
    """Settles which rows go.

    Args:
        planning: What is compared with what.
        parts: The parts, with their rows numbered.
        place: The folder of the plan.
        steps: How the work is spread.
    """

    def __init__(
        self, planning: Planning, parts: Sequence[PlannedPart], place: Path, steps: StepOptions
    ) -> None:
        self._planning = planning
        self._parts = parts
        self._place = place
        self._steps = replace(steps, shard=None)
        self._rows = sum(part.rows for part in parts)
        self._folder = place / "work"
        self._folder.mkdir()
        self._found = FoundFiles(place)
        self._standing = Standing(self._folder / "standing", self._rows)
        reasons = _reasons(planning)
        self._first_way = len(reasons) - len(planning.ways)
        self._images: ImageFiles | None = None

    def settle(self, on_part: OnPart) -> dict[str, int]:
        """Write which rows go; what more there is to report."""
        beside: dict[str, int] = {}
        names = self._settle_leaks(beside)
        write_names(self._place, names)
        for done, stage in enumerate(stages(self._planning.ways), 1):
            if stage[0] in IMAGE_WAYS:
                self._settle_images(stage)
            else:
                self._settle_keys(stage)
            on_part(done, Tally())
        self._found.gather(self._rows)
        shutil.rmtree(self._folder, ignore_errors=True)
        return beside

    def _settle_leaks(self, beside: dict[str, int]) -> list[str]:
        """Let rows of evaluation sets go; the names of all that these hold."""
        planning, names = self._planning, list[str]()
        if planning.sets:
            assert planning.looks_folder is not None
            place = dedup_folder(planning.folder) / "against"
            known, names = known_images(
                planning.sets, planning.looks, planning.embedding, place, self._steps
            )
            count = len(planning.sets)
            beside["evaluation_images"] = len(names)
            beside["evaluation_images_unreadable"] = known.unreadable
            leaked_images(
                look_batches(planning.looks_folder, self._parts),
                known,
                [(3 * number, 3 * number + 1) for number in range(count)],
                planning.distance,
                self._standing,
                self._found,
            )
            if planning.embedding is not None:
                leaked_vectors(
                    self._vectors(),
                    known.vectors,
                    known.sets,
                    [3 * number + 2 for number in range(count)],
                    planning.cosine,
                    self._standing,
                    self._found,
                )
        if planning.text_sets:
            texts, more = known_texts(
                planning.text_sets, planning.text_column, is_normalised=planning.is_normalised
            )
            first = len(_LEAKS) * len(planning.sets)
            files = self._key_files("text")
            leaked_texts(
                files,
                bucket_count(self._rows, len(files)),
                texts,
                [first + number for number in range(len(planning.text_sets))],
                len(names),
                self._standing,
                self._found,
            )
            names = [*names, *more]
        return names

    def _settle_keys(self, stage: Sequence[str]) -> None:
        """Let rows go whose columns are the same as those of one before."""
        ways = [self._number(way) for way in stage]
        groups = [
            (equal_rows(keys) for keys in buckets(self._key_files(way), self._rows, self._standing))
            for way in stage
        ]
        if len(stage) == 1:
            settle_one(groups[0], ways[0], self._standing, self._found)
            return
        settling = Settling(ways, self._folder, self._standing)
        for place, some in enumerate(groups):
            for one in some:
                settling.add(place, one)
        settling.settle(self._found)

    def _settle_images(self, stage: Sequence[str]) -> None:
        """Let rows go whose images are near to better ones."""
        planning = self._planning
        pixels = np.zeros(max(1, self._rows), np.int64)
        if planning.looks_folder is not None:
            if self._images is None:
                self._images = image_files(
                    planning.looks_folder, self._parts, self._rows, self._folder
                )
            pixels = self._images.pixels
        ways = [(self._number(way), self._candidates(way)) for way in stage]
        settle_images(ways, pixels, self._standing, self._found)

    def _candidates(self, way: str) -> Candidates:
        planning, common = self._planning, (self._rows, self._standing)
        if way == "embedding":
            return near_by_vectors(self._vectors(), *common, planning.cosine, self._folder)
        assert self._images is not None
        if way == "exact":
            return equal_images(self._images.exact, *common)
        return near_images(self._images.phash, *common, planning.distance, self._folder)

    def _vectors(self) -> Vectors:
        place = dedup_folder(self._planning.folder) / "vectors"
        return read_vectors(place, self._parts, self._folder)

    def _key_files(self, way: str) -> list[KeyFile]:
        folder = dedup_folder(self._planning.folder) / "keys"
        return [
            KeyFile(key_file(folder, way, part.name), part.first)
            for part in self._parts
            if part.broken is None
        ]

    def _number(self, way: str) -> int:
        return self._first_way + self._planning.ways.index(way)
