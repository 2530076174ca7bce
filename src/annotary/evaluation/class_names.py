"""What the classes of a dataset are called: one or several names for each folder or number."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from annotary.errors import UsageError
from annotary.tasks.label_sets import LabelClass, filled

Names = Mapping[str, tuple[str, ...]]
"""Class, as the dataset calls it, to one or several names."""


def named_classes(
    classes: Sequence[str], told: Path | None, templates: Sequence[str]
) -> tuple[tuple[LabelClass, ...], Names]:
    """The classes of a dataset as labels with prompts, and their names.

    Args:
        classes: As the dataset calls them.
        told: A file of names. JSON or YAML: a table of classes and names, or a list of names. CSV or TSV: the class and
            behind it its names. All else: a name on each line, or a class, a tab and its names with tabs between them.
            A list goes with the classes that it names itself; else, by their number, with classes that are whole
            numbers; else with the classes in the order of the alphabet, of which there must be as many. Without a file
            a class is its name, with spaces for underscores.
        templates: What names are put in. Names times templates are averaged.

    Returns:
        Labels that are named as the dataset calls them, in the order of the file, and what they are called.

    Raises:
        UsageError: The file cannot be read, or does not name all classes.
    """
    if told is None:
        names: dict[str, tuple[str, ...]] = {
            name: (_readable(name.replace("_", " ").strip() or name),) for name in classes
        }
    else:
        try:
            names = _matched(classes, _read(told))
        except OSError as error:
            raise UsageError(f"{told}: {error.strerror}") from error
        except (ValueError, TypeError, RecursionError, csv.Error) as error:
            raise UsageError(f"{told}: {error}") from error
    labels = tuple(LabelClass(name, prompts) for name, prompts in names.items())
    return filled(labels, templates), names


def _readable(name: str) -> str:
    """The name of a folder, which need not be UTF-8, as text that any model can read."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _matched(
    classes: Sequence[str], told: dict[str, tuple[str, ...]] | list[tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """Names by class."""
    if isinstance(told, dict):
        if lacking := [name for name in classes if name not in told]:
            listed = ", ".join(map(repr, lacking[:5])) + (", ..." if len(lacking) > 5 else "")
            raise ValueError(f"it does not name the class{'es' * (len(lacking) > 1)} {listed}")
        return told
    firsts = {names[0]: names for names in told}
    if all(name in firsts for name in classes):
        return firsts
    if all(name.isdecimal() for name in classes):
        if max(map(int, classes)) >= len(told):
            raise ValueError(
                f"it has {len(told)} names, but there is a class {max(classes, key=int)}"
            )
        return {str(number): names for number, names in enumerate(told)}
    if len(told) != len(classes):
        raise ValueError(
            f"it lists {len(told)} names for {len(classes)} classes; name the class of each, as in 'n01440764: tench'"
        )
    return dict(zip(classes, told, strict=True))


def _read(path: Path) -> dict[str, tuple[str, ...]] | list[tuple[str, ...]]:
    suffix = path.suffix.lower()
    if suffix in (".json", ".yaml", ".yml"):
        return _structured(path)
    if suffix in (".csv", ".tsv"):
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t" if suffix == ".tsv" else ","))
        if rows and [cell.strip().lower() for cell in rows[0][:2]] == ["class", "name"]:
            rows = rows[1:]
    else:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        rows = [line.split("\t") for line in lines]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    return _of_rows([row for row in cells if row])


def _of_rows(rows: Sequence[Sequence[str]]) -> dict[str, tuple[str, ...]] | list[tuple[str, ...]]:
    if not rows:
        raise ValueError("it is empty")
    if all(len(row) == 1 for row in rows):
        return [(row[0],) for row in rows]
    found: dict[str, tuple[str, ...]] = {}
    for row in rows:
        if len(row) < 2:
            raise ValueError(f"the class {row[0]!r} has no name")
        _add(found, row[0], tuple(row[1:]))
    return found


def _structured(path: Path) -> dict[str, tuple[str, ...]] | list[tuple[str, ...]]:
    import yaml

    text = path.read_text(encoding="utf-8-sig")
    try:
        value = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    if isinstance(value, Mapping) and value:
        found: dict[str, tuple[str, ...]] = {}
        for key, names in value.items():
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise TypeError(f"a class must be text or a whole number, but got {key!r}")
            _add(found, str(key), _names(names))
        return found
    if isinstance(value, list) and value:
        return [_names(names) for names in value]
    raise TypeError("it must be a table of classes and names, or a list of names")


def _names(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(name, str) and name.strip() for name in names)
    ):
        raise TypeError(f"a class has one name or a list of names, but got {value!r}")
    return tuple(name.strip() for name in names)


def _add(found: dict[str, tuple[str, ...]], key: str, names: tuple[str, ...]) -> None:
    if key in found:
        raise ValueError(f"the class {key!r} is there twice")
    found[key] = names
