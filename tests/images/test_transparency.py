"""What becomes of transparency: on white, dropped, or as transformers' pipelines come to it."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from annotary.cards import Card, PreprocessSpec
from annotary.images import DecodeOptions, decode, from_pillow
from annotary.pipeline import PipelineOptions, annotate
from annotary.records import Item, Label
from annotary.sources import Reader, SourceOptions

GENERATOR = np.random.default_rng(2)
COLOURS = Image.fromarray(GENERATOR.integers(0, 256, (12, 17, 3), np.uint8))
CLEAR = Image.fromarray(GENERATOR.integers(0, 256, (12, 17, 4), np.uint8))
PALETTE = COLOURS.quantize(8)

FILES = {
    "rgba-png": (CLEAR, "PNG", {}),
    "rgba-webp": (CLEAR, "WEBP", {"lossless": True, "exact": True}),
    "rgba-tiff": (CLEAR, "TIFF", {}),
    "grey-alpha": (CLEAR.convert("LA"), "PNG", {}),
    "palette-table": (PALETTE, "PNG", {"transparency": bytes(range(0, 256, 32))}),
    "palette-key": (PALETTE, "PNG", {"transparency": 2}),
    "gif": (PALETTE, "GIF", {"transparency": 1}),
    "rgb-key": (COLOURS, "PNG", {"transparency": COLOURS.getpixel((3, 4))}),
    "grey-key": (
        COLOURS.convert("L"),
        "PNG",
        {"transparency": COLOURS.convert("L").getpixel((1, 1))},
    ),
}
KEYED = ("palette-key", "gif", "rgb-key", "grey-key")


@pytest.fixture(params=FILES)
def name(request):
    return request.param


@pytest.fixture
def data(name):
    image, form, options = FILES[name]
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def of_pillow(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of palettes
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_drop_is_pillows_convert(data):
    found = decode(data, alpha="drop")
    assert found.is_transparent
    np.testing.assert_array_equal(found.pixels, of_pillow(data))


def test_a_key_is_white_and_alpha_is_dropped(name, data):
    dropped, white = decode(data, alpha="drop").pixels, decode(data).pixels
    found = decode(data, alpha="key").pixels
    np.testing.assert_array_equal(found, white if name in KEYED else dropped)
    assert (white != dropped).any()


def test_the_options_go_before_the_card(data):
    white, dropped = decode(data).pixels, decode(data, alpha="drop").pixels
    for told, expected in (("white", white), ("drop", dropped)):
        for alpha in ("white", "drop", "key"):
            options = DecodeOptions(transparency=told)
            found = decode(data, options=options, alpha=alpha).pixels
            np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="transparency must be one of auto, white, drop"):
        DecodeOptions(transparency="black")  # type: ignore[arg-type]


def test_images_of_pillow_too(data):
    image = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(from_pillow(image, "drop"), of_pillow(data))


@pytest.mark.parametrize("bands", [3, 1], ids=["RGBa", "La"])
def test_colours_that_are_multiplied_by_alpha(bands, monkeypatch):
    values = [100, 50, 0][:bands]
    straight = Image.merge(
        "RGBA" if bands == 3 else "LA", [Image.new("L", (2, 2), v) for v in (*values, 128)]
    )
    opened = Image.frombytes("RGBa" if bands == 3 else "La", (2, 2), straight.tobytes())
    found = from_pillow(opened, "drop")[0, 0].tolist()
    expected = [min(255, round(v * 255 / 128)) for v in (values if bands == 3 else values * 3)]
    assert found == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK"])
def test_opaque_images_are_the_same_in_every_way(mode):
    image = PALETTE if mode == "P" else COLOURS.convert(mode)
    file = io.BytesIO()
    image.save(file, "TIFF")
    found = [decode(file.getvalue(), alpha=alpha) for alpha in ("white", "drop", "key")]
    assert not any(one.is_transparent for one in found)
    for one in found[1:]:
        np.testing.assert_array_equal(one.pixels, found[0].pixels)


class Corner:
    """A task that says what colour the first pixel has, once for each way of preparing."""

    part = "labels"
    source = "corner@1"
    streams = batch_size = 1

    def __init__(self, *alphas: str) -> None:
        self.inputs: Sequence[PreprocessSpec] = [
            PreprocessSpec(size=(4, 4), layout="nhwc", dtype="uint8", alpha=alpha)  # type: ignore[arg-type]
            for alpha in alphas
        ]

    def annotate(self, _items, *batches):
        found = [
            [Label(f"{i}:{batch[n, 0, 0].tolist()}", 1.0) for i, batch in enumerate(batches)]
            for n in range(len(batches[0]))
        ]
        return [{"labels": tuple(labels)} for labels in found]


def colours_of(data, *alphas, options=None):
    task = Corner(*alphas)
    item = Item("x", data=data)
    results = annotate(
        [item], [task], Reader(SourceOptions()), options or DecodeOptions(), PipelineOptions()
    )
    return [label.name for label in next(iter(results)).record.labels]


def test_each_network_gets_what_it_wants_in_one_run(monkeypatch):
    """The file is decoded once for each way, and once in all where it has no transparency."""
    file = io.BytesIO()
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(file, "PNG")
    decoded = []
    from annotary import images

    original = images.decode
    monkeypatch.setattr(
        images, "decode", lambda *a, **k: decoded.append(k["alpha"]) or original(*a, **k)
    )
    expected = ["0:[255, 255, 255]", "1:[10, 20, 30]", "2:[255, 255, 255]"]
    assert colours_of(file.getvalue(), "white", "drop", "white") == expected
    assert decoded == ["white", "drop"]
    decoded.clear()
    options = DecodeOptions(transparency="drop")
    found = colours_of(file.getvalue(), "white", "drop", options=options)
    assert found == ["0:[10, 20, 30]", "1:[10, 20, 30]"]
    assert decoded == ["drop"]
    decoded.clear()
    opaque = io.BytesIO()
    Image.new("RGB", (4, 4), (10, 20, 30)).save(opaque, "PNG")
    assert colours_of(opaque.getvalue(), "key", "white") == ["0:[10, 20, 30]", "1:[10, 20, 30]"]
    assert len(decoded) == 1


def test_the_card_tells_it():
    assert Card("a", "1", "f", "MIT", PreprocessSpec((4, 4))).preprocess.alpha == "white"
    with pytest.raises(ValueError, match="alpha must be one of white, drop, key"):
        PreprocessSpec((4, 4), alpha="black")  # type: ignore[arg-type]
