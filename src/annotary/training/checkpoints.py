"""Checkpoints of a training run: folders that tag at once, and from which the run goes on.

A checkpoint is a model directory (`config.json`, `model.safetensors`, `top_tags.txt`, `tags.csv` with categories and
thresholds, `card.toml`), which JoyTag's own loader reads, too. In its folder `training` lies what only the run needs:

    state.pt              optimiser, scaler, chance, place in the data: whatever the trainer hands over
    network.safetensors   the weights that are trained, where those that tag are their running mean
    checkpoint.json       samples, metrics, and the size of every file; what lacks one is not whole

A folder is written under a name that begins with a dot, and gets its own when the disk has it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from annotary.cards import CARD_FILE, Card, PreprocessSpec, Vocabulary, card_text, vocabulary_text
from annotary.cards import TAGS_FILE as TABLE_FILE
from annotary.errors import ModelError, OutputError, UsageError
from annotary.models.joytag import TAGS_FILE
from annotary.training.network import TaggerNetwork

WEIGHTS_FILE = "model.safetensors"
STATE_FOLDER = "training"
STATE_FILE = f"{STATE_FOLDER}/state.pt"
NETWORK_FILE = f"{STATE_FOLDER}/network.safetensors"
MANIFEST_FILE = f"{STATE_FOLDER}/checkpoint.json"

_PREFIX = "samples_"
"""Of the folders' names, as the reference calls them."""

