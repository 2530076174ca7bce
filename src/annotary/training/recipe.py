"""Recipes of taggers: everything that a training run depends on besides its images, read from TOML.

A recipe is a file, or one of those that ship (`recipes/*.toml`). It may say ``extends = "joytag"`` and then holds only
what differs. Every key is a field of a dataclass of `_recipe_tables.py`; a key that nothing answers to, or a value out
of range, is an error that names the file, the table and the key. The values of the recipe `joytag` are those of
fpgaminer/joytag's ``training/train/Train.py`` and of the command that its notes give.
"""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast

from annotary.errors import UnknownName, UsageError
from annotary.training._recipe_tables import (
    AugmentationRecipe,
    AveragingRecipe,
    CheckpointsRecipe,
    DataRecipe,
    LogsRecipe,
    LossRecipe,
    NetworkRecipe,
    OptimiserRecipe,
    PrecisionRecipe,
    ScheduleRecipe,
    StageRecipe,
    ValidationRecipe,
)
from annotary.training.probe_recipe import ProbeRecipe

__all__ = [
    "AugmentationRecipe",
    "AveragingRecipe",
    "CheckpointsRecipe",
    "DataRecipe",
    "LogsRecipe",
    "LossRecipe",
    "NetworkRecipe",
    "OptimiserRecipe",
    "PrecisionRecipe",
    "ScheduleRecipe",
    "StageRecipe",
    "TaggerRecipe",
    "ValidationRecipe",
    "changes",
    "read_recipe",
    "recipe_names",
    "unheeded_keys",
]


