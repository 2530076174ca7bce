"""A linear probe on a dataset folder: features, head, thresholds and measurement, in a folder that goes on.

run.json            how the head is trained, on which model's features, and what the dataset holds
features/           the features that were computed, and the head while it is trained
tagger/             the model: `annotary tag --model dir:` opens it
metrics.json        what was measured; it is written last
failures.jsonl      the images that could not be read; they count nothing
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from annotary.errors import MissingExtra, OutputError, UsageError
from annotary.evaluation.tagging import TagCounts
from annotary.evaluation.tagging_streams import ScoreHistograms
from annotary.runtime import RuntimeOptions
from annotary.training._feeding import FAILURES
from annotary.training._run_folder import run_folder
from annotary.training._run_parts import categories_of
from annotary.training._validation import fitted_thresholds
from annotary.training.dataset.index import Split, TagDataset
from annotary.training.feature_cache import CachedFeatures, cached_features, image_keys
from annotary.training.losses import tagging_loss
from annotary.training.probe import FeatureSource, open_source, train_probe
from annotary.training.probe_recipe import ProbeRecipe
from annotary.training.tagger import TaggerOptions

TAGGER, METRICS = "tagger", "metrics.json"
_FEATURES = "features"
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a probe has come to.

    Attributes:
        tagger: The model.
        metrics: Measured on the validation images: `loss`, `map`, and `macro_f1` and `micro_f1` at 0.5, as checkpoints
            of `Trainer` have them; `fitted_macro_f1` and `fitted_micro_f1` at the thresholds that were fitted to the
            same images. Empty where there is none.
        images: Images to learn from that could be read.
        validation: Images to measure on that could be read.
        failed: Images that could not.
        was_done: Whether there was nothing left to do.
    """

    tagger: Path
    metrics: dict[str, float]
    images: int
    validation: int
    failed: int
    was_done: bool = False


