"""How a Hugging Face checkpoint wants its images, from its own files, as a `PreprocessSpec`.

Transformers' image processors, which published probabilities come from, work so: alpha is dropped, the image is
resized by Pillow, the middle is taken with the corner rounded down, values are multiplied by `rescale_factor`, and mean
and deviation are taken off. What a file does not say is what the processor's class says
(`image_processing_pil_*.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from annotary.cards import PreprocessSpec, Resample
from annotary.errors import ModelError
from annotary.models._checkpoint_files import CONFIG_FILE, read_json

PREPROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
"""Newer versions of transformers write this one, with the image processor's settings as a part of it."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)

_FILTERS: dict[int, Resample] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}
"""By Pillow's numbers."""

_CLIP: Mapping[str, Any] = {
    "do_convert_rgb": True,
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_DINOV3: Mapping[str, Any] = {
    "do_convert_rgb": True,
    "size": {"height": 224, "width": 224},
    "default_to_square": True,
    "resample": 2,
    "image_mean": IMAGENET_MEAN,
    "image_std": IMAGENET_STD,
}
_SIGLIP: Mapping[str, Any] = {
    "do_convert_rgb": True,
    "size": {"height": 224, "width": 224},
    "default_to_square": False,
    "resample": 3,
    "image_mean": _HALF,
    "image_std": _HALF,
}
_OWL: Mapping[str, Any] = {
    "do_convert_rgb": True,
    "size": {"height": 768, "width": 768},
    "default_to_square": True,
    "do_center_crop": False,
    "crop_size": None,
    "resample": 3,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}
_BLIP: Mapping[str, Any] = {
    "do_convert_rgb": True,
    "size": {"height": 384, "width": 384},
    "default_to_square": True,
    "resample": 3,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}
_PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "CLIP": _CLIP,
    "Bit": _CLIP,
    "Blip": _BLIP,
    "DINOv3ViT": _DINOV3,
    "Siglip": _SIGLIP,
    "ViT": {**_SIGLIP, "do_convert_rgb": False, "default_to_square": True, "resample": 2},
    "OwlViT": _OWL,
    "Owlv2": {**_OWL, "size": {"height": 960, "width": 960}, "resample": 2, "do_pad": True},
    "Siglip2": {
        "patch_size": 16,
        "max_num_patches": 256,
        "resample": 2,
        "image_mean": _HALF,
        "image_std": _HALF,
    },
}
"""What the classes of image processors begin with."""

_OF_MODELS = {
    "clip": "CLIP",
    "metaclip_2": "CLIP",
    "siglip": "Siglip",
    "siglip2": "Siglip2",
    "blip": "Blip",
    "owlvit": "OwlViT",
    "owlv2": "Owlv2",
    "clip_vision_model": "CLIP",
    "siglip_vision_model": "Siglip",
    "vit": "ViT",
    "dinov2": "Bit",
    "dinov2_with_registers": "Bit",
    "dinov3_vit": "DINOv3ViT",
}


def read_preprocess(directory: Path, model_type: str) -> PreprocessSpec:
    """How images are prepared for a checkpoint.

    Args:
        directory: With `preprocessor_config.json`, or `processor_config.json` that has an `image_processor`.
        model_type: Of `config.json`; it tells the processor where the file does not.

    Raises:
        ModelError: A file is missing or damaged, or wants what is not known here; the message says what.
    """
    path = directory / PREPROCESSOR_FILE
    if path.is_file():
        settings = read_json(path)
    else:
        path = directory / PROCESSOR_FILE
        settings = read_json(path).get("image_processor") or {}
        if not isinstance(settings, dict):
            raise ModelError(f"{path} has no image_processor")
    try:
        return preprocess_of(settings, model_type)
    except (TypeError, KeyError, ValueError) as error:
        told = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"{path}: {told}") from error


def check_size(directory: Path, config: Mapping[str, Any], spec: PreprocessSpec) -> None:
    """Check that images are prepared for what the image tower takes.

    Args:
        directory: The checkpoint, for the message.
        config: All of its `config.json`.
        spec: How images would be prepared.

    Raises:
        ModelError: They are not.
    """
    what, key = ("patches", "patch_size") if spec.is_in_patches else ("images", "image_size")
    side = (config.get("vision_config") or {}).get(key)
    sides = tuple(side) if isinstance(side, list | tuple) else (side, side)
    if side is not None and sides != spec.size:
        raise ModelError(
            f"{directory}: {CONFIG_FILE} says {what} of {side} pixels, but they would be prepared as"
            f" {spec.size[0]} x {spec.size[1]}"
        )


