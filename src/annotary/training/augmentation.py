"""Pictures that are changed by chance before a network sees them, so that it never sees the same one twice.

What is drawn follows from the seed, the epoch and the image's id, and from nothing else: whichever process prepares an
image, and wherever training was stopped, the same picture comes out. The ways:

    trivial    TrivialAugment as JoyTag had it: one operation of 8 at one of 31 strengths, after padding and resizing
    trivial2   the same with 6 more operations of colour (of JoyTag's published command)
    rand       RandAugment: some operations of 14, all of one strength
    sw         of SmilingWolf's taggers, as JoyTag's code has it: flip, a square of .87 to .998 of the padded picture,
               resized by a filter that is drawn, and turned by up to 45 degrees
    none       no change

Any of them can go together with a flip and with cutout; MixUp is done with whole batches.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from annotary import preprocess
from annotary.cards import PreprocessSpec
from annotary.preprocess import Pixels
from annotary.training._operations import BINS, OPERATIONS, WHITE, rand_space, trivial_space

Kind: TypeAlias = Literal["none", "trivial", "trivial2", "rand", "sw"]

CUTOUT_COLOUR = (123, 117, 104)
"""What cutout leaves, RGB: CLIP's mean, which is nearly 0 for the network (DeVries and Taylor 2017, section 3.2)."""

SW_CROP = (0.87, 0.998)
"""Share of the padded picture's side that `sw` keeps."""

SW_ANGLE = 45.0
"""Degrees that `sw` turns to either side at most."""

_SW_FILTERS: tuple[Literal["nearest", "bilinear", "bicubic"], ...] = (
    "nearest",
    "bilinear",
    "bicubic",
)
_ROTATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


class Chance:
    """Numbers that follow from a seed, an epoch and an id, on every machine and with every version of a library.

    They are the bits of BLAKE2b of the three and of a counter.

    Args:
        seed: Any integer.
        epoch: Any integer.
        identity: What the image is known by.
    """

    def __init__(self, seed: int, epoch: int, identity: str) -> None:
        told = f"{seed} {epoch} {identity}".encode("utf-8", "surrogateescape")
        self._key = hashlib.blake2b(told, digest_size=64).digest()
        self._block = 0
        self._left: list[int] = []

    def share(self) -> float:
        """A number in [0, 1)."""
        if not self._left:
            block = self._block.to_bytes(8, "little")
            digest = hashlib.blake2b(block, key=self._key, digest_size=64).digest()
            self._left = np.frombuffer(digest, "<u8").tolist()
            self._block += 1
        return (self._left.pop() >> 11) * 2.0**-53

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + self.share() * (high - low)

    def below(self, count: int) -> int:
        """A whole number in 0..count - 1."""
        return int(self.share() * count)

    def happens(self, probability: float) -> bool:
        """Whether something of a probability 0..1 happens."""
        return self.share() < probability


