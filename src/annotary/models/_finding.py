"""Where a model of a name is. Nothing is guessed: a name is one that is known, or says where to look."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import cast

from annotary import hub, registry, weights
from annotary.cards import CARD_FILE, TAGS_FILE, Card, check_files, fingerprint, read_card
from annotary.errors import ModelError, UnknownName, UsageError
from annotary.hub import Listing, Progress, Repository, Snapshot
from annotary.models._checkpoint_files import CONFIG_FILE, read_json
from annotary.models._onnx_graph import external_files
from annotary.runtime import RuntimeOptions

FOLDER_PREFIX = "dir:"


@dataclass(frozen=True, slots=True)
class Found:
    """A model that is on this machine.

    Attributes:
        name: As it was asked for.
        directory: Where its files are.
        card: What it is; `files` holds those that are used, with their sha256 as far as it is known.
        is_fetched: Whether it was fetched just now.
    """

    name: str
    directory: Path
    card: Card
    is_fetched: bool = False

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with anything that its results depend on.

        Raises:
            ModelError: A file cannot be read.
        """
        if (self.directory / CARD_FILE).is_file():
            return fingerprint(self.directory, (TAGS_FILE, "model.onnx", *self.card.files))
        card = self.card
        how = repr((card.family, card.preprocess, card.activation, dict(card.thresholds)))
        how += repr(card.similarity) if card.similarity is not None else ""
        how += repr(later) if (later := card.preprocess.later) else ""
        return fingerprint(self.directory, self.card.files, extra=how)

    def check(self) -> None:
        """Compare the files with the card.

        Raises:
            ModelError: One is missing or damaged; the message names it, and what to do.
        """
        can_be_fetched = not self.name.startswith(FOLDER_PREFIX) and _repository_of(self.card)
        check_files(self.card, self.directory, _remedy(self.name) if can_be_fetched else "")


def find(name: str, options: RuntimeOptions | None = None) -> Found:
    """Find a model; one of the hub that is not on this machine is fetched.

    Args:
        name: `starter` or another that is known, `hf:owner/name`, `hf:owner/name@revision`, or `dir:` and the path of a
            model directory.
        options: How it will run; which of several files are needed depends on it.

    Raises:
        UsageError: The name is unknown or ambiguous; the message lists what exists.
        ModelError: It cannot be fetched, or is no model.
        MissingExtra: It would have to be fetched, and nothing here could run it.
    """
    options = options or RuntimeOptions()
    if name.startswith(FOLDER_PREFIX):
        return _in_folder(name, options)
    known = weights.known()
    if name in weights.shipped():
        return _with_card(name, known[name], options)
    if name in known or name.startswith(hub.PREFIX):
        wanted = _wanted(name)
        if found := _on_disk(wanted, options):
            return found
        if wanted.card is not None:
            # A gigabyte that cannot be run is better not fetched; `pull` may, for another machine.
            family = registry.load("models", _module_of(wanted.card))
            getattr(family, "check_libraries", lambda _: None)(name)
        return _fetched(wanted, options, None)
    raise _unknown(name)


def pull(
    name: str,
    options: RuntimeOptions | None = None,
    *,
    is_update: bool = False,
    progress: Progress | None = None,
) -> Found:
    """Fetch a model of the hub, or check the files of one that is here; damaged ones are fetched anew.

    Args:
        name: Of a known model, or `hf:owner/name[@revision]`.
        options: How it will run.
        is_update: Take what the revision is now, also where it was another when it was fetched.
        progress: Is told how far each file is.

    Raises:
        UsageError: The name is none of a model that can be fetched.
        ModelError: It cannot be fetched.
    """
    options = options or RuntimeOptions()
    check_pullable(name)
    if name in weights.shipped():
        found = find(name, options)
        found.check()
        return found
    wanted = _wanted(name)
    if not is_update:
        try:
            found_here = _on_disk(wanted, options)
            if found_here is not None:
                found_here.check()
                return found_here
        except ModelError:  # what is damaged is fetched
            if hub.is_offline():
                raise
    return _fetched(wanted, options, progress or (lambda *_: None), is_update=is_update)


