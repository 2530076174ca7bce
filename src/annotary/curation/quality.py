"""Drops pairs whose image or text is not good enough to train on, each with a reason.

Nothing is asked unless it is said, by an option or a preset. Texts are looked at first, then the picture, and the first
reason counts; only what is asked for is measured, so that filters of texts decode nothing.

Presets, with where their numbers come from:

    datacomp   the "basic filtering" of DataComp (Gadre et al., "DataComp: In search of the next generation of
               multimodal datasets", NeurIPS 2023, section 5, as its code has it): English, at least 3 words and 6
               characters, shorter edge at least 200 pixels, aspect ratio at most 3. There fastText tells the language.
    basic      the same without the language, and no blurred, dark or empty pictures; which photos that drops is
               measured in docs/curate-quality.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from annotary.curation._languages import MIN_SCORE, UNKNOWN, enough_letters, identifier
from annotary.curation._row_images import image_column
from annotary.curation.columns import TEXTS, is_list, is_text_or_list
from annotary.curation.looks import Look, LooksStep, list_failures, read_looks
from annotary.curation.steps import OnPart, StepOptions, StepResult, Tally, run_step
from annotary.curation.tables import (
    BrokenPart,
    Part,
    PartWriter,
    Rows,
    find_parts,
    no_column,
    sound_part,
)
from annotary.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

DROPPED = "dropped"
"""The column that says why a row would have been dropped."""

NO_TEXT, EMPTY_TEXT = "no text", "empty text"
FEW_WORDS, MANY_WORDS = "too few words", "too many words"
FEW_CHARACTERS, MANY_CHARACTERS = "too few characters", "too many characters"
OTHER_LANGUAGE, UNKNOWN_LANGUAGE = "other language", "unknown language"
UNREADABLE, SMALL, ELONGATED = "unreadable image", "too small", "too elongated"
DARK, BRIGHT, FLAT, BLURRED = "too dark", "too bright", "too little contrast", "too blurred"


@dataclass(frozen=True, slots=True)
class QualityOptions:
    """What pairs must be like."""

    preset: Literal["none", "basic", "datacomp"] = "none"
    """Limits that go together: basic (size, aspect, length of texts, blur, darkness, contrast) or datacomp (its basic
    filtering, English only). Single options stand above it; 0 takes a limit away."""

    min_size: int | None = field(default=None, metadata={"metavar": "PX"})
    """Pixels that the shorter edge of the image must have."""

    max_aspect: float | None = field(default=None, metadata={"metavar": "RATIO"})
    """How many times longer than the shorter edge the longer one may be."""

    min_sharpness: float | None = None
    """Least sharpness (variance of the Laplacian at 256 pixels); photos have 100 to 20,000, blurred ones less."""

    min_brightness: float | None = None
    """Least mean brightness, 0 to 255."""

    max_brightness: float | None = None
    """Greatest mean brightness, 0 to 255."""

    min_contrast: float | None = None
    """Least contrast (standard deviation of the brightness), 0 to 127."""

    need_image: bool = False
    """Drop rows whose image cannot be read, also when nothing else is asked of it."""

    min_words: int | None = None
    """Words that the text must have: what stands between spaces."""

    max_words: int | None = None
    """Words that the text may have."""

    min_characters: int | None = None
    """Characters that the text must have, without spaces around it."""

    max_characters: int | None = None
    """Characters that the text may have."""

    languages: str | None = field(default=None, metadata={"metavar": "CODE,CODE"})
    """Languages that the text may be in, such as en,de; any takes the limit away."""

    min_language_score: float = MIN_SCORE
    """How probable a language must be, 0 to 1; otherwise it is unknown, as it is for texts of fewer than 20 letters."""

    unknown_language: Literal["keep", "drop"] = "keep"
    """What happens to texts whose language is unknown."""

    need_text: bool = False
    """Drop rows without text, also when nothing else is asked of it."""

    text_column: str | None = field(default=None, metadata={"metavar": "NAME"})
    """Column with the texts, or with lists of texts; otherwise the first with a usual name is taken, such as caption or
    text."""

    keep_dropped: bool = False
    """Keep all rows, with the reason in a column `dropped` that is empty where there is none."""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, but got {self.preset!r}")
        if self.unknown_language not in ("keep", "drop"):
            told = repr(self.unknown_language)
            raise ValueError(f"unknown_language must be keep or drop, but got {told}")
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} must not be negative, but got {value}")
        if not 0.0 <= self.min_language_score <= 1.0:
            raise ValueError(f"min_language_score must be 0..1, but got {self.min_language_score}")
        if self.max_aspect is not None and 0 < self.max_aspect < 1:
            raise ValueError(f"max_aspect must be at least 1, but got {self.max_aspect}")
        for name, most_possible in _SCALES.items():
            value = getattr(self, name)
            if value is not None and value > most_possible:
                raise ValueError(f"{name} must be 0 to {most_possible}, but got {value:g}")
        for least, most in _RANGES:
            low, high = getattr(self, least) or 0, getattr(self, most) or 0
            if low > high > 0:
                other = most.replace("_", " ")
                raise ValueError(f"{least} must not be above the {other}, but got {low} and {high}")

    def limits(self) -> Limits:
        """What is asked, with the numbers of the preset.

        Raises:
            MissingExtra: Languages are asked for, and what tells them is not installed.
            UsageError: A language is not known, or two limits leave nothing.
        """
        preset = PRESETS[self.preset]
        told = {name: getattr(self, name) for name in _NUMBERS}
        chosen = {name: preset.get(name) if told[name] is None else told[name] for name in _NUMBERS}
        for least, most in _RANGES:
            if (chosen[least] or 0) > (chosen[most] or 0) > 0:
                low, high = (f"--{name.replace('_', '-')}" for name in (least, most))
                raise UsageError(
                    f"{low} {chosen[least]} and {high} {chosen[most]} of the preset leave nothing"
                )
        languages = preset.get("languages") if self.languages is None else self.languages
        is_any = languages is None or languages.strip().lower() in ("", "any")
        if is_any and (self.unknown_language == "drop" or self.min_language_score != MIN_SCORE):
            raise UsageError("--unknown-language and --min-language-score: only with --languages")
        return Limits(
            **{name: value or None for name, value in chosen.items()},
            languages=None if is_any else tuple(sorted(identifier().codes(str(languages)))),
            min_language_score=self.min_language_score,
            keeps_unknown=self.unknown_language == "keep",
            needs_image=self.need_image,
            needs_text=self.need_text,
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What pairs are held to: `QualityOptions` with the numbers of the preset. None asks nothing."""

    min_size: int | None = None
    max_aspect: float | None = None
    min_sharpness: float | None = None
    min_brightness: float | None = None
    max_brightness: float | None = None
    min_contrast: float | None = None
    min_words: int | None = None
    max_words: int | None = None
    min_characters: int | None = None
    max_characters: int | None = None
    languages: tuple[str, ...] | None = None
    min_language_score: float = MIN_SCORE
    keeps_unknown: bool = True
    needs_image: bool = False
    needs_text: bool = False

    @property
    def ask_images(self) -> bool:
        """Whether anything is asked of images."""
        return self.needs_image or any(getattr(self, name) is not None for name in _OF_IMAGES)

    @property
    def ask_texts(self) -> bool:
        """Whether anything is asked of texts."""
        return self.needs_text or any(getattr(self, name) is not None for name in _OF_TEXTS)


