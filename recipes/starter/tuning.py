"""Fine-tunes the upper stages by the commands that anybody has, and lets both networks give the scores."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from annotary.models._efficientnet_backbone import EfficientNetBackbone
from annotary.models._efficientnet_lite import ConvNorm, EfficientNetLite
from annotary.models._vision_tagger_network import (
    VisionTaggerForUse,
    empty_backbone,
    load_weights,
)
from annotary.models.joytag import TAGS_FILE
from annotary.training._integer_tower import read_tower
from annotary.training.recipe import read_recipe
from recipes.starter import dataset, export, features, joint_export
from recipes.starter.branch import FIRST_STAGE, LOGITS, Branch, Mix, add_branch, mix_scores
from recipes.starter.few_bits import FewBits
from recipes.starter.quantise import quantise
from recipes.starter.scoring import SHARE
from recipes.starter.tables import Example, Vocabulary

RECIPE = Path(__file__).with_name("starter.toml")

CALIBRATION_IMAGES = 96
"""Training images, of all sources, that the ranges of its integers are chosen on."""

CHANGE_BITS = 2
"""Of the numbers that fine-tuning changed the weights by."""

HEAD_BITS = 4
"""Of the fine-tuned network's head."""

_PROBE = {
    "views": 2,
    "epochs": 30,
    "batch-size": 256,
    "learning-rate": 3e-4,
    "dropout": 0.5,
    "unknown": 0.05,
}

Say = Callable[[str], None]
Floats = npt.NDArray[np.float32]


def train(
    examples: Sequence[Example], vocabulary: Vocabulary, starter: Path, work: Path, say: Say
) -> Path:
    """Make a dataset of all sources, train a probe on the starter's features, and fine-tune from it.

    Args:
        examples: All images.
        vocabulary: The tags.
        starter: Folder of the model that has frozen stages alone.
        work: Folder for everything on the way; what is there goes on, or is not done again.
        say: Called with a line of text.

    Returns:
        The folder of the last checkpoint.
    """
    run = work / "run"
    samples = sum(stage.samples for stage in read_recipe(str(RECIPE)).stages)
    if finished := _last(run, samples):
        return finished
    inputs = work / "inputs"
    dataset.write_inputs(examples, vocabulary, inputs)
    tables = [inputs / f"{source}.jsonl" for source in dataset.INPUTS]
    rules, held = inputs / "rules.toml", inputs / "held_aside.txt"
    say("dataset, probe and fine-tuning")
    _annotary(
        "dataset", *tables, "--rules", rules, "--validation-ids", held, "--transparent", "white",
        "--output", work / "dataset",
    )  # fmt: skip
    settings = [part for name, value in _PROBE.items() for part in (f"--{name}", value)]
    probe = work / "probe"
    data = ("--data", work / "dataset")
    _annotary("probe", "--model", f"dir:{starter}", *data, "--output", probe, *settings)
    start = f"network.start=dir:{probe / 'tagger'}"
    _annotary("tagger", RECIPE, *data, "--output", run, "--set", start)
    last = _last(run, samples)
    assert last is not None
    return last


def _last(run: Path, samples: int) -> Path | None:
    """The last checkpoint of a run that has seen so many images; None if there is none yet."""
    seen = {int(one.name.rpartition("_")[2]): one for one in run.glob("checkpoints/samples_*")}
    return seen[max(seen)] if seen and max(seen) >= samples else None


def _annotary(*arguments: object) -> None:
    command = [sys.executable, "-m", "annotary", "train", *map(str, arguments)]
    subprocess.run(command, check=True)