def check_pullable(name: str) -> None:
    """Check that a name is that of a model that can be fetched, or that ships with the package.

    Raises:
        UsageError: It is not.
    """
    if name.startswith(FOLDER_PREFIX):
        raise UsageError(f"{name} is a folder on this machine; there is nothing to pull")
    if name.startswith(hub.PREFIX):
        Repository.parse(name)
    elif name not in weights.known():
        raise _unknown(name)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model of the hub.

    Attributes:
        name: As it was asked for.
        repository: Where it is.
        card: Where one is in this package.
    """

    name: str
    repository: Repository
    card: Card | None


def describe_known(name: str) -> tuple[Card, Path | None]:
    """The card of a known model, and the directory of its files where they are on this machine."""
    folder = weights.known()[name]
    card = read_card(folder)
    if name in weights.shipped():
        return card, folder
    found = _on_disk(_wanted(name), RuntimeOptions())
    return (found.card, found.directory) if found is not None else (card, None)


def _wanted(name: str) -> Wanted:
    if name.startswith(hub.PREFIX):
        return Wanted(name, Repository.parse(name), None)
    card = read_card(weights.known()[name])
    repository = _repository_of(card)
    if repository is None:
        raise ModelError(f"{card.id}: its files are missing")
    return Wanted(name, repository, card)


def _repository_of(card: Card) -> Repository | None:
    if not card.source.startswith(hub.PREFIX):
        return None
    parsed = Repository.parse(card.source)
    return replace(parsed, revision=card.revision) if card.revision else parsed


def _on_disk(wanted: Wanted, options: RuntimeOptions) -> Found | None:
    """A model of the hub, if all that it needs is on this machine."""
    snapshot = hub.on_disk(wanted.repository)
    if snapshot is None:
        return None
    names = _names_in(snapshot.directory)
    try:
        card = _own_card(wanted, names, snapshot.directory)
        needed = _needed(wanted, card, names, options, snapshot.directory)
    except UsageError:
        return None
    if needed is None or not set(needed) <= set(names):
        return None
    needed = _with_external(snapshot.directory, needed)
    return _found(wanted, snapshot, needed) if set(needed) <= set(names) else None


def _fetched(
    wanted: Wanted, options: RuntimeOptions, progress: Progress | None, *, is_update: bool = False
) -> Found:
    """Fetch what a model needs. Without `progress`, one line on standard error says what is fetched."""
    repository = wanted.repository
    if hub.is_offline() and not is_update:
        what = wanted.name + ("" if options.runtime == "auto" else f" for {options.runtime}")
        raise ModelError(
            f"{what} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it; where there"
            f" is a network: annotary pull {wanted.name}"
        )
    here = None if is_update else hub.on_disk(repository)
    # A name keeps the meaning that it had when it was fetched first.
    pinned = replace(repository, revision=here.commit) if here else repository
    noted = here.files if here else {}
    hint = (
        f"; {wanted.name} is not on this machine: once there is a connection, annotary pull {wanted.name}"
        " fetches it, and a folder with its files is a model, too (--model dir:FOLDER)"
    )
    listing = hub.list_files(pinned, hint if progress is None else "")
    names = tuple(listing.sizes)
    card = wanted.card
    if card is None and CARD_FILE in names:
        brought = hub.fetch(repository, listing, {CARD_FILE: noted.get(CARD_FILE, "")})
        card = read_card(brought.directory)
    settings = _settings_of(repository, listing) if card is None else None
    needed = _needed(wanted, card, names, options, settings)
    if needed is None:
        if card is not None and wanted.card is None:
            _check_has(wanted, listing, card.files)
        raise _unusable(wanted, listing, _lacking(card, names, options, settings))
    _check_has(wanted, listing, needed)
    if card is None:
        _read_first(repository, listing, needed, settings)
    if progress is None:
        _tell(_announced(wanted, card, listing, needed))
    expected = {
        name: (card.files.get(name) if card else "") or noted.get(name, "") for name in needed
    }
    snapshot = hub.fetch(repository, listing, expected, progress)
    # Only the network itself tells which files its weights are in.
    every = _with_external(snapshot.directory, needed)
    if more := {name: noted.get(name, "") for name in every if name not in needed}:
        _check_has(wanted, listing, every)
        if progress is None:
            _tell(_announced(wanted, card, listing, tuple(more)))
        later = hub.fetch(repository, listing, more, progress)
        snapshot = replace(snapshot, files={**snapshot.files, **later.files})
    found = _found(wanted, snapshot, every)
    # Not before all is here: a commit that lacks something must not be what the name stands for.
    hub.note(repository, snapshot)
    return replace(found, is_fetched=True)


def _settings_of(repository: Repository, listing: Listing) -> Path | None:
    """Where the settings are that tell families apart, fetched where several would take a repository's names."""
    names = tuple(listing.sizes)
    if CONFIG_FILE not in names or len(_taking(names, RuntimeOptions())) < 2:
        return None
    return hub.fetch(repository, listing, {CONFIG_FILE: ""}).directory


