"""Tells from the pixels and the source how an image was made: the style tags."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from recipes.starter import features
from recipes.starter.tables import Example, Vocabulary

Floats = npt.NDArray[np.float32]

_SIDE = 128
_SYMBOL_FOLDERS = {
    "signs_and_symbols",
    "arrows",
    "buttons",
    "symbols",
    "roadsigns",
    "flowchart",
    "stars",
}
_COLOURLESS = 14
"""Spread of the channels (0..255) below which a pixel has no colour."""


def add_styles(
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    targets: Floats,
    known: npt.NDArray[np.bool_],
) -> None:
    """Write the style columns of targets and known, in place."""
    number = {name: index for index, name in enumerate(vocabulary.names)}
    for row, example in enumerate(examples):
        for name, value in styles_of(example).items():
            column = number.get(name)
            if column is not None:
                targets[row, column] = float(value)
                known[row, column] = True


def styles_of(example: Example) -> dict[str, bool]:
    """Style name to whether the image has it; names that cannot be told are absent."""
    facts = look(example)
    is_drawn = example.source in ("emoji", "clipart")
    styles = {
        "photo": not is_drawn,
        "drawing": is_drawn,
        "clip art": example.source == "clipart",
        "emoji": example.source == "emoji",
        "cartoon": bool(example.words & {"cartoon", "comic"}),
        "icon": "appicon" in example.words or bool(example.words & {"icon", "icons"}),
        "symbol": is_drawn and _is_symbol(example),
        "line art": is_drawn and facts["is_line_art"],
        "sepia": example.treatment == "sepia",
        "transparent background": is_drawn and facts["has_white_border"],
    }
    if is_drawn and not styles["cartoon"]:
        del styles["cartoon"]
    if not is_drawn and facts["has_white_border"]:
        del styles["transparent background"]
    if is_drawn:
        styles["silhouette"] = facts["is_silhouette"]
    if example.treatment != "sepia":
        styles["monochrome"] = facts["is_colourless"]
    return styles


def look(example: Example) -> dict[str, bool]:
    """Decide a few facts on the pixels of an image at 128 px."""
    treated = features.treat(features.load(example.path), example.treatment)
    small = Image.fromarray(treated).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    values = np.asarray(small).astype(np.int16)
    spread = values.max(2) - values.min(2)
    grey = values.mean(2)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    dark = grey < 96
    eroded = np.asarray(
        Image.fromarray(dark.astype(np.uint8) * 255).filter(ImageFilter.MinFilter(5))
    )
    share_dark, share_white = float(dark.mean()), float((grey > 235).mean())
    is_colourless = float((spread > _COLOURLESS).mean()) < 0.01
    return {
        "is_colourless": is_colourless,
        "has_white_border": float((border > 245).mean()) > 0.97,
        "is_line_art": is_colourless
        and 0.02 < share_dark < 0.35
        and share_white > 0.5
        and float((eroded > 0).mean()) < 0.1 * share_dark,
        "is_silhouette": is_colourless
        and share_dark > 0.08
        and share_dark + share_white > 0.93
        and float((eroded > 0).mean()) > 0.4 * share_dark,
    }


def _is_symbol(example: Example) -> bool:
    if example.source == "emoji":
        return "symbols" in example.words
    return bool(_SYMBOL_FOLDERS & set(example.path.parts))
