"""A room's folder is its registry: every module in it answers to its file name, and so do plugins.

A package outside of annotary joins a room with an entry point in the group `annotary.<room>` whose name is the name
it answers to and whose value is a module with the room's contract:

    [project.entry-points."annotary.sinks"]
    my-format = "my_package.my_format"
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from annotary.errors import UnknownName, UsageError

_WORDS = {
    "sinks": "format",
    "sources": "source",
    "models": "model family",
    "cli": "command",
    "datasets": "format of datasets",
}
"""What an entry of a room is called where people read it."""


def names(room: str) -> tuple[str, ...]:
    """Everything that answers in a room, sorted; nothing of it is imported.

    Args:
        room: The folder's name ("sources", "sinks", "models", "cli").
    """
    return tuple(sorted({*_built_in(room), *_plugins(room)}))


def load(room: str, name: str) -> ModuleType:
    """Import the module that answers to a name in a room.

    Raises:
        UnknownName: Nothing answers to it; the message lists what does.
        UsageError: A plugin has the name of a module of ours, or two plugins share a name.
    """
    plugin = _plugins(room).get(name)
    if name in _built_in(room):
        if plugin is not None:
            raise UsageError(
                f"the plugin {plugin.value} wants the name {name!r} in {room}, which is taken"
            )
        return importlib.import_module(f"annotary.{room}.{name.replace('-', '_')}")
    if plugin is None:
        raise UnknownName(_WORDS.get(room, room), name, names(room))
    try:
        module = plugin.load()
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise UsageError(f"the plugin {plugin.value} cannot be loaded: {told}") from error
    if not isinstance(module, ModuleType):
        raise UsageError(f"the plugin {plugin.value} for {room} must be a module")
    return module


def source(room: str, name: str) -> str | None:
    """The text of the module of ours that answers to a name, which is not imported; None where there is no file."""
    if name not in _built_in(room):
        return None
    spec = importlib.util.find_spec(f"annotary.{room}.{name.replace('-', '_')}")
    try:
        return Path(spec.origin).read_text("utf-8") if spec and spec.origin else None
    except (OSError, UnicodeDecodeError):  # an install without source files
        return None


@cache
def _built_in(room: str) -> frozenset[str]:
    package = importlib.import_module(f"annotary.{room}")
    modules = pkgutil.iter_modules(package.__path__)
    return frozenset(
        module.name.replace("_", "-") for module in modules if not module.name.startswith("_")
    )


@cache
def _plugins(room: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=f"annotary.{room}"):
        if entry.name in found:
            other = found[entry.name].value
            raise UsageError(
                f"the plugins {other} and {entry.value} share the name {entry.name!r} in {room}"
            )
        found[entry.name] = entry
    return found
