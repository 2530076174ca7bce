"""How a model is asked to write, and what it wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Decoding:
    """How texts are written, token by token."""

    beams: int = 3
    """How many beginnings are kept at each step (beam search); 1 always takes the likeliest word."""

    nucleus: float | None = None
    """Draw each word from the likeliest that together have this probability, 0..1, instead of searching: livelier,
    and less sure."""

    min_length: int = 5
    """Tokens that a text has at least, with those of the prompt, its start and its end, as BLIP counts."""

    max_length: int = 20
    """Tokens that a text has at most, with those of the prompt, its start and its end, as BLIP counts."""

    repetition_penalty: float = 1.0
    """Above 1, what was written becomes less likely to be written again."""

    no_repeat: int = 3
    """No row of so many tokens is written twice; 0 lets it be."""

    count: int = 1
    """How many texts each image gets; those of a beam search are its best, those of drawing are drawn anew."""

    seed: int = 0
    """Of what is drawn; the same image and seed give the same text, whatever else is in the run."""

    def __post_init__(self) -> None:
        for name, least in (("beams", 1), ("min_length", 1), ("count", 1), ("no_repeat", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, but got {getattr(self, name)}")
        if self.max_length < self.min_length:
            told = f"{self.max_length} < {self.min_length}"
            raise ValueError(f"max_length must be at least min_length, but got {told}")
        if self.nucleus is not None and not 0.0 < self.nucleus <= 1.0:
            raise ValueError(f"nucleus must be in 0..1, but got {self.nucleus}")
        if not self.repetition_penalty > 0.0:
            raise ValueError(
                f"repetition_penalty must be above 0, but got {self.repetition_penalty}"
            )
        if self.nucleus is None and self.count > self.beams:
            raise ValueError(f"count must be at most beams, but got {self.count} > {self.beams}")


class Written(NamedTuple):
    """A text that a model wrote.

    Attributes:
        text: Without the prompt.
        score: How sure the model is of it, 0..1: the exponential of the mean log-probability of the tokens that it
            added, its end among them, before any penalty.
    """

    text: str
    score: float


class Matched(NamedTuple):
    """Whether a text belongs to an image.

    Attributes:
        score: Probability that it does, 0..1.
        cosine: Of the vectors of image and text, -1..1; None where the model has none.
        logit: What speaks for it, of any size; None where the model has none. Searches that are ordered anew add it to
            the cosine.
    """

    score: float
    cosine: float | None
    logit: float | None = None