@dataclass(frozen=True, slots=True)
class AugmentationOptions:
    """How pictures are changed by chance."""

    kind: Kind = "trivial2"
    """trivial and trivial2 (TrivialAugment, as JoyTag), rand (RandAugment), sw (SmilingWolf's), or none."""

    operations: int = 2
    """For rand: how many operations, one after the other."""

    magnitude: int = 9
    """For rand: how strong they are, 0 to 30."""

    flip: float = 0.0
    """Probability that a picture is mirrored, left for right, 0 to 1; sw always has its own."""

    cutout: float = 0.0
    """Side of a square that is covered, as a share of the picture's shorter side, 0 to 1; 0 covers none."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(
                f"kind must be one of {', '.join(get_args(Kind))}, but got {self.kind!r}"
            )
        if self.operations < 0:
            raise ValueError(f"operations must not be negative, but got {self.operations}")
        if not 0 <= self.magnitude < BINS:
            raise ValueError(f"magnitude must be in 0..{BINS - 1}, but got {self.magnitude}")
        for name in ("flip", "cutout"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be in 0..1, but got {value}")

    @property
    def begins_fitted(self) -> bool:
        """Whether it begins with the picture that `preprocess.fit` gives, which may be kept from epoch to epoch."""
        return self.kind != "sw"


def augment(fitted: Pixels, options: AugmentationOptions, chance: Chance) -> Pixels:
    """Change a picture that has the size of the network's input already.

    Args:
        fitted: uint8[h, w, 3], RGB, of `preprocess.fit`; it is left as it is.
        options: How; `begins_fitted` must be true.
        chance: What is drawn from.

    Returns:
        uint8[h, w, 3], RGB; it may be `fitted`.
    """
    if not options.begins_fitted:
        raise ValueError(f"{options.kind} begins with the whole picture: use fit_augmented")
    if options.flip and chance.happens(options.flip):
        fitted = flipped(fitted)
    if options.kind in ("trivial", "trivial2"):
        fitted = apply(fitted, *draw_trivial(chance, 2 if options.kind == "trivial2" else 1))
    elif options.kind == "rand":
        for name, magnitude in draw_rand(chance, options, fitted.shape[0], fitted.shape[1]):
            fitted = apply(fitted, name, magnitude)
    return _covered(fitted, options, chance)


def fit_augmented(
    pixels: Pixels,
    spec: PreprocessSpec,
    options: AugmentationOptions,
    chance: Chance,
    full_size: tuple[int, int] | None = None,
) -> Pixels:
    """Bring a picture to the size of the network's input and change it.

    Args:
        pixels: uint8[H, W, 3], RGB.
        spec: How it is prepared; for `sw` the fit must be `pad`.
        options: How it is changed.
        chance: What is drawn from.
        full_size: Width and height of the image that `pixels` is a reduced decode of.

    Returns:
        uint8[h, w, 3], RGB, with `(h, w) = spec.size`.
    """
    if options.begins_fitted:
        return augment(preprocess.fit(pixels, spec, full_size), options, chance)
    return _covered(_sw(pixels, spec, chance), options, chance)


def apply(pixels: Pixels, name: str, magnitude: float) -> Pixels:
    """Do one operation of `OPERATIONS`.

    Args:
        pixels: uint8[h, w, 3], RGB; it is left as it is.
        name: Of the operation.
        magnitude: How strong, in the operation's own unit: degrees, pixels, a share, bits, a threshold.

    Returns:
        uint8[h, w, 3], RGB; for `Identity` it is `pixels`.
    """
    if name == "Identity":
        return pixels
    return np.asarray(OPERATIONS[name](Image.fromarray(pixels), magnitude))


def flipped(pixels: Pixels) -> Pixels:
    """A picture with left and right exchanged, uint8[h, w, 3]."""
    return np.ascontiguousarray(pixels[:, ::-1])


def draw_trivial(chance: Chance, level: int) -> tuple[str, float]:
    """An operation of TrivialAugment and its magnitude: all operations, strengths and signs are equally probable."""
    space = trivial_space(level)
    name = list(space)[chance.below(len(space))]
    magnitudes, is_signed = space[name]
    magnitude = magnitudes[chance.below(len(magnitudes))]
    return name, -magnitude if is_signed and chance.happens(0.5) else magnitude


def draw_rand(
    chance: Chance, options: AugmentationOptions, height: int, width: int
) -> list[tuple[str, float]]:
    """The operations of RandAugment and their magnitudes, for a picture of a size in pixels."""
    space = rand_space(height, width)
    drawn = []
    for _ in range(options.operations):
        name = list(space)[chance.below(len(space))]
        magnitudes, is_signed = space[name]
        magnitude = magnitudes[min(options.magnitude, len(magnitudes) - 1)]
        drawn.append((name, -magnitude if is_signed and chance.happens(0.5) else magnitude))
    return drawn


def _sw(pixels: Pixels, spec: PreprocessSpec, chance: Chance) -> Pixels:
    """SmilingWolf's way, in the order of JoyTag's `SWAugment`."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    is_flipped = chance.happens(0.5)
    kept = max(1, int(side * chance.between(*SW_CROP)))
    left, top = chance.below(side - kept + 1), chance.below(side - kept + 1)
    resize, turn = (_SW_FILTERS[chance.below(len(_SW_FILTERS))] for _ in range(2))
    angle = chance.between(-SW_ANGLE, SW_ANGLE)
    # What of the picture lies in the square that is kept, and where there.
    x, y = (side - width) // 2 - left, (side - height) // 2 - top
    if is_flipped:
        pixels = flipped(pixels)
        x = side - width - (side - width) // 2 - left
    square = np.full((kept, kept, 3), spec.pad_colour, np.uint8)
    columns, rows = slice(max(0, x), x + width), slice(max(0, y), y + height)
    inner = pixels[max(0, -y) : kept - y, max(0, -x) : kept - x]
    square[rows, columns] = inner
    fitted = preprocess.fit(square, replace(spec, fit="squash", resample=resize))
    turned = Image.fromarray(fitted).rotate(angle, _ROTATIONS[turn], fillcolor=WHITE)
    return np.asarray(turned)


