"""Images as a checkpoint's own settings want them: what transformers' image processors make of the same pixels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from annotary import preprocess
from annotary.cards import PreprocessSpec
from annotary.errors import ModelError
from annotary.models._checkpoint_preprocess import preprocess_of, read_preprocess

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402
from transformers.models.siglip.image_processing_pil_siglip import (  # noqa: E402
    SiglipImageProcessorPil,
)
from transformers.models.siglip2.image_processing_pil_siglip2 import (  # noqa: E402
    Siglip2ImageProcessorPil,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil  # noqa: E402


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def prepared(pixels, spec):
    return preprocess.to_batch([preprocess.fit(pixels, spec)], spec)[0]


def check(processor, model_type, pixels):
    """Ours is theirs to the last bits of float32."""
    spec = preprocess_of(json.loads(processor.to_json_string()), model_type)
    wanted = processor(images=[Image.fromarray(pixels)], return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(prepared(pixels, spec), wanted, atol=1e-6)


SIDES = st.integers(1, 300)


@settings(max_examples=50)
@given(SIDES, SIDES, st.integers(7, 64), st.integers(0, 20), st.sampled_from([0, 1, 2, 3, 4]))
def test_clip_resizes_and_crops_alike(height, width, crop, more, resample):
    """The longer side is rounded down, and so is the corner of the middle."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": crop + more},
        crop_size={"height": crop, "width": crop},
        resample=resample,
    )
    check(processor, "clip", noise(height, width))


@settings(max_examples=30)
@given(SIDES, SIDES, st.integers(7, 64), st.integers(7, 64))
def test_siglip_squashes_alike(height, width, rows, columns):
    processor = SiglipImageProcessorPil(size={"height": rows, "width": columns})
    check(processor, "siglip", noise(height, width))


@settings(max_examples=50)
@given(SIDES, SIDES, st.sampled_from([4, 8, 14, 16]), st.integers(1, 300))
def test_patches_are_those_of_naflex(height, width, patch, most):
    """Size, order of values, and what is left over."""
    processor = Siglip2ImageProcessorPil(patch_size=patch, max_num_patches=most)
    pixels = noise(height, width)
    spec = preprocess_of(json.loads(processor.to_json_string()), "siglip2")
    wanted = processor(images=[Image.fromarray(pixels)], return_tensors="np")
    found = prepared(pixels, spec)
    np.testing.assert_allclose(found[:, :-2], wanted["pixel_values"][0], atol=1e-6)
    places, mask = found[:, -2:], wanted["pixel_attention_mask"][0]
    np.testing.assert_array_equal(places[:, 0] >= 0, mask == 1)
    np.testing.assert_array_equal(places.max(axis=0) + 1, wanted["spatial_shapes"][0])
    rows, columns = (wanted["spatial_shapes"][0]).tolist()
    inside = [[row, column] for row in range(rows) for column in range(columns)]
    np.testing.assert_array_equal(places[mask == 1], inside)
    assert preprocess.needed_size(spec, width, height) == (rows * patch, columns * patch)


@pytest.mark.parametrize(("width", "height"), [(40_000, 3), (3, 40_000)])
def test_an_image_that_is_all_length_becomes_one_row(width, height):
    spec = PreprocessSpec(size=(16, 16), fit="patches", patches=9)
    rows, columns = preprocess.needed_size(spec, width, height)
    assert max(rows, columns) <= 9 * 16
    assert rows * columns <= 9 * 16 * 16


@pytest.mark.parametrize(
    "more",
    [
        {"do_rescale": False},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
        {"do_center_crop": True, "crop_size": {"height": 24, "width": 24}},
    ],
)
def test_settings_count(more):
    processor = SiglipImageProcessorPil(size={"height": 24, "width": 24}, **more)
    check(processor, "siglip", noise(50, 70))


def test_every_value_of_a_byte_is_the_same_float():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    for kind in (CLIPImageProcessorPil, SiglipImageProcessorPil):
        processor = kind(size={"height": 16, "width": 16}, do_center_crop=False)
        spec = preprocess_of(json.loads(processor.to_json_string()), "clip")
        wanted = processor(images=[Image.fromarray(pixels)], return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(prepared(pixels, spec), wanted)


def test_vit_processors_are_known():
    check(ViTImageProcessorPil(size=20), "siglip", noise(31, 50))


def test_older_files_say_sizes_as_numbers():
    """As openai/clip-vit-base-patch32 was published."""
    spec = preprocess_of(
        {
            "crop_size": 224,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "size": 224,
        },
        "clip",
    )
    assert spec == preprocess_of({}, "clip")
    assert (spec.size, spec.fit, spec.crop_share) == ((224, 224), "crop", 1.0)
    assert (spec.scale, spec.alpha, spec.crop_corner) == (255.0, "key", "floor")


def test_defaults_are_those_of_the_model_type():
    assert preprocess_of({}, "siglip").fit == "squash"
    assert preprocess_of({}, "siglip2").patches == 256
    assert preprocess_of({}, "siglip2").resample == "bilinear"
    assert preprocess_of({}, "siglip2").alpha == "drop"


def test_the_newer_file_is_read_too(tmp_path):
    inside = {"image_processor": {"image_processor_type": "SiglipImageProcessorFast", "size": 32}}
    (tmp_path / "processor_config.json").write_text(json.dumps(inside))
    with pytest.raises(ModelError, match="gives images of many sizes"):
        read_preprocess(tmp_path, "siglip")
    inside["image_processor"]["size"] = {"height": 32, "width": 32}
    (tmp_path / "processor_config.json").write_text(json.dumps(inside))
    assert read_preprocess(tmp_path, "clip").size == (32, 32)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"do_resize": False}, "do_resize = false is not supported"),
        ({"resample": 5}, "resample = 5 is not supported"),
        ({"image_processor_type": "DetrImageProcessor"}, "'DetrImageProcessor' is not supported"),
        ({"size": {"shortest_edge": 200}}, "shortest_edge = 200 is smaller than crop_size"),
        ({"size": {"longest_edge": 200}}, "size = .* is not supported"),
        ({"size": "large"}, "size = 'large' is not supported"),
        ({"size": {"height": 0, "width": 4}, "do_center_crop": False}, "size must be"),
        ({"do_center_crop": False}, "without a crop gives images of many sizes"),
        ({"crop_size": {"height": 100, "width": 224}}, "is not square"),
        ({"rescale_factor": 0}, "rescale_factor must be a number above 0"),
        ({"image_mean": [0.5]}, "must have 3 values"),
        ({"image_std": "x"}, "could not convert"),
        ({"image_std": [0, 0, 0]}, "std > 0"),
    ],
)
def test_settings_that_are_not_known_are_one_line(tmp_path, told, message):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match=message) as caught:
        read_preprocess(tmp_path, "clip")
    assert "\n" not in str(caught.value)
    assert "preprocessor_config.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"image_processor": 5}'])
def test_damaged_files_are_one_line(tmp_path, text):
    (tmp_path / "processor_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"processor_config\.json"):
        read_preprocess(tmp_path, "clip")