def read_branch(
    checkpoint: Path, frozen: Path, vocabulary: Vocabulary, examples: Sequence[Example]
) -> tuple[Branch, npt.NDArray[np.int64]]:
    """A checkpoint's network in integers, and which of the learned tags its outputs are.

    Args:
        checkpoint: Its folder.
        frozen: The ONNX file of the network that it began as.
        vocabulary: The tags.
        examples: All images.
    """
    tags = (checkpoint / TAGS_FILE).read_text(encoding="utf-8").splitlines()
    learned = np.array(vocabulary.names)[vocabulary.is_learned()].tolist()
    network = VisionTaggerForUse(empty_backbone(checkpoint), len(tags), "stages")
    load_weights(network, checkpoint)
    backbone, head = cast(EfficientNetBackbone, network.eval().backbone), network.head
    changes = round_changes(backbone, read_tower(frozen).weights)
    known = [example for example in examples if not example.is_held_aside]
    chosen = known[:: len(known) // CALIBRATION_IMAGES][:CALIBRATION_IMAGES]
    tower = quantise(backbone, torch.from_numpy(np.stack([_pixels(one) for one in chosen])))
    matrix = FewBits.of(head.weight.detach().numpy().T, HEAD_BITS)
    mean, scale = backbone.feature_mean.numpy(), backbone.feature_scale.numpy()
    places = np.array([learned.index(tag) for tag in tags], np.int64)
    return Branch(tower, mean, scale, changes, matrix, head.bias.detach().numpy()), places


@torch.no_grad()
def round_changes(
    network: EfficientNetLite, frozen: Mapping[str, Tensor]
) -> tuple[FewBits | None, ...]:
    """Round what fine-tuning changed in the weights of the fine-tuned stages, in place, and return it.

    Weights of single channels (depthwise convolutions) are few and stay as they are; for them it returns None.

    Args:
        network: The fine-tuned one, folded.
        frozen: The weights that it began with, by the same names.
    """
    first = network.stage_ends[FIRST_STAGE - 1] + 1
    upper: list[tuple[str, nn.Module]] = [
        (f"blocks.{number}", block)
        for number, block in enumerate(network.blocks)
        if number >= first
    ]
    changes: list[FewBits | None] = []
    for prefix, part in [*upper, ("head", network.head)]:
        for name, layer in part.named_modules(prefix=prefix):
            if not isinstance(layer, ConvNorm):
                continue
            weight = layer.conv.weight
            if layer.conv.groups > 1:
                changes.append(None)
                continue
            before = frozen[f"{name}.conv.weight"]
            change = FewBits.of((weight - before).flatten(1).numpy().T, CHANGE_BITS)
            changes.append(change)
            weight.copy_(before + torch.from_numpy(change.values().T).reshape(weight.shape))
    return tuple(changes)


def branch_logits(model: onnx.ModelProto, examples: Sequence[Example]) -> Floats:
    """What the fine-tuned network says of images, float32[n, tuned]."""
    session = features.open_session(model.SerializeToString())

    def of(start: int) -> Floats:
        batch = np.stack([_pixels(one) for one in examples[start : start + features.BATCH]])
        return np.asarray(session.run([LOGITS], {"image": batch})[0], np.float32)

    with ThreadPoolExecutor(features.THREADS) as pool:
        return np.concatenate(list(pool.map(of, range(0, len(examples), features.BATCH))))


def _pixels(example: Example) -> npt.NDArray[np.uint8]:
    treated = features.treat(features.load(example.path), example.treatment)
    return features.view(treated, features.VIEWS["whole"])


def make_mix(frozen: export.Model, mixed: export.Model, places: npt.NDArray[np.int64]) -> Mix:
    """How the file makes the mixed model's log-odds from the frozen model's, which it has, and the new logits.

    Args:
        frozen: The model before.
        mixed: The same with lines that fit the logits of both networks.
        places: Of the tags that the fine-tuned network knows among the learned ones.
    """
    shift = frozen.shift[frozen.vocabulary.is_learned()]
    before, after = frozen.lines, mixed.lines
    keep, offset = np.ones(len(shift)), np.zeros(len(shift))
    ratio = (1 - SHARE) * after.slope / before.slope
    keep[places] = ratio[places]
    moved = after.offset + shift - ratio * (before.offset + shift)
    offset[places] = moved[places]
    gain = SHARE * after.slope[places]
    return Mix(keep.astype(np.float32), gain.astype(np.float32), offset.astype(np.float32), places)


def write(path: Path, branch: Branch, mix: Mix) -> None:
    """Add the branch to a model's file."""
    joint_export.write(mix_scores(add_branch(onnx.load(path), branch), mix), path)
