"""Which files of a Hugging Face checkpoint hold what, by their names, and how its settings are read."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from annotary.errors import ModelError

CONFIG_FILE = "config.json"
"""Its `model_type` tells families apart whose files have the same names."""

TOKENIZER_FILE = "tokenizer.json"
BYTE_PAIR_FILES = ("vocab.json", "merges.txt")
SENTENCEPIECE_FILE = "spiece.model"
SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json")

_SAFE_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_PICKLED_WEIGHTS = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
_INDEX = "{}.index.json"


def tokenizer_files(names: Collection[str]) -> tuple[str, ...]:
    """A tokenizer and its settings; none where there is no tokenizer."""
    settings = [name for name in SETTINGS_FILES if name in names]
    for needed in (
        (TOKENIZER_FILE,),
        BYTE_PAIR_FILES,
        (SENTENCEPIECE_FILE,),
    ):
        if set(needed) <= set(names):
            return (*needed, *settings)
    return ()


def weight_files(names: Collection[str]) -> tuple[str, ...]:
    """Weights for torch: in one file, or in several with a list of what is where."""
    for whole, pattern in (
        ("model.safetensors", _SAFE_WEIGHTS),
        ("pytorch_model.bin", _PICKLED_WEIGHTS),
    ):
        if whole in names:
            return (whole,)
        index = _INDEX.format(whole)
        if index in names:
            return (index, *sorted(name for name in names if pattern.fullmatch(name)))
    return ()


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
        ModelError: It cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no table of settings")
    return found
