"""What stands in a pipeline's TOML as the options that steps have: fields by name, types and ranges checked."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, Literal, cast

from annotary.errors import UsageError

_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}

_WITHOUT_EFFECT = (
    *("timeout", "retries", "batch_size", "decoders"),
    *("threads", "device", "runtime"),
)
"""Fields on which nothing depends that is written."""


def options_from(
    records: Iterable[type], given: Mapping[str, Any], folder: Path, where: str
) -> dict[type, Any]:
    """Options from the keys of a table.

    Args:
        records: The dataclasses of the options.
        given: Field to value; fields that are not there keep their default.
        folder: Where paths that are not absolute start.
        where: The table, for messages.

    Raises:
        UsageError: A value is of another type, or out of range.
    """
    made: dict[type, Any] = {}
    for record in records:
        hints = typing.get_type_hints(record)
        own = {
            entry.name: value_from(
                hints[entry.name], _joined(entry, given[entry.name]), folder, entry.name, where
            )
            for entry in fields(cast(Any, record))
            if entry.name in given
        }
        try:
            made[record] = record(**own)
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from error
    return made


def value_from(hint: Any, value: Any, folder: Path, key: str, where: str) -> Any:
    """A value of TOML as a field has it.

    Args:
        hint: The type of the field.
        value: The value.
        folder: Where paths that are not absolute start.
        key: The name of the field, for messages.
        where: The table, for messages.

    Raises:
        UsageError: It is of another type.
    """
    hint = _inner(hint)
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        values = value if isinstance(value, list) else [value]
        return tuple(value_from(arguments[0], one, folder, key, where) for one in values)
    if typing.get_origin(hint) is Literal:
        if value in arguments and isinstance(value, str):
            return value
        raise UsageError(
            f"{where}: {key} must be one of {', '.join(arguments)}, but got {_shown(value)}"
        )
    if hint is float and type(value) is int:
        return float(value)
    if hint is Path and type(value) is str:
        return folder / value
    if type(value) is not hint:
        raise UsageError(
            f"{where}: {key} must be {_NAMES.get(hint, str(hint))}, but got {_shown(value)}"
        )
    return value


def _joined(entry: Field[Any], value: Any) -> Any:
    """A list for a field that holds several values with commas between them, as `--by text,url`, in its form."""
    is_list = "," in str(entry.metadata.get("metavar", ""))
    if is_list and isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ",".join(value)
    return value


def is_path(entry: Field[Any], record: type) -> bool:
    """Whether a field holds paths."""
    hint = _inner(typing.get_type_hints(record)[entry.name])
    return hint is Path or Path in typing.get_args(hint)


def differing(made: Mapping[type, Any]) -> dict[str, Any]:
    """The fields of options that have another value than their default, as JSON."""
    found: dict[str, Any] = {}
    for options in made.values():
        for entry in fields(options):
            value = getattr(options, entry.name)
            default = None if entry.default is MISSING else entry.default
            if value != default and entry.name not in _WITHOUT_EFFECT:
                found[entry.name] = plain(value)
    return found


def plain(value: Any) -> Any:
    """A value of a field as JSON."""
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def with_underscores(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Keys as fields are called: `target-size` is `target_size`.

    Raises:
        UsageError: One is there in both ways.
    """
    found: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name in found:
            raise UsageError(f"{where}: {name} is there twice, with _ and with -")
        found[name] = value
    return found


def check_keys(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse keys that nothing answers to.

    Raises:
        UsageError: There is one; the message lists the known ones.
    """
    known = list(known)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            meant = f", did you mean {near[0]}? Known" if near else "; known"
            raise UsageError(f"{where}: unknown key {key!r}{meant}: {', '.join(known)}")


def _inner(hint: Any) -> Any:
    """The type of a field that may also be None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (inner,) = (one for one in typing.get_args(hint) if one is not type(None))
        return inner
    return hint


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