_OF_IMAGES = (
    "min_size", "max_aspect", "min_sharpness", "min_brightness", "max_brightness", "min_contrast",
)  # fmt: skip
_OF_TEXTS = ("min_words", "max_words", "min_characters", "max_characters", "languages")
_NUMBERS = (*_OF_IMAGES, *_OF_TEXTS[:-1])
_SCALES = {
    "min_brightness": 255,
    "max_brightness": 255,
    "min_contrast": 127.5,
}  # what `Look` can have
_RANGES = (
    ("min_brightness", "max_brightness"),
    ("min_words", "max_words"),
    ("min_characters", "max_characters"),
)

_DATACOMP: dict[str, Any] = {
    "min_size": 200, "max_aspect": 3.0, "min_words": 3, "min_characters": 6,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "basic": {**_DATACOMP, "min_sharpness": 100.0, "min_brightness": 16.0, "min_contrast": 8.0},
    "datacomp": {**_DATACOMP, "languages": "en"},
}
"""Names of limits that go together, and their numbers."""


def text_reason(text: str | None, limits: Limits) -> tuple[str | None, str | None]:
    """Why a text is not good enough, or None; and its language, where that was asked for.

    Args:
        text: It; None where there is none.
        limits: What it is held to.
    """
    return text_reasons([text], limits)[0]