def _read_first(
    repository: Repository, listing: Listing, needed: Collection[str], settings: Path | None
) -> None:
    """Fetch what tells whether a repository is of the family that takes its names, before anything large.

    Raises:
        ModelError: It is of another kind.
    """
    names = tuple(listing.sizes)
    family = registry.load("models", _family_of(names, RuntimeOptions(), directory=settings))
    first = dict.fromkeys((n for n in needed if n in getattr(family, "READ_FIRST", ())), "")
    if first:
        family.describe(hub.fetch(repository, listing, first).directory)


def _check_has(wanted: Wanted, listing: Listing, needed: Collection[str]) -> None:
    """Check that a repository has files.

    Raises:
        UsageError: It lacks some.
    """
    if lacking := sorted(set(needed) - set(listing.sizes)):
        raise _unusable(wanted, listing, f"it has no {', '.join(lacking)}")


def _lacking(
    card: Card | None, names: Collection[str], options: RuntimeOptions, settings: Path | None
) -> str:
    """Why a family takes none of the files."""
    name = _family_of(names, RuntimeOptions(), directory=settings) if card is None else ""
    family = name or _module_of(cast(Card, card))
    module = registry.load("models", family)
    if _asked(module, names, RuntimeOptions()) is not None:
        return f"nothing in it runs in {options.runtime}"
    looked = f": {module.LOOKED_FOR}" if hasattr(module, "LOOKED_FOR") else ""
    return f"it has not all files of a model of the family {family}{looked}"


def _unusable(wanted: Wanted, listing: Listing, why: str) -> UsageError:
    return UsageError(f"{wanted.repository} at {listing.commit[:12]} cannot be used: {why}")


def _found(wanted: Wanted, snapshot: Snapshot, needed: Collection[str]) -> Found:
    """A model of the hub whose files are here, with a card that says which they are."""
    names = _names_in(snapshot.directory)
    card = _own_card(wanted, names, snapshot.directory)
    if card is None:
        family = _family_of(names, RuntimeOptions(), directory=snapshot.directory)
        card = replace(
            registry.load("models", family).describe(snapshot.directory),
            name=wanted.repository.name,
            licence=snapshot.licence or "unknown",
        )
    digests = {
        name: card.files.get(name) or snapshot.files.get(name) or _cached_digest(wanted, path)
        for name, path in ((name, snapshot.directory / name) for name in needed)
    }
    if wanted.card is not None or CARD_FILE not in names:
        card = replace(card, version=snapshot.commit[:12])
    return Found(
        wanted.name,
        snapshot.directory,
        replace(
            card,
            files=digests,
            source=hub.PREFIX + wanted.repository.name,
            revision=snapshot.commit,
        ),
    )


def _cached_digest(wanted: Wanted, path: Path) -> str:
    """The sha256 of a file that another program fetched."""
    try:
        return hub.cached_digest(path)
    except ModelError as error:
        raise ModelError(f"{error}{_remedy(wanted.name)}") from error


def _remedy(name: str) -> str:
    """What to do about a damaged file of a model that can be fetched."""
    where = ", where HF_HUB_OFFLINE does not forbid it" if hub.is_offline() else ""
    return f"; annotary pull {name} fetches it anew{where}"


def _own_card(wanted: Wanted, names: Collection[str], directory: Path) -> Card | None:
    if wanted.card is not None:
        return wanted.card
    return read_card(directory) if CARD_FILE in names else None


