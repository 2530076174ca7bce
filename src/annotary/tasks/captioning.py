"""Captions: sentences about images, which another model may judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from annotary.cards import PreprocessSpec
from annotary.errors import UsageError
from annotary.records import Caption
from annotary.tasks import Picture
from annotary.tasks.writing import Captioner, Decoding, Matcher, Written

_DRAWN_PENALTY = 1.1
"""Of what was written, where words are drawn, as in BLIP (`blip.py:BLIP_Decoder.generate`)."""


@dataclass(frozen=True, slots=True)
class CaptioningOptions:
    """How captions are written."""

    prompt: str = field(default="", metadata={"metavar": "TEXT"})
    """What each caption goes on from, such as "a picture of"; it is left out of the captions."""

    beams: int | None = None
    """How many beginnings are kept at each step (beam search); 3 without it, or as many as --captions; 1 always takes
    the likeliest word."""

    nucleus: float | None = None
    """Draw each word from the likeliest that together have this probability, such as 0.9, instead of searching:
    livelier, and less sure."""

    captions: int = 1
    """How many captions each image gets, at most: what comes twice is told once."""

    min_length: int = 5
    """Tokens that a caption has at least, with those of the prompt, its start and its end."""

    max_length: int = 20
    """Tokens that a caption has at most, with those of the prompt, its start and its end."""

    no_repeat: int = 3
    """No row of so many tokens is written twice; 0 lets it be."""

    repetition_penalty: float | None = None
    """Above 1, what was written becomes less likely to be written again; without it 1, and 1.1 with --nucleus."""

    seed: int = 0
    """Of what is drawn; the same image and seed give the same captions, whatever else is in the run."""

    min_match: float | None = None
    """Leave out captions that the --matcher finds less likely than this to belong to the image, 0..1."""

    def __post_init__(self) -> None:
        if self.captions < 1:
            raise ValueError(f"captions must be at least 1, but got {self.captions}")
        if self.beams is not None and self.beams < 1:
            raise ValueError(f"beams must be at least 1, but got {self.beams}")
        if self.nucleus is None and self.beams is not None and self.captions > self.beams:
            raise ValueError(
                f"captions must be at most beams, but got {self.captions} > {self.beams}"
            )
        if self.min_match is not None and not 0.0 <= self.min_match <= 1.0:
            raise ValueError(f"min_match must be in 0..1, but got {self.min_match}")
        self.decoding()

    def decoding(self) -> Decoding:
        """The same for a model."""
        penalty = self.repetition_penalty
        if penalty is None:
            penalty = 1.0 if self.nucleus is None else _DRAWN_PENALTY
        return Decoding(
            beams=max(3, self.captions) if self.beams is None else self.beams,
            nucleus=self.nucleus,
            min_length=self.min_length,
            max_length=self.max_length,
            repetition_penalty=penalty,
            no_repeat=self.no_repeat,
            count=self.captions,
            seed=self.seed,
        )


class Captioning:
    """The task of describing images.

    Args:
        captioner: Writes.
        decoding: How.
        prompt: What every caption begins with; it is left out of the captions.
        matcher: Judges what is written: every caption gets its `match`, and the best matching stands first.
        min_match: Leave out captions that match less than this, 0..1; an image may be left without any.

    Raises:
        UsageError: The prompt leaves no room, or captions are left out by what nobody judges.
    """

    part = "captions"

    def __init__(
        self,
        captioner: Captioner,
        decoding: Decoding | None = None,
        prompt: str = "",
        *,
        matcher: Matcher | None = None,
        min_match: float | None = None,
    ) -> None:
        self._captioner = captioner
        self._decoding = decoding or Decoding()
        self._prompt = prompt
        self._matcher = matcher
        self._min_match = min_match
        if min_match is not None:
            if matcher is None:
                raise UsageError("min_match needs a matcher, such as blip-itm-base-coco")
            if not 0.0 <= min_match <= 1.0:
                raise UsageError(f"min_match must be in 0..1, but got {min_match!r}")
        captioner.check_prompt(prompt, self._decoding)

    @property
    def source(self) -> str:
        """The ids of the cards of what writes and what judges."""
        models = (self._captioner, self._matcher)
        return "+".join(model.card.id for model in models if model is not None)

    @property
    def inputs(self) -> tuple[PreprocessSpec, ...]:
        """How images are prepared for what writes and for what judges."""
        models = (self._captioner, self._matcher)
        return tuple(model.card.preprocess for model in models if model is not None)

    @property
    def streams(self) -> int:
        """How many batches are worked on at once."""
        return self._captioner.streams

    @property
    def batch_size(self) -> int:
        """How many images are taken at once."""
        return self._captioner.batch_size

    def annotate(
        self, pictures: Sequence[Picture], *batches: npt.NDArray[np.generic]
    ) -> list[Mapping[str, Any]]:
        """The `captions` of every image."""
        prompts = [self._prompt] * len(pictures)
        written = self._captioner.write_captions(batches[0], prompts, self._decoding)
        if self._matcher is None:
            return [{"captions": tuple(_caption(one) for one in some)} for some in written]
        texts = [[self._whole(one.text) for one in some] for some in written]
        judged = self._matcher.match_texts(batches[1], texts)
        return [
            {
                "captions": self._best(
                    [_caption(*pair) for pair in zip(some, [m.score for m in marks], strict=True)]
                )
            }
            for some, marks in zip(written, judged, strict=True)
        ]

    def settings(self) -> dict[str, Any]:
        """What the captions depend on beside the models, in one way of writing."""
        return {
            "prompt": self._prompt,
            "decoding": asdict(self._decoding),
            "matcher": None if self._matcher is None else self._matcher.card.id,
            "min_match": self._min_match,
        }

    def _whole(self, text: str) -> str:
        """The sentence that is judged: with the prompt, without which it may say nothing."""
        return f"{self._prompt.strip()} {text}".strip()

    def _best(self, captions: Sequence[Caption]) -> tuple[Caption, ...]:
        least = 0.0 if self._min_match is None else self._min_match
        kept = [one for one in captions if one.match is not None and one.match >= least]
        return tuple(sorted(kept, key=lambda one: -(one.match or 0.0)))


def _caption(written: Written, match: float | None = None) -> Caption:
    """A caption with scores in six digits: more is noise of float32."""
    return Caption(
        written.text,
        rounded(written.score),
        None if match is None else rounded(match),
    )


def rounded(score: float) -> float:
    """A score in six digits, 0..1."""
    return min(1.0, max(0.0, float(f"{score:.6g}")))
