"""Networks of transformers with the weights of a directory.

Weights come from files in the directory alone: safetensors, or `pytorch_model.bin` of which nothing is executed. No
code of a repository is run, and no connection is opened. Weights that are missing, or of other shapes than
`config.json` says, are an error here, where transformers goes on with random ones and a warning.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from annotary.errors import MissingExtra, ModelError

_NAMED_AT_MOST = 5
_NUMBER = re.compile(r"(\blayers?\.)\d+(?=\.)")


def load_network(directory: Path, kind: str, settings: Mapping[str, Any] | None = None) -> Any:
    """A network in float32, ready to be asked.

    Args:
        directory: With `config.json` and weights.
        kind: The name of its class in transformers, such as `CLIPModel`.
        settings: What differs from `config.json`, or what else the class is made with.

    Raises:
        MissingExtra: transformers is not installed.
        ModelError: The weights are missing, damaged, or are not those of the config.
    """
    transformers = _library()
    safe = ("model.safetensors", "model.safetensors.index.json")
    is_safe = any((directory / name).is_file() for name in safe)
    with quiet():
        try:
            model, told = getattr(transformers, kind).from_pretrained(
                directory,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=is_safe,
                weights_only=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # they are named below
                output_loading_info=True,
                **(settings or {}),
            )
        except Exception as error:  # transformers raises whatever its parts raise
            told_error = _first_line(error)
            raise ModelError(f"transformers cannot load {directory}: {told_error}") from error
    wrong = {
        "lack": told.get("missing_keys"),
        "have other shapes than config.json says for": told.get("mismatched_keys"),
        "have more layers than config.json says:": _surplus(told.get("unexpected_keys"), model),
    }
    for what, keys in wrong.items():
        if keys:
            raise ModelError(f"the weights of {directory} {what} {_listed(keys)}")
    return model.eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars and warnings of transformers on the terminal; what matters of them is an error here."""
    transformers = _library()
    logger = logging.getLogger("transformers")
    before, bars = logger.level, transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(before)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("Image-text checkpoints in torch", "torch") from error
    return transformers


def _surplus(keys: Any, model: Any) -> list[str]:
    """Keys of layers that the network lacks, and of which it has the first: without them it would be another one.

    Other weights that it does not take, such as those of another task, may stand in a file.
    """
    known = model.state_dict().keys()
    return [
        key for key in keys or () if _NUMBER.search(key) and _NUMBER.sub(r"\g<1>0", key) in known
    ]


def _listed(keys: Any) -> str:
    names = sorted(key[0] if isinstance(key, tuple) else str(key) for key in keys)
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(names[:_NAMED_AT_MOST]) + more


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
