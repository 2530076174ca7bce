"""Whether texts belong to images, and searches that are ordered anew by a model that looks at both together."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annotary.errors import UsageError
from annotary.records import Item, Match
from annotary.tasks import Picture
from annotary.tasks.asking import AsksOneModel
from annotary.tasks.captioning import rounded
from annotary.tasks.own_texts import OwnTexts, read_rows
from annotary.tasks.writing import Matched, Matcher


class Matching(AsksOneModel[Matcher]):
    """The task of judging whether texts belong to images.

    Args:
        matcher: Judges.
        texts: What every image is compared with.
        of_image: What images are compared with beside that, each with its own.

    Attributes:
        truncated: Texts of which the model does not read the end.
        untold: Images so far that were compared with nothing.

    Raises:
        UsageError: There is no text, or one is empty.
    """

    part = "matches"

    def __init__(
        self,
        matcher: Matcher,
        texts: Sequence[str] = (),
        *,
        of_image: OwnTexts[str] | None = None,
    ) -> None:
        super().__init__(matcher)
        if not texts and of_image is None:
            raise UsageError("say at least one text, such as 'a photo of a cat'")
        every = (*texts, *(of_image.every if of_image is not None else ()))
        for text in every:
            if not isinstance(text, str) or not text.strip():
                raise UsageError(f"a text to match is empty: {text!r}")
        self._texts = tuple(texts)
        self._of_image = of_image
        self.truncated = tuple(text for text in every if not matcher.is_read_whole(text))
        self.untold = 0
        self._counting = threading.Lock()

    def annotate(
        self, pictures: Sequence[Picture], *batches: npt.NDArray[np.generic]
    ) -> list[Mapping[str, Any]]:
        """The `matches` of every image, in the order of the texts."""
        (batch,) = batches
        told = [self._told(picture.item) for picture in pictures]
        found = self._model.match_texts(batch, told)
        return [
            {"matches": tuple(_match(*pair) for pair in zip(texts, some, strict=True))}
            for texts, some in zip(told, found, strict=True)
        ]

    def settings(self) -> dict[str, Any]:
        """What the matches depend on beside the model, in one way of writing."""
        told = json.dumps(self._texts).encode()
        return {
            "texts": hashlib.sha256(told).hexdigest()[:16],
            "texts_of_image": self._of_image and self._of_image.digest,
        }

    def _told(self, item: Item) -> tuple[str, ...]:
        own = self._of_image.of(item) if self._of_image is not None else ()
        told = (*self._texts, *own)
        if not told:
            with self._counting:
                self.untold += 1
        return told


class SecondLook(AsksOneModel[Matcher]):
    """The task of looking again at what a search found: beside the record of each image, `match` is how a text fits it.

    Args:
        matcher: Judges.
        text: What was searched for.
    """

    part = ""

    def __init__(self, matcher: Matcher, text: str) -> None:
        super().__init__(matcher)
        self._text = text

    def annotate(
        self, pictures: Sequence[Picture], *batches: npt.NDArray[np.generic]
    ) -> list[Mapping[str, Any]]:
        """The `match` of every image."""
        (batch,) = batches
        found = self._model.match_texts(batch, [[self._text]] * len(pictures))
        return [{"match": match} for (match,) in found]


def _match(text: str, found: Matched) -> Match:
    """A match with numbers in six digits: more is noise of float32."""
    cosine = None if found.cosine is None else max(-1.0, min(1.0, float(f"{found.cosine:.6g}")))
    return Match(text, rounded(found.score), cosine)


def read_texts(path: Path) -> OwnTexts[str]:
    """The texts of a table with the columns image and text.

    Raises:
        UsageError: The table cannot be read, or a row lacks something; the message says which.
        MissingExtra: It is Parquet, and there is no pyarrow.
    """
    found: dict[str, list[str]] = {}
    for image, text in read_rows(path, ("image", "text")):
        found.setdefault(image, []).append(text)
    return OwnTexts(found, str(path.parent))


def rerank(
    cosines: npt.NDArray[np.float32], logits: npt.NDArray[np.float32]
) -> npt.NDArray[np.intp]:
    """The order of what a search found first, by a second look: as BLIP ranks images of a text, and texts of an image.

    The score is the logit of a match, of image and text seen together (ITM), with the cosine of both added (ITC):
    `evaluation` in `train_retrieval.py` of its code, which looks again at the best 256 by cosine of COCO, and at 128 of
    Flickr.

    Args:
        cosines: float32[k]; of the best k by cosine.
        logits: float32[k]; of the same.

    Returns:
        Places in what was given, the best first.
    """
    if cosines.shape != logits.shape:
        told = f"{list(cosines.shape)} and {list(logits.shape)}"
        raise ValueError(f"cosines and logits must be of the same number, but got {told}")
    return np.argsort(-(cosines.astype(np.float64) + logits), kind="stable")