def run_probe(
    recipe: ProbeRecipe,
    dataset: TagDataset,
    output: Path,
    runtime: RuntimeOptions | None = None,
    *,
    must_continue: bool = False,
    report: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> ProbeResult:
    """Train a linear probe, or go on where it was stopped.

    Args:
        recipe: How, and on whose features.
        dataset: On what.
        output: The folder of the run.
        runtime: How the network runs that gives the features.
        must_continue: Refuse to begin a new run.
        report: Told of how many images there are features, and how many images there are.
        tell: Told what was done, in lines.

    Raises:
        UsageError: There is no such model, or it gives no features, or no image can be read.
        ModelError: It is damaged.
        MissingExtra: The model cannot be written with another head without an extra.
        OutputError: The folder cannot be written, or holds something else.
    """
    source = open_source(recipe.model, runtime)
    _check_can_write(source)
    settings = {
        **recipe.settings(),
        "model": source.card.id,  # the same by another name goes on
        "fingerprint": source.fingerprint,
    }
    with run_folder(output, settings, dataset, must_exist=must_continue):
        done = _read_result(output)
        if done is not None:
            return done
        result = _run(recipe, source, dataset, output, report, tell)
        _write_result(output, result)
        return result


def _run(
    recipe: ProbeRecipe,
    source: FeatureSource,
    dataset: TagDataset,
    output: Path,
    report: Callable[[int, int], None] | None,
    tell: Callable[[str], None],
) -> ProbeResult:
    learn, measure = len(dataset.train), len(dataset.validation)
    tell(
        f"{learn:,} images to learn from and {measure:,} to measure on, {len(dataset.tags):,} tags;"
        f" features of {source.card.id}"
    )
    place = output / _FEATURES
    told = None if report is None else _counting(report, 0, learn + measure)
    train = _features(source, dataset.train, place, recipe.views == 2, told)
    told = None if report is None else _counting(report, learn, learn + measure)
    validation = _features(source, dataset.validation, place, is_mirrored=False, report=told)
    failures = [*train.failures, *validation.failures]
    _write(output / FAILURES, "".join(_failure(path, why) for path, why in failures))
    if not train.is_known.any():
        why = f": {failures[0][0]}: {failures[0][1]}" if failures else ""
        raise UsageError(f"no image to learn from could be read{why}")
    targets = dataset.train.targets(np.arange(learn))
    probe = train_probe(
        source,
        train.features,
        targets,
        dataset.tags,
        _options(recipe),
        is_known=train.is_known,
        weights=dataset.train.weights(np.arange(learn), recipe.unknown),
        state=place / f"head-{_digest(train.is_known)}.pt",
    )
    categories = categories_of(dataset)
    rows = np.flatnonzero(validation.is_known)
    metrics: dict[str, float] = {}
    thresholds = None
    if len(rows):
        true = dataset.validation.targets(rows)
        scores = probe.scores(validation.features[0, rows])
        weights = dataset.validation.weights(rows)
        known = None if weights is None else weights > 0
        thresholds, metrics = _measured(scores, true, known, categories)
    probe.write(output / TAGGER, thresholds, categories)
    images = int(train.is_known.sum())
    return ProbeResult(output / TAGGER, metrics, images, len(rows), len(failures))


def _features(
    source: FeatureSource,
    split: Split,
    folder: Path,
    is_mirrored: bool,
    report: Callable[[int, int], None] | None,
) -> CachedFeatures:
    paths = [split.path(row) for row in range(len(split))]
    return cached_features(
        source.run,
        source.spec,
        source.fingerprint,
        paths,
        image_keys(split.sha256, paths),
        folder,
        is_mirrored=is_mirrored,
        report=report,
    )


def _counting(
    report: Callable[[int, int], None], before: int, count: int
) -> Callable[[int, int], None]:
    """Counts of one part of the images as those of all."""
    return lambda done, _: report(before + done, count)


def _options(recipe: ProbeRecipe) -> TaggerOptions:
    return TaggerOptions(
        loss=recipe.loss,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        dropout=recipe.dropout,
        seed=recipe.seed,
    )


def _digest(is_known: npt.NDArray[np.bool_]) -> str:
    """Of which images count: with others, the head begins anew."""
    return hashlib.blake2b(is_known.tobytes(), digest_size=8).hexdigest()


def _measured(
    scores: npt.NDArray[np.float32],
    targets: npt.NDArray[np.uint8],
    known: npt.NDArray[np.bool_] | None,
    categories: Sequence[str] | None,
) -> tuple[dict[str, list[float]] | None, dict[str, float]]:
    """Thresholds fitted to images, and how good the scores are."""
    tags = targets.shape[1]
    histograms, at_half = ScoreHistograms(tags), TagCounts(tags)
    true = targets.astype(np.bool_)
    histograms.update(scores, true, known)
    at_half.update(scores >= 0.5, true, known)
    occurs = histograms.support > 0
    precision = histograms.average_precision().value
    logits = np.log(np.clip(scores, 1e-7, 1 - 1e-7)) - np.log1p(-np.clip(scores, 1e-7, 1 - 1e-7))
    counted = None if known is None else torch.from_numpy(known)
    true_targets = torch.from_numpy(targets).float()
    loss = tagging_loss(torch.from_numpy(logits), true_targets, kind="bce", weights=counted)
    metrics = {
        "loss": float(loss),
        "map": float(precision[occurs].mean()) if occurs.any() else 0.0,
        "macro_f1": at_half.macro().f1,
        "micro_f1": at_half.micro().f1,
    }
    thresholds = fitted_thresholds(histograms, categories)
    if thresholds is not None:
        fitted = TagCounts(tags)
        fitted.update(scores >= np.asarray(thresholds["balanced"], np.float32), true, known)
        metrics |= {"fitted_macro_f1": fitted.macro().f1, "fitted_micro_f1": fitted.micro().f1}
    return thresholds, metrics


def _check_can_write(source: FeatureSource) -> None:
    """Tell before the features are computed what is missing in the end."""
    if source.kind != "onnx":
        return
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingExtra("Writing ONNX files", "export") from error


def _failure(path: Path, why: str) -> str:
    return json.dumps({"image": str(path), "error": why}, ensure_ascii=False) + "\n"


def _read_result(output: Path) -> ProbeResult | None:
    """What a finished run came to; None where it is not finished, or the model has gone."""
    try:
        told: dict[str, Any] = json.loads((output / METRICS).read_text(encoding="utf-8"))
        counts = (int(told["images"]), int(told["validation"]), int(told["failed"]))
        metrics = {name: float(value) for name, value in told["metrics"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if counts[2] or not (output / TAGGER).is_dir():
        return None  # images that could not be read are tried again
    return ProbeResult(output / TAGGER, metrics, *counts, was_done=True)


def _write_result(output: Path, result: ProbeResult) -> None:
    told = {
        "images": result.images,
        "validation": result.validation,
        "failed": result.failed,
        "metrics": result.metrics,
    }
    _write(output / METRICS, json.dumps(told, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