_PARTIAL, _REPLACED, _REMOVED = ".partial", ".replaced", ".removed"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint.

    Attributes:
        folder: Where it is.
        samples: Images that were seen before it.
        metrics: What was measured at it, by name.
    """

    folder: Path
    samples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


def save_checkpoint(
    folder: Path,
    network: TaggerNetwork,
    tags: Sequence[str],
    preprocess: PreprocessSpec | None = None,
    thresholds: Mapping[str, float | Sequence[float]] | None = None,
    training_state: Mapping[str, Any] | None = None,
    *,
    categories: Sequence[str] | None = None,
    samples: int = 0,
    metrics: Mapping[str, float] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    own_weights: Mapping[str, Tensor] | None = None,
    about: Mapping[str, str] | None = None,
) -> Path:
    """Write a checkpoint; a process that is killed leaves it whole or not at all.

    Args:
        folder: Its name. One that is there is replaced.
        network: What is trained; without wrappers.
        tags: In the order of the outputs.
        preprocess: How images are prepared; as the network says when None.
        thresholds: Preset (`balanced`, `precise`, `broad`) to a threshold 0..1 for all tags, or one for each.
        training_state: What the run needs to go on: tensors, numbers, texts, and lists and dictionaries of them. None
            writes a model alone.
        categories: One for each tag.
        samples: Images that were seen before it.
        metrics: What was measured, by name.
        weights: What shall tag, where it is not what is trained: a running mean of the weights.
        own_weights: What is trained, where the network holds but a part of it, as with FSDP.
        about: `name`, `version`, `licence`, `description` and `source` for the card, as far as they are known.

    Returns:
        The folder.

    Raises:
        UsageError: The tags cannot stand in a file, or thresholds do not fit them.
        OutputError: It cannot be written; what was there is as it was.
    """
    own = dict(own_weights if own_weights is not None else network.state_dict())
    texts = {
        **network.settings_files(),
        **_tag_files(tags, categories, thresholds or {}),
        CARD_FILE: _card(folder, network, preprocess or network.preprocess, thresholds, about),
    }
    partial = folder.with_name(f".{folder.name}{_PARTIAL}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        _write_tensors(partial / WEIGHTS_FILE, weights if weights is not None else own)
        if training_state is not None:
            (partial / STATE_FOLDER).mkdir()
            torch.save(dict(training_state), partial / STATE_FILE)
            if weights is not None:
                _write_tensors(partial / NETWORK_FILE, own)
            _write_manifest(partial, samples, metrics or {})
        for path in partial.rglob("*"):
            if path.is_file():
                _sync(path)
        publish(partial, folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch and safetensors have errors of their own for a disk that is full.
        shutil.rmtree(partial, ignore_errors=True)
        told = str(getattr(error, "strerror", None) or error).split("\n", 1)[0]
        raise OutputError(f"cannot write {folder}: {told}") from error
    return folder


def load_checkpoint(folder: Path, network: TaggerNetwork) -> dict[str, Any]:
    """Give a network the weights that were trained at a checkpoint, and say what else the run had.

    Args:
        folder: The checkpoint.
        network: Of the same recipe and tags, without wrappers.

    Returns:
        What was handed to `save_checkpoint` as `training_state`.

    Raises:
        ModelError: It is not whole, or of another network.
    """
    if read_checkpoint(folder) is None:
        raise ModelError(f"{folder} is no whole checkpoint: a run cannot go on from it")
    own = folder / NETWORK_FILE
    try:
        network.load_state_dict(load_file(own if own.is_file() else folder / WEIGHTS_FILE))
        state: dict[str, Any] = torch.load(
            folder / STATE_FILE, map_location="cpu", weights_only=True
        )
    except Exception as error:  # of torch and of safetensors, in whatever part is damaged
        told = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
        raise ModelError(f"cannot go on from {folder}: {told}") from error
    return state


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """What a folder says of itself; None when it is no checkpoint of a run, or not whole."""
    try:
        table = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        sizes = dict(table["files"])
        if any((folder / name).stat().st_size != size for name, size in sizes.items()):
            return None
        return Checkpoint(folder, int(table["samples"]), dict(table["metrics"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def whole_checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a run that are whole, the earliest first."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return []
    found = []
    for name in names:
        if name.startswith("."):
            # Killed between two renamings: the one that was to be replaced is all that there is.
            is_last = name.endswith(_REPLACED) and name[1 : -len(_REPLACED)] not in names
            if not is_last:
                continue
        if checkpoint := read_checkpoint(folder / name):
            found.append(checkpoint)
    return sorted(found, key=lambda checkpoint: checkpoint.samples)


def latest(folder: Path) -> Path | None:
    """The checkpoint of a run from which it goes on; None before the first."""
    found = whole_checkpoints(folder)
    return found[-1].folder if found else None


class Checkpoints:
    """The checkpoints of one run, of which the last ones and the best stay.

    Args:
        folder: Of the run; each checkpoint is a folder in it.
        keep: How many of the last ones stay, 1 or more.
        metric: What says which is the best; empty keeps no best one.
        is_higher_better: Whether more of the metric is better.
    """

    def __init__(
        self, folder: Path, keep: int = 2, metric: str = "", *, is_higher_better: bool = True
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, but got {keep}")
        self.folder = folder
        self._keep = keep
        self._metric = metric
        self._sign = 1.0 if is_higher_better else -1.0

    def save(self, samples: int, network: TaggerNetwork, tags: Sequence[str], **more: Any) -> Path:
        """Write the checkpoint after so many samples, then remove those that need not stay.

        Args:
            samples: Images that were seen before it.
            network: As for `save_checkpoint`, like the rest.
            tags: As there.
            more: As there; `training_state` must be given.

        Raises:
            UsageError: As there.
            OutputError: As there.
        """
        state = more.pop("training_state")
        path = self.folder / f"{_PREFIX}{samples}"
        try:
            self._restore()
            save_checkpoint(path, network, tags, training_state=state, samples=samples, **more)
            self._tidy(path)
        except OSError as error:
            raise OutputError(f"cannot write {self.folder}: {error.strerror or error}") from error
        return path

    def latest(self) -> Path | None:
        """The one from which the run goes on."""
        return latest(self.folder)

    def best(self) -> Path | None:
        """The best by the metric, the last of several; None when it was never measured."""
        found = [
            (self._sign * value, one.samples, one.folder)
            for one in whole_checkpoints(self.folder)
            if not math.isnan(value := one.metrics.get(self._metric, math.nan))
        ]
        return max(found)[2] if found else None

    def _tidy(self, written: Path) -> None:
        """Remove what is neither among the last, nor the best, nor the one just written."""
        whole = [one.folder for one in whole_checkpoints(self.folder)]
        staying = {*whole[-self._keep :], self.best(), written}
        for path in whole:
            if path not in staying:
                _remove(path)

    def _restore(self) -> None:
        """Finish what a killed process had begun."""
        if not self.folder.is_dir():
            return
        for path in list(self.folder.iterdir()):
            if not path.name.startswith("."):
                continue
            if path.name.endswith(_REPLACED):
                own = path.with_name(path.name[1 : -len(_REPLACED)])
                if not own.exists():
                    path.rename(own)
                    continue
            if path.name.endswith((_REPLACED, _REMOVED, _PARTIAL)):
                shutil.rmtree(path, ignore_errors=True)


def _tag_files(
    tags: Sequence[str],
    categories: Sequence[str] | None,
    thresholds: Mapping[str, float | Sequence[float]],
) -> dict[str, str]:
    """`top_tags.txt`, and the table with what else is known of the tags."""
    wrong = [tag for tag in tags if not tag or tag != tag.strip() or "\n" in tag or "\r" in tag]
    if wrong:
        raise UsageError(f"the tag {wrong[0]!r} cannot stand on a line of {TAGS_FILE}")
    each = {
        preset: (float(value),) * len(tags) if isinstance(value, float | int) else tuple(value)
        for preset, value in thresholds.items()
    }
    each = {
        # As short as tells the same float32: with fewer digits one that is near to 0 would give a tag to all images.
        preset: tuple(float(str(np.float32(one))) for one in values)
        for preset, values in each.items()
    }
    try:
        vocabulary = Vocabulary(tuple(tags), tuple(categories or ("",) * len(tags)), each)
    except ValueError as error:
        raise UsageError(f"the tags make no vocabulary: {error}") from error
    files = {TAGS_FILE: "\n".join(tags) + "\n"}
    if each or categories:
        files[TABLE_FILE] = vocabulary_text(vocabulary)
    return files


def _card(
    folder: Path,
    network: TaggerNetwork,
    preprocess: PreprocessSpec,
    thresholds: Mapping[str, float | Sequence[float]] | None,
    about: Mapping[str, str] | None,
) -> str:
    about = about or {}
    one_for_all = {
        preset: {"*": float(value)}
        for preset, value in (thresholds or {}).items()
        if isinstance(value, float | int)
    }
    card = Card(
        name=about.get("name") or folder.parent.name or "tagger",
        version=about.get("version") or folder.name,
        family=network.family,
        licence=about.get("licence") or network.start.licence or "unknown",
        description=about.get("description") or "A tagger trained with annotary.",
        source=about.get("source", ""),
        preprocess=preprocess,
        thresholds=one_for_all or ({} if thresholds else {"balanced": {"*": 0.4}}),
        activation="sigmoid",
    )
    return card_text(card)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file(
        {name: value.detach().to("cpu").contiguous() for name, value in tensors.items()},
        path,
        metadata={"format": "pt"},
    )


def _write_manifest(folder: Path, samples: int, metrics: Mapping[str, float]) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    table = {
        "samples": samples,
        "metrics": {name: float(value) for name, value in metrics.items()},
        "files": {path.relative_to(folder).as_posix(): path.stat().st_size for path in files},
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def publish(partial: Path, folder: Path) -> None:
    """Give a finished folder its name."""
    if folder.exists():
        before = folder.with_name(f".{folder.name}{_REPLACED}")
        shutil.rmtree(before, ignore_errors=True)
        folder.rename(before)
        partial.rename(folder)
        shutil.rmtree(before, ignore_errors=True)
    else:
        partial.rename(folder)
    _sync(folder.parent)


def _remove(folder: Path) -> None:
    """Remove a checkpoint, which at no moment looks whole and lacks something."""
    going = folder.with_name(f".{folder.name.lstrip('.')}{_REMOVED}")
    shutil.rmtree(going, ignore_errors=True)
    folder.rename(going)
    shutil.rmtree(going, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # folders cannot be opened on every system
        return
    try:
        os.fsync(descriptor)
    except OSError:  # nor waited for
        pass
    finally:
        os.close(descriptor)
