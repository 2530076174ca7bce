"""The files of fine-tuned vision networks, and of the backbones that they are made of."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from annotary import hub
from annotary.cards import PreprocessSpec
from annotary.errors import ModelError, UsageError
from annotary.models._checkpoint_files import CONFIG_FILE, read_json, weight_files
from annotary.models._checkpoint_preprocess import PREPROCESSOR_FILE, PROCESSOR_FILE

Pooling = Literal["pooled", "mean", "both", "stages"]
"""What a head reads: the network's own summary, the mean of its patches' tokens, one after the other, or mean and
spread of several stages of a convolutional network."""

TAGGER_FILE = "tagger.json"
"""What the head reads, and how images are prepared; it tells a fine-tuned network from what it was made of."""

WEIGHTS_FILE = "model.safetensors"


def tagger_text(pooling: str, preprocess: PreprocessSpec) -> str:
    """The text of a `tagger.json`."""
    table = {"pooling": pooling, "preprocess": asdict(preprocess)}
    return json.dumps(table, indent=1) + "\n"


def read_tagger(directory: Path) -> tuple[Pooling, PreprocessSpec]:
    """What a `tagger.json` says: what the head reads, and how images are prepared.

    Raises:
        ModelError: It cannot be read, or says what makes no sense.
    """
    path = directory / TAGGER_FILE
    table: Mapping[str, Any] = read_json(path)
    try:
        pooling = table["pooling"]
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling must be pooled, mean, both or stages, but got {pooling!r}")
        return pooling, PreprocessSpec.from_table(table["preprocess"])
    except (TypeError, KeyError, ValueError) as error:
        told = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"{path}: {told}") from error


def backbone_directory(name: str) -> Path:
    """Where a backbone is; one of the hub that is not on this machine is fetched.

    Args:
        name: A folder, with or without `dir:` before it, or a repository `owner/name[@revision]`, also after `hf:`.

    Raises:
        UsageError: There is none.
        ModelError: It cannot be fetched.
    """
    path = Path(name.removeprefix("dir:"))
    if path.is_dir():
        return path
    if name.startswith("dir:"):
        raise UsageError(f"there is no folder {path} to start from")
    repository = hub.Repository.parse(name)
    snapshot = hub.on_disk(repository)
    if snapshot is not None:
        here = [entry.name for entry in snapshot.directory.iterdir()]
        needed = _backbone_files(here)
        if needed and all((snapshot.directory / file).is_file() for file in needed):
            return snapshot.directory
    if hub.is_offline():
        raise ModelError(
            f"{repository} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it"
        )
    listing = hub.list_files(repository)
    needed = _backbone_files(tuple(listing.sizes))
    if not needed:
        raise UsageError(
            f"{repository} is no backbone: it needs {CONFIG_FILE}, {PREPROCESSOR_FILE} and {WEIGHTS_FILE}"
        )
    told = f"{sum(listing.sizes[file] for file in needed) / 1e6:.1f} MB"
    licence = listing.licence or "no licence is stated"
    sys.stderr.write(f"annotary: fetching {repository} ({licence}): {', '.join(needed)}, {told}\n")
    found = hub.fetch(repository, listing, dict.fromkeys(needed, ""))
    hub.note(repository, found)
    return found.directory


def _backbone_files(names: Collection[str]) -> tuple[str, ...]:
    """Settings and weights; none where something is missing."""
    settings = [name for name in (PREPROCESSOR_FILE, PROCESSOR_FILE) if name in names][:1]
    weights = weight_files(names)
    if CONFIG_FILE not in names or not settings or not weights:
        return ()
    return (CONFIG_FILE, *settings, *weights)