def _needed(
    wanted: Wanted,
    card: Card | None,
    names: Collection[str],
    options: RuntimeOptions,
    settings: Path | None,
) -> tuple[str, ...] | None:
    """The files of a model that a run with these options needs; None when none of them would do.

    Raises:
        UsageError: Several families, or none, would take the files.
        ModelError: Several would, and its settings are those of none of them.
    """
    if card is None:
        name = _family_of(names, RuntimeOptions(), str(wanted.repository), settings)
        return _asked(registry.load("models", name), names, options)
    family = registry.load("models", _module_of(card))
    chosen = _asked(family, _belonging(card, names), options)
    if chosen is None and hasattr(family, "files"):
        return None
    if wanted.card is None:  # the repository's own card says what belongs to it
        chosen = tuple(dict.fromkeys((CARD_FILE, *(chosen or ()), *card.files)))
    return chosen


def _belonging(card: Card, names: Collection[str]) -> tuple[str, ...]:
    """Files without the networks that a card leaves out, where it lists any."""
    listed = {name for name in card.files if _is_network(name)}
    return tuple(name for name in names if not listed or name in listed or not _is_network(name))


def _is_network(name: str) -> bool:
    return name.lower().endswith(".onnx")


def _with_external(directory: Path, needed: Collection[str]) -> tuple[str, ...]:
    """Files of a model, and those in which its networks keep weights.

    Raises:
        ModelError: They are in another folder.
    """
    external = [
        name.rpartition("/")[0] + "/" * ("/" in name) + beside
        for name in needed
        if _is_network(name)
        for beside in external_files(directory / name)
    ]
    return tuple(dict.fromkeys((*needed, *external)))


def _in_folder(name: str, options: RuntimeOptions) -> Found:
    folder = name.removeprefix(FOLDER_PREFIX)
    if not folder or not os.path.isdir(folder):  # noqa: PTH112 - never raises
        raise UsageError(f"no model directory {folder!r}")
    directory = Path(folder)
    names = _names_in(directory)
    if CARD_FILE in names:
        return _with_card(name, directory, options)
    if not _taking(names, options) and (below := _models_below(directory)):
        raise UsageError(
            f"{folder} is no model, but holds some: say {' or '.join(f'dir:{one}' for one in below)}"
        )
    # What the options ask for in vain is told by who runs it, better than by finding nothing.
    family = registry.load("models", _family_of(names, RuntimeOptions(), folder, directory))
    needed = _asked(family, names, options) or _asked(family, names, RuntimeOptions()) or ()
    card = family.describe(directory)
    files = dict.fromkeys(_with_external(directory, needed), "")
    return Found(name, directory, replace(card, files=files))


def _models_below(directory: Path) -> list[Path]:
    """Folders with a card in a folder, such as that of a training run: the three newest, the last one first."""
    cards = [
        card
        for depth in ("*", "*/*")
        for card in directory.glob(f"{depth}/{CARD_FILE}")
        if not any(part.startswith(".") for part in card.relative_to(directory).parts)
    ]
    newest = sorted(cards, key=lambda card: (card.stat().st_mtime, card), reverse=True)
    return [card.parent for card in newest[:3]]


def _with_card(name: str, directory: Path, options: RuntimeOptions) -> Found:
    """A model of a directory with a card. What the card does not list is used and counts all the same."""
    card = read_card(directory)
    family = registry.load("models", _module_of(card))
    names = _belonging(card, _names_in(directory))
    needed = _asked(family, names, options) or _asked(family, names, RuntimeOptions()) or ()
    files = _with_external(directory, (*card.files, *needed))
    files = tuple(file for file in files if file != CARD_FILE)  # it cannot hold its own checksum
    return Found(
        name, directory, replace(card, files={file: card.files.get(file, "") for file in files})
    )


def _family_of(
    names: Collection[str],
    options: RuntimeOptions,
    where: str = "it",
    directory: Path | None = None,
) -> str:
    """The one family that takes files of these names, without a card that says so.

    Args:
        names: The files.
        options: How the model will run.
        where: They are, for messages.
        directory: The settings are in, as far as they are here: they decide between several families.

    Raises:
        UsageError: None does, or several do.
        ModelError: Several do, and the settings are those of none of them.
    """
    taking = _taking(names, options)
    if len(taking) > 1 and directory is not None and CONFIG_FILE in names:
        taking = _claiming(taking, directory / CONFIG_FILE)
    if len(taking) == 1:
        return taking[0]
    folder = where if os.path.isdir(where) else "DIR"  # noqa: PTH112
    raise _no_family(where, f"; annotary models add {folder} writes a card", taking)


