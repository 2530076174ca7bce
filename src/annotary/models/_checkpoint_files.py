"""Which files of a Hugging Face checkpoint hold what, by their names alone."""

from __future__ import annotations

import re
from collections.abc import Collection

from annotary.models import _tokens

_SAFE_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_PICKLED_WEIGHTS = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
_INDEX = "{}.index.json"


def tokenizer_files(names: Collection[str]) -> tuple[str, ...]:
    """A tokenizer and its settings; none where there is no tokenizer."""
    settings = [name for name in _tokens.SETTINGS_FILES if name in names]
    for needed in (
        (_tokens.TOKENIZER_FILE,),
        _tokens.BYTE_PAIR_FILES,
        (_tokens.SENTENCEPIECE_FILE,),
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