def preprocess_of(settings: Mapping[str, Any], model_type: str) -> PreprocessSpec:
    """How images are prepared, by the settings of an image processor.

    Raises:
        ValueError: They make no sense, or want what is not known here; also TypeError and KeyError.
    """
    kind = _kind_of(settings, model_type)
    told = {**_PROCESSORS[kind], **{k: v for k, v in settings.items() if v is not None}}
    if "rescale" in told:  # what early settings of OWL-ViT call it
        told.setdefault("do_rescale", told["rescale"])
    if not told.get("do_resize", True) and kind != "Siglip2":
        raise ValueError("do_resize = false is not supported: networks take one size")
    number = told["resample"]
    if number not in _FILTERS:
        raise ValueError(f"resample = {number!r} is not supported, only 0 to 4 (Pillow's numbers)")
    values: dict[str, Any] = {
        "resample": "gaussian" if kind == "Owlv2" else _FILTERS[cast(int, number)],
        "crop_corner": "floor",
        "alpha": "key" if told.get("do_convert_rgb") else "drop",
        "scale": _scale(told),
        "mean": _three(told["image_mean"]) if told.get("do_normalize", True) else (0.0,) * 3,
        "std": _three(told["image_std"]) if told.get("do_normalize", True) else (1.0,) * 3,
    }
    if kind == "Siglip2":
        side, most = told["patch_size"], told["max_num_patches"]
        return PreprocessSpec(size=(side, side), fit="patches", patches=most, **values)
    if kind == "Owlv2":
        return PreprocessSpec(**_in_corner(told), **values)
    return PreprocessSpec(**_shape(told), **values)


def _kind_of(settings: Mapping[str, Any], model_type: str) -> str:
    said = settings.get("image_processor_type") or settings.get("feature_extractor_type") or ""
    if not said:
        return _OF_MODELS[model_type]
    kind = str(said)
    for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        kind = kind.removesuffix(ending)
    if kind not in _PROCESSORS:
        known = ", ".join(f"{name}ImageProcessor" for name in _PROCESSORS)
        raise ValueError(f"the image processor {said!r} is not supported, only {known}")
    return kind


def _in_corner(told: Mapping[str, Any]) -> dict[str, Any]:
    """Size, fit and filter of OWLv2, whose filter is a Gaussian whatever Pillow's number says."""
    size = _height_and_width(told["size"])
    if not told["do_pad"] or size[0] != size[1]:
        raise ValueError(f"do_pad = {told['do_pad']!r} with size = {size} is not supported")
    if told["resample"] == 0:
        raise ValueError("resample = 0 is not supported: it would leave the blur out")
    return {"size": size, "fit": "pad", "pad_place": "corner", "pad_colour": (0, 0, 0)}


def _scale(told: Mapping[str, Any]) -> float:
    """What values are divided by: 255.0 for the usual factor, which float32 gives the same bits for."""
    if not told.get("do_rescale", True):
        return 1.0
    factor = told.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or factor <= 0:
        raise ValueError(f"rescale_factor must be a number above 0, but is {factor!r}")
    scale = 1.0 / float(factor)
    return float(round(scale)) if abs(scale - round(scale)) < 1e-6 else scale


def _three(value: Any) -> tuple[float, ...]:
    return (float(value),) * 3 if isinstance(value, int | float) else tuple(map(float, value))


def _shape(told: Mapping[str, Any]) -> dict[str, Any]:
    """Size and fit."""
    size = told["size"]
    if isinstance(size, int) and not told["default_to_square"]:
        size = {"shortest_edge": size}
    crop = _height_and_width(told["crop_size"]) if told.get("do_center_crop", False) else None
    if isinstance(size, Mapping) and "shortest_edge" in size:
        if set(size) != {"shortest_edge"} or crop is None:
            raise ValueError(f"size = {dict(size)} without a crop gives images of many sizes")
        shortest = size["shortest_edge"]
        if shortest < max(crop):
            raise ValueError(f"shortest_edge = {shortest} is smaller than crop_size = {crop}")
        if crop[0] != crop[1]:
            raise ValueError(f"crop_size = {crop} is not square")
        return {"size": crop, "fit": "crop", "crop_share": crop[0] / shortest}
    squashed = _height_and_width(size)
    if crop not in (None, squashed):
        raise ValueError(f"crop_size = {crop} after size = {squashed} is not supported")
    return {"size": squashed, "fit": "squash"}


def _height_and_width(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return size["height"], size["width"]
    if isinstance(size, list | tuple) and len(size) == 2:
        return size[0], size[1]
    raise ValueError(f"size = {size!r} is not supported")
