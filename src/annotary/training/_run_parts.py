"""What a run is put together from, by its recipe and its dataset: the network, the losses, the tags' categories."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import torch

from annotary.tasks.tag_rules import read_pairs
from annotary.training.dataset.index import TAGS, TagDataset
from annotary.training.losses import TaggingLoss, positive_weights
from annotary.training.network import TaggerNetwork, build_network
from annotary.training.recipe import TaggerRecipe


def new_network(
    recipe: TaggerRecipe, dataset: TagDataset, image_size: int, checkpoint: Path | None = None
) -> TaggerNetwork:
    """The network of a run, on the processor.

    Args:
        recipe: How it is.
        dataset: Whose tags it has.
        image_size: Side of its images in pixels.
        checkpoint: From which the run goes on; its architecture is taken, so that what the run started from need not
            be there any more.

    Raises:
        UsageError: What it should start from, or the file of aliases, cannot be read.
        ModelError: What it should start from is damaged, or cannot be trained so.
    """
    # A checkpoint has the run's own tags, so the aliases need not be there any more, either.
    is_new = checkpoint is None and recipe.network.aliases
    return build_network(
        recipe.network,
        dataset.tags,
        checkpoint,
        image_size=image_size,
        positives=dataset.train.counts(),
        images=dataset.train.amounts(recipe.loss.unknown),
        seed=recipe.data.seed,
        loss_type=recipe.loss.kind,
        aliases=dict(read_pairs(Path(recipe.network.aliases))) if is_new else None,
        pooling=recipe.network.pooling or None,
    )


def loss_of(recipe: TaggerRecipe, dataset: TagDataset) -> TaggingLoss:
    """The loss that is made small."""
    if recipe.loss.kind != "weighted":
        return TaggingLoss(recipe.loss)
    counts = torch.from_numpy(dataset.train.counts())
    images = torch.from_numpy(dataset.train.amounts(recipe.loss.unknown))
    return TaggingLoss(recipe.loss, positive_weights(counts, images))


def measuring_loss_of(recipe: TaggerRecipe) -> TaggingLoss:
    """The loss that is measured on validation images: without smoothing and weights, so that runs can be compared."""
    kind = "bce" if recipe.loss.kind == "weighted" else recipe.loss.kind
    return TaggingLoss(replace(recipe.loss, kind=kind, label_smoothing=0.0))


def categories_of(dataset: TagDataset) -> list[str] | None:
    """The category of each tag; None where the dataset knows none."""
    try:
        with (dataset.folder / TAGS).open(encoding="utf-8", newline="") as file:
            known = {row["tag"]: row["category"] for row in csv.DictReader(file)}
    except (OSError, KeyError):
        return None
    found = [known.get(tag, "") for tag in dataset.tags]
    return found if any(found) else None