def text_reasons(
    texts: Sequence[str | None], limits: Limits
) -> list[tuple[str | None, str | None]]:
    """The same for many texts: languages of many are told several times as fast."""
    found: list[tuple[str | None, str | None]] = [(_length_reason(t, limits), None) for t in texts]
    if limits.languages is None:
        return found
    asked = [place for place, (why, _) in enumerate(found) if why is None]
    long = [place for place in asked if enough_letters(texts[place] or "")]
    told = dict(zip(long, identifier().of_all([texts[place] or "" for place in long]), strict=True))
    for place in asked:
        language, score = told.get(place, (UNKNOWN, 0.0))
        if language == UNKNOWN or score < limits.min_language_score:
            found[place] = (None if limits.keeps_unknown else UNKNOWN_LANGUAGE), UNKNOWN
        else:
            found[place] = (None if language in limits.languages else OTHER_LANGUAGE), language
    return found


def _length_reason(text: str | None, limits: Limits) -> str | None:
    """Why the length of a text is not right, or None."""
    if text is None:
        return NO_TEXT
    text = text.strip()
    if not text:
        return EMPTY_TEXT
    if limits.min_characters is not None and len(text) < limits.min_characters:
        return FEW_CHARACTERS
    if limits.max_characters is not None and len(text) > limits.max_characters:
        return MANY_CHARACTERS
    if limits.min_words is not None or limits.max_words is not None:
        words = len(text.split())
        if limits.min_words is not None and words < limits.min_words:
            return FEW_WORDS
        if limits.max_words is not None and words > limits.max_words:
            return MANY_WORDS
    return None


def look_reason(look: Look, limits: Limits) -> str | None:
    """Why a picture is not good enough, or None.

    Args:
        look: What was measured of it.
        limits: What it is held to.
    """
    if look.width is None or look.height is None:
        return UNREADABLE
    short, long = sorted((look.width, look.height))
    if limits.min_size is not None and short < limits.min_size:
        return SMALL
    if limits.max_aspect is not None and long > limits.max_aspect * short:
        return ELONGATED
    tests = (
        (DARK, look.brightness, limits.min_brightness, True),
        (BRIGHT, look.brightness, limits.max_brightness, False),
        (FLAT, look.contrast, limits.min_contrast, True),
        (BLURRED, look.sharpness, limits.min_sharpness, True),
    )
    for why, value, limit, is_least in tests:
        if (
            limit is not None
            and value is not None
            and (value < limit if is_least else value > limit)
        ):
            return why
    return None


@dataclass(slots=True)
class QualityStep:
    """The step that drops rows which are not good enough.

    Attributes:
        limits: What rows are held to.
        looks: How pictures are measured.
        measured: The folder of what `looks` has measured before; None measures now.
        text_column: The column with texts, or lists of texts; the first with a usual name when nothing is said.
        keep_dropped: Whether rows that would be dropped stay, with the reason in a column `dropped`.
        name: Of the step.
    """

    limits: Limits
    looks: LooksStep = field(default_factory=LooksStep)
    measured: Path | None = None
    text_column: str | None = None
    keep_dropped: bool = False
    name: str = "quality"

    def settings(self) -> dict[str, Any]:
        """What the output depends on beside the tables."""
        told = {name: value for name, value in asdict(self.limits).items() if value is not None}
        return {
            **told,
            "text_column": self.text_column,
            "keep_dropped": self.keep_dropped,
            "looks": self.looks.settings() if self.limits.ask_images else None,
        }

    def run(self, part: Part, target: Path) -> Tally:
        """Write the rows of a part that are good enough.

        Raises:
            BrokenPart: It cannot be read, or its pictures are not measured.
            UsageError: It has no column of texts, or of images, and something is asked of them.
        """
        tally = Tally()
        rows = Rows(part)
        schema = out = rows.schema
        if self.keep_dropped:
            out = _with_dropped(schema, part.file)
        with ExitStack() as stack:
            filters = _Filters(self, part, schema, stack)
            writer = stack.enter_context(PartWriter(target, out))
            for batch in rows.batches():
                whys = filters.reasons(batch, tally)
                tally.rows_in += batch.num_rows
                _count(tally, whys, is_marked=self.keep_dropped)
                writer.write(self._chosen(batch, whys, out))
        tally.rows_out = writer.rows
        tally.skip(rows.skipped)
        return tally

    def _chosen(
        self, batch: pa.RecordBatch, whys: list[str | None], out: pa.Schema
    ) -> pa.RecordBatch:
        """The rows that stay."""
        import pyarrow as pa

        if self.keep_dropped:
            columns = [*batch.columns, pa.array(whys, pa.string())]
            return pa.RecordBatch.from_arrays(columns, schema=out)
        return batch.filter(pa.array([why is None for why in whys], pa.bool_()))