def _covered(pixels: Pixels, options: AugmentationOptions, chance: Chance) -> Pixels:
    """Cutout: a square around any pixel, of which a part may lie outside."""
    height, width = pixels.shape[:2]
    side = round(options.cutout * min(height, width))
    if not side:
        return pixels
    top, left = chance.below(height) - side // 2, chance.below(width) - side // 2
    covered = pixels.copy()
    covered[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = CUTOUT_COLOUR
    return covered


def mix_up(
    images: Any,
    targets: Any,
    alpha: float,
    seed: int,
    epoch: int,
    place: int,
    weights: Any = None,
) -> tuple[Any, Any]:
    """Mix each picture of a batch with another, and their targets alike.

    MixUp (Zhang et al., ICLR 2018) as JoyTag had it: the first picture goes with the last, the second with the one
    before it and so on, each with a share of its own. The shares follow from the last three numbers alone.

    Args:
        images: [b, ...], a NumPy array or a torch tensor on any device, such as uint8[b, h, w, 3].
        targets: [b, t], of the same library.
        alpha: Of the Beta distribution that shares are drawn from, on both sides; 0 mixes nothing.
        seed: Any integer of at least 0.
        epoch: Of the batch.
        place: Of the batch in the epoch; with several processes of training it must differ among them.
        weights: [b] of either library; a picture of weight 0 is not mixed into another.

    Returns:
        Images and targets as floating point of the same shape; float32 if they were integers.

    Raises:
        ValueError: `alpha` is negative.
    """
    if not 0.0 <= alpha < float("inf"):
        raise ValueError(f"alpha must not be negative, but got {alpha}")
    images, targets = _floats(images), _floats(targets)
    count = len(images)
    if not alpha or not count:
        return images, targets
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, place])))
    shares = generator.beta(alpha, alpha, count)
    if weights is not None:
        is_picture = np.asarray(weights.tolist()) > 0.0
        shares = np.where(is_picture[::-1], shares, 1.0)
    backwards = np.arange(count)[::-1].copy()
    return _mixed(images, shares, backwards), _mixed(targets, shares, backwards)


def _mixed(values: Any, shares: npt.NDArray[np.float64], others: npt.NDArray[np.intp]) -> Any:
    own: Any
    if isinstance(values, np.ndarray):
        own = shares.astype(values.dtype)
    else:
        own, others = values.new_tensor(shares.tolist()), others.tolist()
    own = own.reshape((-1, *(1 for _ in values.shape[1:])))
    return values * own + values[others] * (1 - own)


def _floats(values: Any) -> Any:
    if isinstance(values, np.ndarray):
        return values if values.dtype.kind == "f" else values.astype(np.float32)
    return values if values.is_floating_point() else values.float()
