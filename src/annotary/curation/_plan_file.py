"""The TOML of a pipeline as steps with their options; whatever is wrong in it is told with the step and the key."""

from __future__ import annotations

import glob
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from annotary.curation._plan_notes import shown
from annotary.curation._plan_steps import KINDS, SPREAD, Kind
from annotary.curation._plan_values import (
    check_keys,
    differing,
    is_path,
    options_from,
    plain,
    value_from,
    with_underscores,
)
from annotary.curation.steps import StepOptions
from annotary.curation.tables import first_line
from annotary.errors import UsageError
from annotary.models._finding import FOLDER_PREFIX
from annotary.sources._paths import reason

_TOP = ("tables", "output", "step")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step of a pipeline.

    Attributes:
        name: Of its folder, such as `2-dedup`.
        use: Of its kind.
        where: It, for messages.
        options: The options of the kind by their class.
        more: Values of keys that are no fields of these.
        paths: The files and folders that its options name.
        spread: Options of how the work is spread, which say nothing about what comes out.
    """

    name: str
    use: str
    where: str
    options: Mapping[type, Any]
    more: Mapping[str, Any]
    paths: Mapping[str, Sequence[str]]
    spread: Mapping[str, Any]

    @property
    def kind(self) -> Kind:
        """Its kind."""
        return KINDS[self.use]

    @property
    def told(self) -> dict[str, Any]:
        """What its options say that is not the default, as JSON."""
        more = {key: plain(value) for key, value in self.more.items() if value is not None}
        return {**differing(self.options), **more}


@dataclass(frozen=True, slots=True)
class Plan:
    """A pipeline as it is declared.

    Attributes:
        file: Where.
        tables: What the first step reads, as absolute paths.
        output: The folder of all steps.
        steps: The steps, in order.
    """

    file: Path
    tables: tuple[Path, ...]
    output: Path
    steps: tuple[PlannedStep, ...]

    def place_of(self, step: str) -> int:
        """The place of a step, from 0, by its number from 1, its folder's name, or its own name.

        Raises:
            UsageError: There is none, or there are several.
        """
        names = [one.name for one in self.steps]
        found = [
            place
            for place, name in enumerate(names)
            if step in (name, str(place + 1), name.partition("-")[2])
        ]
        if len(found) == 1:
            return found[0]
        told = "there is no step" if not found else "there are several steps"
        raise UsageError(f"{self.file}: {told} {step!r}; the steps are {', '.join(names)}")


def read_plan(file: str | os.PathLike[str]) -> Plan:
    """A pipeline from its TOML.

    Raises:
        UsageError: It cannot be read, or says something that no step has; the message tells the step and the key.
    """
    file = Path(file)
    try:
        content = tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{file}: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} is no TOML: {first_line(error)}") from error
    given = with_underscores(content, str(file))
    check_keys(given, _TOP, str(file))
    for key in _TOP:
        if key not in given:
            hint = "[[step]]" if key == "step" else f'{key} = "…"'
            raise UsageError(f"{file} has no {key}; say {hint}")
    folder = Path(os.path.abspath(file)).parent  # noqa: PTH100 - a link stays what it is
    tables = value_from(tuple[str, ...], given["tables"], folder, "tables", str(file))
    output = value_from(Path, given["output"], folder, "output", str(file))
    steps = given["step"]
    if not isinstance(steps, list) or not all(isinstance(one, dict) for one in steps) or not steps:
        raise UsageError(f"{file}: steps are written as [[step]], one for each")
    planned = tuple(
        _planned_step(number, one, folder, f"{file}: step {number}")
        for number, one in enumerate(steps, 1)
    )
    return Plan(file, tuple(_globbed(tables, folder, file)), output, planned)


def _planned_step(number: int, given: Mapping[str, Any], folder: Path, where: str) -> PlannedStep:
    """A step from its table.

    Raises:
        UsageError: It says something that no such step has.
    """
    given = with_underscores(given, where)
    use = given.pop("use", None)
    if use is None:
        raise UsageError(f'{where} says no use; say use = "…", one of {", ".join(KINDS)}')
    if not isinstance(use, str) or use not in KINDS:
        raise UsageError(f"{where}: unknown use {use!r}; known: {', '.join(KINDS)}")
    kind, where = KINDS[use], f"{where} ({use})"
    name = given.pop("name", use)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"{where}: name must be of letters, digits, -, _ and ., but got {shown(name)}"
        )
    check_keys(given, kind.keys(), where)
    classes = kind.classes()
    options = options_from(
        classes, {key: one for key, one in given.items() if key not in kind.more}, folder, where
    )
    more = {
        key: _placed(value_from(hint, given[key], folder, key, where), folder)
        for key, hint in kind.more.items()
        if key in given
    }
    options = {
        record: _with_places(one, kind.paths, set(given), folder) for record, one in options.items()
    }
    spread = {key: given[key] for key in SPREAD if kind.is_spread and key in given}
    options_from((StepOptions,), spread, folder, where)
    return PlannedStep(
        *(f"{number}-{name}", use, where, options, more),
        paths=_paths_of(options, more, kind),
        spread=spread,
    )


def _placed(value: Any, folder: Path) -> Any:
    """A model in a folder, as `dir:models/one`, with its whole path; what else there is as it is."""
    if isinstance(value, str) and value.startswith(FOLDER_PREFIX):
        return FOLDER_PREFIX + str(folder / value.removeprefix(FOLDER_PREFIX))
    return value


def _with_places(options: Any, names: Sequence[str], given: set[str], folder: Path) -> Any:
    """Options of which texts that name files are absolute."""
    changed: dict[str, Any] = {}
    for name in names:
        value = getattr(options, name, None)
        if name in given and value is not None:
            one = [value] if isinstance(value, str) else value
            placed = tuple(text if text == "none" else str(folder / text) for text in one)
            changed[name] = placed[0] if isinstance(value, str) else placed
    for entry in fields(options):
        if entry.name in given:
            placed = _placed(getattr(options, entry.name), folder)
            if placed != getattr(options, entry.name):
                changed[entry.name] = placed
    return replace(options, **changed) if changed else options


def _paths_of(
    options: Mapping[type, Any], more: Mapping[str, Any], kind: Kind
) -> dict[str, list[str]]:
    """The files and folders that options name, by their keys."""
    found: dict[str, Any] = {key: value for key, value in more.items() if isinstance(value, Path)}
    for key, value in more.items():
        if isinstance(value, str) and value.startswith(FOLDER_PREFIX):
            found[key] = value.removeprefix(FOLDER_PREFIX)
    for record, one in options.items():
        for entry in fields(one):
            value = getattr(one, entry.name)
            if entry.name in kind.paths or is_path(entry, record):
                found[entry.name] = value
            elif isinstance(value, str) and value.startswith(FOLDER_PREFIX):
                found[entry.name] = value.removeprefix(FOLDER_PREFIX)
    listed = {}
    for key, value in found.items():
        paths = value if isinstance(value, tuple) else (value,)
        named = [str(path) for path in paths if path is not None and str(path) != "none"]
        if named:
            listed[key] = named
    return listed


def _globbed(tables: Sequence[str], folder: Path, file: Path) -> Iterator[Path]:
    """The tables of a pipeline, with patterns such as `pairs/*.parquet` as what they match.

    Raises:
        UsageError: A pattern matches nothing.
    """
    for name in tables:
        path = str(folder / name)
        if os.path.exists(path) or not glob.has_magic(name):  # noqa: PTH110
            yield Path(path)
            continue
        found = sorted(glob.glob(name, root_dir=folder, recursive=True))  # noqa: PTH207
        if not found:
            raise UsageError(f"{file}: no file is called as {name!r} says")
        yield from (folder / one for one in found)
