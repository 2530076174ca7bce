"""How many labels an image gets where nobody said so."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from annotary.models import Model

WORD_FORMATS = frozenset(
    ("caption", "hydrus", "imagefolder", "kohya", "kohya-jsonl", "txt", "webdataset", "xmp")
)
"""Formats that hold words without scores; imagefolder has a `text` and WebDataset a `.txt` of them."""


def labels_kept(
    form: str | None, top: int | None, model: Model, *, multi_label: bool
) -> int | None:
    """How many labels an image gets, at most; None for all.

    Of labels that compete, all but the best would be wrong where no score stands beside them.

    Args:
        form: The format that is written; None for none.
        top: What was said.
        model: The one that judges.
        multi_label: Whether each label is judged by itself.

    Raises:
        UsageError: The model does not know texts.
    """
    from annotary.tasks.encoding import dual_encoder

    compete = not multi_label and dual_encoder(model).similarity.kind == "softmax"
    return 1 if top is None and compete and form in WORD_FORMATS else top
