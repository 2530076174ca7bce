"""Pictures that the tests encode and decode again."""

import io

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def picture():
    """uint8[48, 64, 3]: no row, column or quarter equals another, and nothing is symmetric."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([x * 4, y * 5, (x + y) * 2], axis=2).astype(np.uint8)


@pytest.fixture(scope="session")
def encode():
    """Image or array to bytes of a Pillow format."""

    def save(image, form, **options):
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        file = io.BytesIO()
        image.save(file, form, **options)
        return file.getvalue()

    return save


@pytest.fixture(scope="session")
def photo():
    """A 1600 x 1200 stand-in for a photograph: noise with a natural spectrum, and edges."""
    rng = np.random.default_rng(7)
    height, width = 1200, 1600
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    strength = np.maximum(np.hypot(y, x), 1.0 / width) ** -1.25
    planes = []
    for _ in range(3):
        phase = np.exp(2j * np.pi * rng.random(strength.shape))
        plane = np.fft.irfft2(strength * phase, s=(height, width))
        planes.append(128 + 45 * plane / plane.std())
    pixels = np.stack(planes, axis=2)
    for _ in range(60):
        top, left = rng.integers(0, height - 90), rng.integers(0, width - 90)
        tall, wide = rng.integers(5, 330, 2)
        pixels[top : top + tall, left : left + wide] += rng.normal(0, 40, 3)
    return np.clip(pixels, 0, 255).astype(np.uint8)
