"""What CapFilt is told, and which models, thresholds and shares follow from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from annotary.curation._capfilt_judging import (
    Asked,
    CapFilt,
    Loaded,
    ScoreKind,
    filter_of,
    is_same_model,
    loaded,
    writer_of,
)
from annotary.curation._capfilt_store import Rule
from annotary.errors import UsageError
from annotary.models import Model
from annotary.runtime import RuntimeOptions
from annotary.tasks.captioning import CaptioningOptions

THRESHOLD = 0.5
"""Probabilities below it are dropped, as the paper's filter does (BLIP, section 3.3; salesforce/BLIP#46)."""


@dataclass(frozen=True, slots=True)
class CapFiltOptions:
    """What is written, and what is kept."""

    text_column: tuple[str, ...] = field(default=(), metadata={"metavar": "NAME"})
    """Column of the tables that holds web texts; may be given several times. Otherwise the first with a usual name,
    such as caption, text, alt or title."""

    threshold: float | None = None
    """Drop texts with a lower score. Without it 0.5 for probabilities (BLIP, SigLIP); a cosine (CLIP, the starter) has
    no usual one."""

    keep_share: float | None = None
    """Keep this share of all texts that have a score, the best, in place of --threshold; above 0 to 1."""

    kept_only: bool = False
    """Write only the texts that are kept."""

    allow_same_model: bool = False
    """Let the captioner and the filter be one model, which likes what it wrote itself."""

    prompt: str = field(default="", metadata={"metavar": "TEXT"})
    """What each synthetic caption goes on from, such as "a picture of"; it is left out of the captions."""

    nucleus: float = 0.9
    """Draw each word from the likeliest that together have this probability."""

    beams: int | None = None
    """Search with so many beginnings in place of drawing: captions are safer, and teach less."""

    min_length: int = 5
    """Tokens that a caption has at least, with those of the prompt, its start and its end."""

    max_length: int = 20
    """Tokens that a caption has at most, with those of the prompt, its start and its end."""

    no_repeat: int = 3
    """No row of so many tokens is written twice; 0 lets it be."""

    repetition_penalty: float | None = None
    """Above 1, what was written becomes less likely to be written again; without it 1.1, and 1 with --beams."""

    seed: int = 0
    """Of what is drawn, and of the images in a report."""

    on_existing: Literal["skip", "overwrite"] = "skip"
    """What becomes of results of an earlier run: skip goes on with them, overwrite throws them away."""

    retry_failed: bool = False
    """Try the images again that failed before."""

    def __post_init__(self) -> None:
        if self.keep_share is not None and not 0.0 < self.keep_share <= 1.0:
            raise ValueError(f"keep_share must be above 0 to 1, but got {self.keep_share}")
        if self.threshold is not None and not -1.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold must be in -1..1, but got {self.threshold}")
        if self.threshold is not None and self.keep_share is not None:
            raise ValueError("threshold and keep_share are two ways to decide; choose one")
        self.captioning()

    def captioning(self) -> CaptioningOptions:
        """How captions are written."""
        return CaptioningOptions(
            prompt=self.prompt,
            beams=self.beams,
            nucleus=self.nucleus if self.beams is None else None,
            min_length=self.min_length,
            max_length=self.max_length,
            no_repeat=self.no_repeat,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True)
class Models:
    """What writes and what filters, and what the filter drops."""

    writer: Loaded | None
    judge: Loaded | None
    rule: Rule
    kind: ScoreKind | None
    is_same: bool

    @classmethod
    def of(
        cls,
        captioner: str | Model | None,
        matcher: str | Model | None,
        options: CapFiltOptions,
        runtime_options: RuntimeOptions,
    ) -> Models:
        """The models by name.

        Raises:
            UsageError: Both are one, one lacks its ability, or nobody says what is dropped.
        """
        writer, judge = loaded(captioner, runtime_options), loaded(matcher, runtime_options)
        is_same = writer is not None and judge is not None and is_same_model(writer, judge)
        if is_same and not options.allow_same_model:
            assert writer is not None
            raise UsageError(_told_same(writer.model.card.id))
        writer_of(writer)
        filter_ = filter_of(judge)
        kind = None if filter_ is None else filter_.kind
        return cls(writer, judge, _rule(options, kind, judge), kind, is_same)

    def task(self, options: CapFiltOptions, asked: Asked) -> CapFilt:
        """What is asked of each image."""
        captioning = options.captioning()
        return CapFilt(
            *(writer_of(self.writer), captioning.decoding(), captioning.prompt),
            *(filter_of(self.judge), asked),
        )

    def weights(self) -> dict[str, Any]:
        """What changes with the files of the models."""
        return {
            "captioner": self._id(self.writer),
            "matcher": self._id(self.judge),
            "captioner_weights": None if self.writer is None else self.writer.weights,
            "matcher_weights": None if self.judge is None else self.judge.weights,
        }

    @property
    def told(self) -> dict[str, Any]:
        """What a result says of them."""
        return {
            **self.weights(),
            "same_model": self.is_same,
            "score": self.kind,
            "threshold": self.rule.threshold,
            "keep_share": self.rule.share,
        }

    @staticmethod
    def _id(model: Loaded | None) -> str | None:
        return None if model is None else model.model.card.id


def check_told(
    captioner: str | Model | None, matcher: str | Model | None, options: CapFiltOptions
) -> None:
    """What can be known to be wrong before a model is loaded.

    Raises:
        UsageError: There is no model, both have one name, or something is said of a filter that there is not.
    """
    if captioner is None and matcher is None:
        raise UsageError("with neither a captioner nor a matcher there is nothing to do")
    if captioner is not None and captioner == matcher and not options.allow_same_model:
        raise UsageError(_told_same(captioner if isinstance(captioner, str) else captioner.card.id))
    if matcher is None and (options.threshold is not None or options.keep_share is not None):
        raise UsageError("--threshold and --keep-share are for what a --matcher says")


def _told_same(name: str) -> str:
    return (
        f"the captioner and the matcher are both {name}: a filter that wrote the captions itself keeps nearly all of"
        " them; name two models, or say --allow-same-model"
    )


def _rule(options: CapFiltOptions, kind: ScoreKind | None, judge: Loaded | None) -> Rule:
    """What is dropped.

    Raises:
        UsageError: Nobody says it, or it is out of range.
    """
    if kind is None or judge is None:
        return Rule()
    if options.keep_share is not None:
        return Rule(share=options.keep_share)
    if options.threshold is not None:
        if kind != "cosine" and options.threshold < 0.0:
            raise UsageError(f"--threshold must be in 0..1, but got {options.threshold}")
        return Rule(threshold=options.threshold)
    if kind == "cosine":
        raise UsageError(
            f"{judge.model.card.id} scores by a cosine, of which no threshold is usual; say --keep-share or --threshold"
        )
    return Rule(threshold=THRESHOLD)
