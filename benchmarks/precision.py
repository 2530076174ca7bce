"""What precisions and libraries do to the starter's tags: F1 on the 500 photos of Corel5k that were held aside.

python -m benchmarks.precision --corel ../shared/data/corel5k --calibrate ../shared/data/coco/images \
    --work build/benchmarks

The first line is the starter's network in fp32, with no rounding anywhere; all others are compared with it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from annotary.evaluation import TagCounts, five_tag_protocol
from annotary.export import ExportOptions, export_model
from annotary.models import load_model
from annotary.preprocess import fit, to_batch
from annotary.runtime import RuntimeOptions
from annotary.tasks.tagging import Tagger, tagger

EVERY = 9
"""Every ninth photo was held aside when the starter was made (recipes/starter/tables.py)."""

BATCH = 4


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    told: str
    """What it is."""

    model: str
    """The model's name."""

    options: RuntimeOptions
    """How it runs."""


def held_aside(corel: Path) -> tuple[list[Path], list[frozenset[str]]]:
    """The photos of Corel5k that the starter has not seen, and the words of each."""
    rows = [json.loads(line) for line in (corel / "index.jsonl").open(encoding="utf-8")]
    kept = [row for number, row in enumerate(rows) if number % EVERY == EVERY - 1]
    return [corel / row["file"] for row in kept], [frozenset(row["tags"]) for row in kept]


def batches(model: Tagger, photos: Sequence[Path]) -> Iterator[npt.NDArray[Any]]:
    """Photos as the model wants them."""
    spec = model.card.preprocess
    for start in range(0, len(photos), BATCH):
        pictures = [
            np.asarray(Image.open(path).convert("RGB")) for path in photos[start : start + BATCH]
        ]
        yield to_batch([fit(picture, spec) for picture in pictures], spec)


def measured(case: Case, photos: Sequence[Path]) -> tuple[Tagger, npt.NDArray[np.float32]]:
    """A model and its scores float32[n, t]."""
    model = tagger(load_model(case.model, case.options))
    return model, np.concatenate([model.tag_scores(batch) for batch in batches(model, photos)])


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--corel", type=Path, required=True, help="Corel5k, with its index.jsonl")
    parser.add_argument("--calibrate", type=Path, required=True, help="photos for int8")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the files")
    options = parser.parse_args()
    photos, words = held_aside(options.corel)
    plain, integers = options.work / "starter-fp32", options.work / "starter-int8"
    if not plain.is_dir():
        export_model("starter", ExportOptions("fp32"), plain)
    if not integers.is_dir():
        made = ExportOptions("int8", (str(options.calibrate),))
        export_model(f"dir:{plain}", made, integers)
    cases = [
        Case("fp32, ONNX Runtime", f"dir:{plain}", _options("onnxruntime", "fp32")),
        Case("fp32, OpenVINO", f"dir:{plain}", _options("openvino", "fp32")),
        Case("bf16, OpenVINO", f"dir:{plain}", _options("openvino", "bf16")),
        Case("as shipped (int8), ONNX Runtime", "starter", _options("onnxruntime", "int8")),
        Case("as shipped (int8), OpenVINO", "starter", _options("openvino", "int8")),
        Case(
            "`annotary export` int8, ONNX Runtime",
            f"dir:{integers}",
            _options("onnxruntime", "int8"),
        ),
        Case("`annotary export` int8, OpenVINO", f"dir:{integers}", _options("openvino", "int8")),
    ]
    print(
        "| precision | F1, all tags given | F1, five tags | F1 lost | mean difference | largest |\n"
        "|---|---|---|---|---|---|"
    )
    first: npt.NDArray[np.float32] | None = None
    best = 0.0, 0.0
    for case in cases:
        model, scores = measured(case, photos)
        known = [
            i for i, name in enumerate(model.vocabulary.names) if any(name in w for w in words)
        ]
        names = [model.vocabulary.names[i] for i in known]
        truth = np.array([[name in tags for name in names] for tags in words])
        thresholds = np.asarray(model.vocabulary.thresholds["balanced"], np.float32)[known]
        counts = TagCounts(len(known))
        counts.update(scores[:, known] >= thresholds, truth)
        given = counts.micro().f1, five_tag_protocol(scores[:, known].astype(np.float64), truth).f1
        if first is None:
            first, best = scores, given
        lost = max(best[0] - given[0], best[1] - given[1])
        difference = np.abs(scores - first)
        print(
            f"| {case.told} | {given[0]:.4f} | {given[1]:.4f} | {lost:+.4f} | {difference.mean():.5f}"
            f" | {difference.max():.3f} |",
            flush=True,
        )


def _options(runtime: Any, precision: Any) -> RuntimeOptions:
    return RuntimeOptions(threads=1, device="cpu", runtime=runtime, precision=precision)


if __name__ == "__main__":
    main()