class _Filters:
    """What is asked of the rows of a part.

    Args:
        step: The step.
        part: The part.
        schema: Its columns.
        stack: Closes what is opened.

    Raises:
        UsageError: It has no column of texts, or of images, and something is asked of them.
    """

    def __init__(self, step: QualityStep, part: Part, schema: pa.Schema, stack: ExitStack) -> None:
        self._limits = step.limits
        self._texts = self._images = ""
        if step.limits.ask_texts:
            self._texts = _text_column(part, schema, step.text_column)
        self._stored: _Stored | None = None
        if step.limits.ask_images and step.measured is not None:
            self._stored = _Stored(step.measured / f"{part.name}.parquet")
        elif step.limits.ask_images:
            self._images = image_column(part, schema, step.looks.source.image_column)
            self._measuring = stack.enter_context(step.looks.measuring(part))

    def reasons(self, batch: pa.RecordBatch, tally: Tally) -> list[str | None]:
        """Why each row is dropped; None for those that stay."""
        whys: list[str | None] = [None] * batch.num_rows
        if self._texts:
            rows = list(_texts(batch, self._texts))
            found = iter(text_reasons([text for texts in rows for text in texts], self._limits))
            for place, texts in enumerate(rows):
                told = [next(found) for _ in texts]
                # A row with several texts is good enough when one of them is.
                whys[place] = None if any(why is None for why, _ in told) else told[0][0]
                for name in (f"language {language}" for _, language in told if language):
                    tally.beside[name] = tally.beside.get(name, 0) + 1
        if self._stored is not None:
            looks = self._stored.take(batch.num_rows)
        elif self._images:
            is_left: npt.NDArray[np.bool_] = np.array([why is None for why in whys], np.bool_)
            column = batch.column(batch.schema.get_field_index(self._images))
            measured = self._measuring(column, is_left)
            list_failures(tally, measured)
            looks = [look for _, look in measured]
        else:
            return whys
        return [
            look_reason(look, self._limits) if why is None else why
            for why, look in zip(whys, looks, strict=True)
        ]