def _taking(names: Collection[str], options: RuntimeOptions) -> list[str]:
    """The families that take files of these names."""
    every = _families().items()
    return [name for name, module in every if _asked(module, names, options) is not None]


def _claiming(taking: Collection[str], path: Path) -> list[str]:
    """Of families that take the same names, those whose kind of model the settings are of, or that say no kinds.

    Raises:
        ModelError: They are of none.
    """
    kind = read_json(path).get("model_type")
    kinds = {name: getattr(_families()[name], "MODEL_TYPES", None) for name in taking}
    claiming = [name for name, own in kinds.items() if own is None or kind in own]
    if not claiming:
        known = ", ".join(one for own in kinds.values() for one in own or ())
        raise ModelError(
            f"{path} is of a model of the type {kind!r}, which is none known here; known: {known}"
        )
    return claiming


def _no_family(where: str, remedy: str, taking: Collection[str] = ()) -> UsageError:
    if taking:
        return UsageError(
            f"{where} has no {CARD_FILE}, and could be of {' or '.join(taking)}{remedy}"
        )
    looked = "; ".join(
        f"{name}: {module.LOOKED_FOR}"
        for name, module in _families().items()
        if hasattr(module, "LOOKED_FOR")
    )
    return UsageError(
        f"no model in {where}: it has no {CARD_FILE} and not the files of a family ({looked}){remedy}"
    )


def _families() -> Mapping[str, ModuleType]:
    """Every family that can tell its files from others."""
    found = {}
    for name in registry.names("models"):
        with contextlib.suppress(UsageError):  # a plugin that is broken must not break the others
            module = registry.load("models", name)
            if hasattr(module, "files"):
                found[name] = module
    return found


def _asked(
    family: ModuleType, names: Collection[str], options: RuntimeOptions
) -> tuple[str, ...] | None:
    """Which of the files a family needs; None when it is not its model, or it cannot tell."""
    if not hasattr(family, "files"):
        return None
    folders = getattr(family, "FOLDERS", ())
    names = tuple(n for n in names if "/" not in n or n.partition("/")[0] in folders)
    chosen: tuple[str, ...] | None = family.files(names, options)
    return chosen


def _module_of(card: Card) -> str:
    return card.family.replace("_", "-")


def _names_in(directory: Path) -> tuple[str, ...]:
    """The files of a directory, and `folder/file` for those of the folders that a family knows."""
    folders = {name for module in _families().values() for name in getattr(module, "FOLDERS", ())}
    try:
        names = [entry.name for entry in os.scandir(directory) if entry.is_file()]
        for folder in folders:
            if (directory / folder).is_dir():
                inside = os.scandir(directory / folder)
                names += [f"{folder}/{entry.name}" for entry in inside if entry.is_file()]
    except OSError as error:
        raise ModelError(f"cannot read {directory}: {error.strerror}") from error
    return tuple(sorted(names))


def _announced(wanted: Wanted, card: Card | None, listing: Listing, needed: Collection[str]) -> str:
    licence = (card.licence if card else "") or listing.licence or "no licence is stated"
    size = told_size(sum(listing.sizes.get(name, 0) for name in needed))
    return f"fetching {wanted.name} ({licence}): {', '.join(needed)}, {size}"


def told_size(size: int) -> str:
    """Bytes for people, in powers of ten as downloads are told: 366.1 MB."""
    value, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{size} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def _tell(text: str) -> None:
    text = "".join(c if c.isprintable() else "?" for c in text)  # a licence is a stranger's text
    with contextlib.suppress(OSError, AttributeError, ValueError):
        sys.stderr.write(f"annotary: {text}\n")
        sys.stderr.flush()


def _unknown(name: str) -> UsageError:
    if name and os.path.isdir(name):  # noqa: PTH112
        return UsageError(f"{name!r} is a directory, not a model's name; say --model dir:{name}")
    with contextlib.suppress(UsageError):
        return UsageError(f"unknown model {name!r}; of the hub it is {Repository.parse(name)}")
    return UnknownName("model", name, [*weights.known(), "dir:PATH", "hf:OWNER/NAME"])