@dataclass(frozen=True)
class TaggerRecipe:
    """How a tagger is trained.

    Attributes:
        name: Of the recipe, and of the tagger.
        description: What it is, in a sentence.
        needs_start: Whether a run that starts from chance is refused, as what it does is to go on from a network.
        stages: The parts of the run, in order.
    """

    name: str = "tagger"
    description: str = ""
    needs_start: bool = False
    data: DataRecipe = field(default_factory=DataRecipe)
    network: NetworkRecipe = field(default_factory=NetworkRecipe)
    optimiser: OptimiserRecipe = field(default_factory=OptimiserRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    augmentation: AugmentationRecipe = field(default_factory=AugmentationRecipe)
    loss: LossRecipe = field(default_factory=LossRecipe)
    precision: PrecisionRecipe = field(default_factory=PrecisionRecipe)
    averaging: AveragingRecipe = field(default_factory=AveragingRecipe)
    validation: ValidationRecipe = field(default_factory=ValidationRecipe)
    checkpoints: CheckpointsRecipe = field(default_factory=CheckpointsRecipe)
    logs: LogsRecipe = field(default_factory=LogsRecipe)
    stages: tuple[StageRecipe, ...] = (StageRecipe(),)

    def __post_init__(self) -> None:
        """Check what the tables must agree on."""
        if not self.stages:
            raise ValueError("stages must hold at least one")
        for number, stage in enumerate(self.stages, 1):
            is_new = self.network.kind == "joytag" and not self.network.start
            if is_new and stage.image_size % self.network.patch_size:
                raise ValueError(
                    f"stages.{number}.image_size {stage.image_size} must be a multiple of"
                    f" network.patch_size {self.network.patch_size}"
                )

    def check_start(self) -> None:
        """Make sure that a new run has what to start from.

        Raises:
            UsageError: The recipe needs a network, and none is said.
        """
        if self.needs_start and not self.network.start:
            raise UsageError(
                f"recipe {self.name} fine-tunes, so say what it starts from: --set network.start=dir:CHECKPOINT, or"
                " network.start=joytag"
            )

    def sizes_of(self, stage: int) -> tuple[int, int]:
        """The batch of a stage, counted from 0, and how much of it a process takes at most at a time."""
        one = self.stages[stage]
        batch = one.batch_size or self.data.batch_size
        return batch, min(one.device_batch_size or self.data.device_batch_size, batch)

    def settings(self) -> dict[str, Any]:
        """All values, as JSON."""
        told = asdict(self)
        del told["needs_start"]  # it is of the recipe and not of the run
        told["stages"] = [asdict(stage) for stage in self.stages]
        told["optimiser"]["betas"] = list(self.optimiser.betas)
        return told


_WITHOUT_EFFECT = (
    *("name", "description", "logs", "checkpoints", "validation", "data.workers", "data.cache_mb"),
    *("data.device_batch_size", "network.gradient_checkpointing", "precision.compile"),
    *("precision.strategy", "precision.tf32"),
)
"""What may change while a run goes on: what is learned does not depend on it, or only by the rounding."""


_ARCHITECTURE = (
    *("network.num_blocks", "network.patch_size", "network.d_model", "network.mlp_dim"),
    *("network.num_heads", "network.cnn_stem"),
)
"""What a network has of its own that training starts from."""


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the settings of two recipes so that one cannot go on with the other's run, in words."""
    old, new = _flat(before), _flat(now)
    # Runs that are older than a key were made as its default says.
    defaults = TaggerRecipe() if "data" in before else ProbeRecipe()
    old = {**_flat(defaults.settings()), **old}
    return [
        f"{key} was {_shown(old.get(key))} and is now {_shown(new.get(key))}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and not _is_without_effect(key)
    ]


def _is_without_effect(key: str) -> bool:
    if key.startswith("stages.") and key.endswith(".device_batch_size"):
        return True
    return any(key == one or key.startswith(one + ".") for one in _WITHOUT_EFFECT)


def _flat(value: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested tables as one, with the keys that `--set` takes."""
    found: dict[str, Any] = {}
    for key, one in value.items():
        if isinstance(one, Mapping):
            found |= _flat(one, f"{before}{key}.")
        elif isinstance(one, list) and one and isinstance(one[0], Mapping):
            for number, entry in enumerate(one, 1):
                found |= _flat(entry, f"{before}{key}.{number}.")
        else:
            found[before + key] = one
    return found


def recipe_names() -> list[str]:
    """The recipes that ship."""
    folder = resources.files("annotary.training") / "recipes"
    return sorted(
        one.name.removesuffix(".toml") for one in folder.iterdir() if one.name.endswith(".toml")
    )


def read_recipe(source: str | Path, changed: Sequence[str] = ()) -> TaggerRecipe:
    """A recipe by its name or its file.

    Args:
        source: A name of `recipe_names`, or a path, which ends in `.toml`.
        changed: Values in place of the file's, such as `optimiser.learning_rate=1e-3` or `stages.1.samples=1000`.

    Raises:
        UsageError: It cannot be read, or says something that no recipe has; the message tells the file and the key.
    """
    content, where = _read(source, ())
    for one in changed:
        _change(content, one)
    known = {entry.name: entry for entry in fields(TaggerRecipe)}
    _check_keys(content, known, where)
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(TaggerRecipe)
    for key, value in content.items():
        if key == "stages":
            values[key] = _stages(value, where)
        elif hints[key] in (str, bool):
            values[key] = _value(hints[key], value, where, key)
        else:
            values[key] = _table(hints[key], value, f"{where}: [{key}]")
    values.setdefault("name", Path(source).stem)
    try:
        return TaggerRecipe(**values)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


def unheeded_keys(
    recipe: TaggerRecipe, source: str | Path, changed: Sequence[str] = ()
) -> list[str]:
    """The keys that a recipe's user has said without effect.

    Of a network that training starts from, the architecture is taken over.

    Args:
        recipe: What was read.
        source: As for `read_recipe`. What a recipe that ships says is not its user's.
        changed: As there.
    """
    if not recipe.network.start:
        return []
    said = {one.partition("=")[0].strip().replace("-", "_") for one in changed}
    while not isinstance(source, str) or source.endswith(".toml"):
        text, _, folder = _text(source)
        content = tomllib.loads(text)
        said |= {f"network.{key.replace('-', '_')}" for key in content.get("network", {})}
        parent = content.get("extends", "")
        source = folder / parent if parent.endswith(".toml") else str(parent)
    return [key for key in _ARCHITECTURE if key in said]


def _read(source: str | Path, seen: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """What a recipe says, with what it extends beneath it, and its name for messages."""
    text, where, folder = _text(source)
    if where in seen:
        raise UsageError(f"{where}: extends leads in a circle: {' -> '.join((*seen, where))}")
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where} is no TOML: {str(error).splitlines()[0]}") from error
    parent = content.pop("extends", None)
    if parent is None:
        return content, where
    if not isinstance(parent, str):
        raise UsageError(f"{where}: extends must be a text, but got {_shown(parent)}")
    below, _ = _read(folder / parent if parent.endswith(".toml") else parent, (*seen, where))
    merged = {key: value for key, value in below.items() if key not in ("name", "description")}
    for key, value in content.items():
        old = merged.get(key)
        is_table = isinstance(value, dict) and isinstance(old, dict)
        merged[key] = {**old, **value} if is_table and old is not None else value
    return merged, where


def _text(source: str | Path) -> tuple[str, str, Path]:
    """The text of a recipe, its name for messages, and the folder that its paths start from."""
    if isinstance(source, str) and not source.endswith(".toml"):
        names = recipe_names()
        if source not in names:
            raise UnknownName("recipe", source, names)
        place = resources.files("annotary.training") / "recipes" / f"{source}.toml"
        return place.read_text(encoding="utf-8"), f"recipe {source}", Path()
    path = Path(source)
    try:
        return path.read_bytes().decode("utf-8-sig"), str(path), path.parent
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8") from error
    except OSError as error:
        known = ", ".join(recipe_names())
        raise UsageError(
            f"{path}: {error.strerror or error}; recipes that ship: {known}"
        ) from error


def _change(content: dict[str, Any], told: str) -> None:
    """Put a value of `--set` in its place."""
    path, is_one, text = told.partition("=")
    if not is_one or not path.strip():
        raise UsageError(f"--set {told}: say KEY=VALUE, such as optimiser.learning_rate=1e-3")
    keys = path.strip().replace("-", "_").split(".")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = _loose(text.strip())
    place: Any = content
    for key in keys[:-1]:
        if isinstance(place, list):
            if not key.isdecimal() or not 1 <= int(key) <= len(place):
                raise UsageError(f"--set {told}: stages are numbered from 1 to {len(place)}")
            place = place[int(key) - 1]
        else:
            place = place.setdefault(key, {})
        if not isinstance(place, dict | list):
            raise UsageError(f"--set {told}: {key} is no table")
    if isinstance(place, list):
        raise UsageError(f"--set {told}: say which stage and key, such as stages.1.samples")
    place[keys[-1]] = value


def _loose(text: str) -> Any:
    """What TOML does not take for a value: a number such as .9, or a text without quotation marks."""
    try:
        return float(text)
    except ValueError:
        return text


def _stages(value: Any, where: str) -> tuple[StageRecipe, ...]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise UsageError(f"{where}: stages are written as [[stages]], one for each")
    return tuple(
        _table(StageRecipe, one, f"{where}: [[stages]] {number}")
        for number, one in enumerate(value, 1)
    )


def _table(record: type[Any], value: Any, where: str) -> Any:
    """A table of TOML as its dataclass."""
    if not isinstance(value, dict):
        raise UsageError(f"{where} must be a table, but got {_shown(value)}")
    given = {key.replace("-", "_"): one for key, one in value.items()}
    hints = typing.get_type_hints(record)
    _check_keys(given, [entry.name for entry in fields(cast(Any, record))], where)
    try:
        return record(**{key: _value(hints[key], one, where, key) for key, one in given.items()})
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _value(hint: Any, value: Any, where: str, key: str) -> Any:
    """A value of TOML as a field has it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (one for one in typing.get_args(hint) if one is not type(None))
    if typing.get_origin(hint) is tuple:
        values = value if isinstance(value, list) else [value]
        return tuple(_value(typing.get_args(hint)[0], one, where, key) for one in values)
    if typing.get_origin(hint) is Literal:
        known = typing.get_args(hint)
        if value in known:
            return value
        raise UsageError(
            f"{where}: {key} must be one of {', '.join(known)}, but got {_shown(value)}"
        )
    if hint is float and type(value) is int:
        return float(value)
    if hint is int and type(value) is float and value.is_integer():
        return int(value)  # 220e6 is easier to read than 220_000_000
    if type(value) is not hint:
        raise UsageError(f"{where}: {key} must be {_NAMES[hint]}, but got {_shown(value)}")
    return value


def _check_keys(given: Iterable[str], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            meant = f", did you mean {near[0]}?" if near else ";"
            raise UsageError(f"{where}: unknown key {key!r}{meant} known: {', '.join(known)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