class _Stored:
    """What was measured before of the pictures of a part, in the order of its rows.

    Args:
        file: Where.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._coming = self._looks()

    def take(self, count: int) -> list[Look]:
        """The looks of the next rows.

        Raises:
            BrokenPart: There are not so many.
        """
        looks = [look for _, look in zip(range(count), self._coming, strict=False)]
        if len(looks) < count:
            raise BrokenPart(f"{self._file} was measured of another table: it has too few rows")
        return looks

    def _looks(self) -> Iterator[Look]:
        names = ("width", "height", "sharpness", "brightness", "contrast")
        for batch in read_looks(self._file):
            for values in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
                yield Look(**dict(zip(names, values, strict=True)))


def filter_quality(
    tables: Sequence[str | os.PathLike[str]],
    folder: Path,
    options: QualityOptions,
    steps: StepOptions | None = None,
    *,
    looks: LooksStep | None = None,
    looks_folder: Path | None = None,
    on_part: OnPart | None = None,
) -> StepResult:
    """Write the pairs of tables that are good enough.

    Args:
        tables: Tables, folders of them, names with braces.
        folder: Where it is written.
        options: What pairs must be like.
        steps: How the work is spread.
        looks: How images are read and measured.
        looks_folder: A folder for what is measured of images. What it holds is not measured again, so that other limits
            can be tried, and copies be found, without reading images anew.
        on_part: Is told of each part as it is done.

    Raises:
        UsageError: Nothing is asked, there is no table, or one has no such columns.
        MissingExtra: pyarrow, or what tells languages, is not installed.
    """
    looks, steps = looks or LooksStep(), steps or StepOptions()
    parts = find_parts(tables)
    check_quality(parts, options, looks)
    limits = options.limits()
    if looks_folder is not None and limits.ask_images:
        run_step(looks, parts, looks_folder, replace(steps, on_existing="continue"))
    step = QualityStep(limits, looks, looks_folder, options.text_column, options.keep_dropped)
    return run_step(step, parts, folder, steps, on_part=on_part)


def check_quality(parts: Sequence[Part], options: QualityOptions, looks: LooksStep) -> None:
    """See that something is asked, and that the first part that can be read has the columns for it.

    Raises:
        UsageError: It is not so.
        MissingExtra: What tells languages is not installed.
    """
    limits = options.limits()
    if not limits.ask_images and not limits.ask_texts:
        raise UsageError("nothing is asked of the pairs; choose limits, or --preset basic")
    part = sound_part(parts)
    try:
        schema = Rows(part).schema
    except BrokenPart:  # all are, and the run lists them
        return
    if options.keep_dropped:
        _with_dropped(schema, part.file)
    if limits.ask_texts:
        _text_column(part, schema, options.text_column)
    if limits.ask_images:
        image_column(part, schema, looks.source.image_column)


def _text_column(part: Part, schema: pa.Schema, named: str | None) -> str:
    """The column of a part that holds the texts.

    Raises:
        UsageError: There is none; the message lists the columns.
    """
    kinds = {one.name: one.type for one in schema}
    if named is None:
        for name in TEXTS:
            if name in kinds and is_text_or_list(kinds[name]):
                return name
        listed = ", ".join(map(repr, schema.names[:20])) or "none"
        told = "has a usual name for texts; choose one with --text-column"
        raise UsageError(f"none of the columns of {part.file} {told}: {listed}")
    if named not in kinds:
        raise UsageError(no_column(part.file, named, schema.names, "--text-column"))
    if not is_text_or_list(kinds[named]):
        raise UsageError(f"the column {named!r} of {part.file} holds {kinds[named]}, not text")
    return named


def _texts(batch: pa.RecordBatch, column: str) -> Iterator[list[str | None]]:
    """The texts of every row: one, or those of a list, of which each may be a kind and a text (MetaCLIP).

    Bytes that are not UTF-8 become replacement characters: to judge them is for others.
    """
    import pyarrow as pa

    values = batch.column(batch.schema.get_field_index(column))
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind, depth = values.type, 0
    while is_list(kind):
        kind, depth = kind.value_type, depth + 1
    as_bytes = pa.large_binary()
    for _ in range(depth):
        as_bytes = pa.large_list(as_bytes)
    for cell in values.cast(as_bytes).to_pylist():
        if depth == 0 or not cell:
            yield [_decoded(None if depth else cell)]
        else:
            yield [_decoded(one[-1] if isinstance(one, list) and one else one) for one in cell]


def _decoded(data: Any) -> str | None:
    return data.decode("utf-8", "replace") if isinstance(data, bytes) else None


def _with_dropped(schema: pa.Schema, file: str) -> pa.Schema:
    """The columns with that of reasons.

    Raises:
        UsageError: There is one with its name.
    """
    import pyarrow as pa

    if DROPPED in schema.names:
        raise UsageError(
            f"{file} has a column {DROPPED!r} already, so --keep-dropped cannot add it"
        )
    return schema.append(pa.field(DROPPED, pa.string()))


def _count(tally: Tally, whys: Sequence[str | None], *, is_marked: bool) -> None:
    """Count the reasons: why rows were dropped, or what rows that stay were marked with."""
    for why in filter(None, whys):
        if is_marked:
            tally.beside[f"marked {why}"] = tally.beside.get(f"marked {why}", 0) + 1
        else:
            tally.drop(why)
