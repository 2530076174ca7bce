"""The operations of TrivialAugment and RandAugment on a Pillow image, and how strong they are at each bin.

Papers: TrivialAugment (Müller and Hutter, ICCV 2021), RandAugment (Cubuk et al., 2019). What an operation does at a
magnitude is that of torchvision's `autoaugment.py` (BSD), with which published taggers were trained: shears are about
the upper left corner, rotations about the middle, a translation is cut to whole pixels, and colours are mixed by
Pillow's `ImageEnhance`. What lies outside the picture is white here, and what lies between pixels is bilinear.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

BINS = 31
"""Steps between no magnitude and the greatest, of which one is drawn."""

WHITE = (255, 255, 255)

_TRANSLATION = 32.0  # pixels, of TrivialAugment's wide space
_TRANSLATION_SHARE = 150.0 / 331.0  # of the picture's side, of RandAugment's space

Operation = Callable[[Image.Image, float], Image.Image]


class Strengths(NamedTuple):
    """How strong an operation can be.

    Attributes:
        magnitudes: One for each bin; a single one for operations that have no strength.
        is_signed: Whether the sign of the magnitude is drawn, too.
    """

    magnitudes: tuple[float, ...]
    is_signed: bool


def _identity(image: Image.Image, _: float) -> Image.Image:
    return image


def _shear_x(image: Image.Image, magnitude: float) -> Image.Image:
    return _affine(image, (1.0, magnitude, 0.0, 0.0, 1.0, 0.0))


def _shear_y(image: Image.Image, magnitude: float) -> Image.Image:
    return _affine(image, (1.0, 0.0, 0.0, magnitude, 1.0, 0.0))


def _translate_x(image: Image.Image, magnitude: float) -> Image.Image:
    return _affine(image, (1.0, 0.0, -float(int(magnitude)), 0.0, 1.0, 0.0))


def _translate_y(image: Image.Image, magnitude: float) -> Image.Image:
    return _affine(image, (1.0, 0.0, 0.0, 0.0, 1.0, -float(int(magnitude))))


def _affine(
    image: Image.Image, matrix: tuple[float, float, float, float, float, float]
) -> Image.Image:
    """Each pixel of the result is taken from where the matrix leads, in pixels of the image."""
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BILINEAR,
        fillcolor=WHITE,
    )


def _rotate(image: Image.Image, magnitude: float) -> Image.Image:
    return image.rotate(magnitude, Image.Resampling.BILINEAR, fillcolor=WHITE)


def _brightness(image: Image.Image, magnitude: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.0 + magnitude)


def _colour(image: Image.Image, magnitude: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(1.0 + magnitude)


def _contrast(image: Image.Image, magnitude: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(1.0 + magnitude)


def _sharpness(image: Image.Image, magnitude: float) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(1.0 + magnitude)


def _posterize(image: Image.Image, magnitude: float) -> Image.Image:
    return ImageOps.posterize(image, int(magnitude))


def _solarize(image: Image.Image, magnitude: float) -> Image.Image:
    # At 255, the weakest, full white is turned into black all the same, as in torchvision.
    return image.point([value if value < magnitude else 255 - value for value in range(256)] * 3)


def _auto_contrast(image: Image.Image, _: float) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, _: float) -> Image.Image:
    return ImageOps.equalize(image)


OPERATIONS: dict[str, Operation] = {
    "Identity": _identity,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "Rotate": _rotate,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Color": _colour,
    "Contrast": _contrast,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
}
"""Name to what it does at a magnitude; the names are those of the papers."""


@lru_cache(maxsize=4)
def trivial_space(level: int) -> dict[str, Strengths]:
    """What JoyTag's TrivialAugment draws from.

    Args:
        level: 1 has geometry, brightness and sharpness (8 operations), 2 all 14.
    """
    space = {
        "Identity": _none(),
        "ShearX": _even(0.99),
        "ShearY": _even(0.99),
        "Rotate": _even(135.0),
        "Brightness": _even(0.99),
        "Sharpness": _even(0.99),
        "TranslateX": _even(_TRANSLATION),
        "TranslateY": _even(_TRANSLATION),
    }
    if level >= 2:
        space |= {
            "Color": _even(0.99),
            "Contrast": _even(0.99),
            "Posterize": _bits(6),
            "Solarize": _thresholds(),
            "AutoContrast": _none(),
            "Equalize": _none(),
        }
    return space


@lru_cache(maxsize=16)
def rand_space(height: int, width: int) -> dict[str, Strengths]:
    """What RandAugment draws from, for pictures of a size in pixels."""
    return {
        "Identity": _none(),
        "ShearX": _even(0.3),
        "ShearY": _even(0.3),
        "TranslateX": _even(_TRANSLATION_SHARE * width),
        "TranslateY": _even(_TRANSLATION_SHARE * height),
        "Rotate": _even(30.0),
        "Brightness": _even(0.9),
        "Color": _even(0.9),
        "Contrast": _even(0.9),
        "Sharpness": _even(0.9),
        "Posterize": _bits(4),
        "Solarize": _thresholds(),
        "AutoContrast": _none(),
        "Equalize": _none(),
    }


def _even(greatest: float) -> Strengths:
    """Evenly spread in the float32 of `torch.linspace`, where the middle bin of 32 pixels is cut to 15, not 16."""
    step = float(np.float32(greatest / (BINS - 1)))
    lower = [step * i for i in range(BINS // 2)]
    upper = [greatest - step * (BINS - 1 - i) for i in range(BINS // 2, BINS)]
    return Strengths(tuple(np.array(lower + upper, np.float32).tolist()), is_signed=True)


def _bits(most: int) -> Strengths:
    """Bits that are kept of 8: at the last bin `most` fewer."""
    return Strengths(
        tuple(float(8 - round(i / ((BINS - 1) / most))) for i in range(BINS)), is_signed=False
    )


def _thresholds() -> Strengths:
    return Strengths(tuple(np.linspace(255.0, 0.0, BINS).tolist()), is_signed=False)


def _none() -> Strengths:
    return Strengths((0.0,), is_signed=False)
