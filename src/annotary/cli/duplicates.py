"""`annotary duplicates`: find images that are the same or nearly so, and say which to keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotary.catalog.duplicates import DuplicateOptions
from annotary.cli._annotating import Loaded, loaded, running_options
from annotary.cli._grouping import (
    Reading,
    check_table,
    counted,
    json_line,
    pictures,
    print_line,
    table_options,
    table_writer,
    until_nobody_reads,
)
from annotary.cli._options import SectionedCommand, made, options_of
from annotary.errors import UsageError
from annotary.runtime import RuntimeOptions

if TYPE_CHECKING:
    from annotary.catalog.duplicates import Fingerprint, Group, Member

COLUMNS = (
    *("group", "image", "keep", "why", "by", "distance", "bytes", "width", "height", "also"),
    "path",
)

MOST_DRAWN = 16
"""Images of a group that are drawn: two rows."""


@click.command("duplicates", cls=SectionedCommand, short_help="Find images that are the same.")
@click.argument("paths", nargs=-1, metavar="PATH...")
@click.option(
    "--catalog",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Compare the images of this catalogue. Nothing is read but the catalogue.",
)
@click.option(
    "--against",
    multiple=True,
    metavar="OTHER",
    help="Find only images that are also in OTHER, such as a test set: a folder, or a catalogue. May be repeated.",
)
@options_of(DuplicateOptions)
@click.option(
    "--model",
    metavar="NAME",
    help="What embeds images, for --by embedding: starter, unless a catalogue has vectors of another.",
)
@click.option(
    "--sheet",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the groups, the image to keep first and framed: a .jpg or .png.",
)
@click.option(
    "--sheet-groups",
    type=click.IntRange(1, 200),
    default=100,
    show_default=True,
    help="How many groups are drawn: the first.",
)
@table_options
@running_options
def command(paths: tuple[str, ...], **values: Any) -> None:
    """Find images that are the same or nearly so, in groups, and say which one to keep.

    Nothing is deleted, ever: what is printed or written is a list to act on.
    """
    click.get_current_context().exit(until_nobody_reads(lambda: _duplicates(paths, values)))


def _duplicates(paths: tuple[str, ...], values: dict[str, Any]) -> int:
    from annotary.catalog.duplicates import find_duplicates

    # Whatever can be wrong is found before anything is read.
    options = made(DuplicateOptions, values)
    if bool(paths) == (values["catalog"] is not None):
        raise UsageError("name images to compare: either PATH... or --catalog FOLDER")
    if values["model"] is not None and "embedding" not in options.kinds:
        raise UsageError("--model is for --by embedding")
    check_table(values, [*paths, *values["against"]], COLUMNS)
    sheet = _Sheet(values["sheet"], values["sheet_groups"])
    sheet.check([*paths, *values["against"]])
    reading = Reading(values)
    images = _Images(reading, options, paths, values)
    mine = [str(values["catalog"])] if values["catalog"] is not None else list(paths)
    references = images.fingerprints(list(values["against"])) if values["against"] else None
    groups = find_duplicates(images.fingerprints(mine), options, against=references)
    found = _tell_groups(sheet.passing(groups), values)
    sheet.draw(reading, images.files, found.groups, is_quiet=values["quiet"])
    compared = f"{counted(images.compared, 'image')} compared"
    told = f"{counted(found.groups, 'group')}; {counted(found.others, 'image')} could go"
    told += f", {_size(found.bytes)}" if found.bytes else ""
    if values["against"]:
        told = f"{found.others:,} also in {', '.join(values['against'])}"
    return reading.end(values["output"], f"{compared}: {told}")


class _Images:
    """The images that are compared, with what they are compared by.

    Args:
        reading: Reads those that are in no catalogue.
        options: What they are compared by.
        paths: The command's arguments.
        values: The values of its options.

    Attributes:
        compared: How many there were so far.
        files: The arguments that are no catalogues.

    Raises:
        UsageError: A catalogue is none, or vectors cannot be compared.
    """

    def __init__(
        self,
        reading: Reading,
        options: DuplicateOptions,
        paths: Sequence[str],
        values: Mapping[str, Any],
    ) -> None:
        from annotary.catalog import Catalog, is_catalog

        self.compared = 0
        self._reading = reading
        self._kinds = options.kinds
        self._model: Loaded | None = None
        self._places = [*paths, *values["against"]]
        self._catalogs = {place for place in values["against"] if is_catalog(place)}
        if values["catalog"] is not None:
            self._catalogs.add(str(values["catalog"]))
        for place in self._catalogs:
            Catalog.open(place)  # or what is wrong with it is told
        self.files = [place for place in self._places if place not in self._catalogs]
        if self.files:
            reading.open(self.files)
        if "embedding" in self._kinds:
            self._model = _model_for(sorted(self._catalogs), values, has_files=bool(self.files))

    def fingerprints(self, places: Sequence[str]) -> Iterator[Fingerprint]:
        """The images of catalogues and of whatever else is named."""
        catalogs = [place for place in places if place in self._catalogs]
        others = [place for place in places if place not in self._catalogs]
        found = [self._of_catalog(place) for place in catalogs]
        if others and self._kinds == ("exact",):
            found.append(self._of_bytes(others))
        elif others:
            found.append(self._of_pixels(others))
        for fingerprint in chain.from_iterable(found):
            self.compared += 1
            yield fingerprint

    def _of_catalog(self, place: str) -> Iterator[Fingerprint]:
        from annotary.catalog import Catalog
        from annotary.catalog.duplicates_catalog import fingerprints

        return fingerprints(Catalog.open(place), with_vectors="embedding" in self._kinds)

    def _of_pixels(self, paths: list[str]) -> Iterator[Fingerprint]:
        """Files that are decoded once, for their look and for the model."""
        import numpy as np

        from annotary.catalog.duplicates import Fingerprint
        from annotary.records import Annotation
        from annotary.tasks import Task
        from annotary.tasks.embedding import Embed
        from annotary.tasks.encoding import image_encoder
        from annotary.tasks.perceptual_hash import PerceptualHash

        tasks: list[Task] = [PerceptualHash()]
        if self._model is not None:
            tasks.append(Embed(image_encoder(self._model.model)))
        for item, record, beside in self._reading.results(paths, tasks, "comparing"):
            assert item is not None
            assert isinstance(record, Annotation)
            vector = None
            if record.embedding is not None:
                vector = np.array(record.embedding.vector, np.float32)
            path = None if item.path is None else str(item.path)
            yield Fingerprint(
                *(item.image, path, _bytes_of(path), record.width, record.height),
                *(beside["sha256"], beside["phash"], vector, beside["chroma"]),
            )

    def _of_bytes(self, paths: list[str]) -> Iterator[Fingerprint]:
        """Files of which only the bytes count: nothing is decoded."""
        from annotary.catalog.duplicates import Fingerprint
        from annotary.cli._digests import digests, repeated_sizes

        sizes = None if self._catalogs else repeated_sizes(self._reading, self.files)
        for item, size, digest in digests(self._reading, paths, sizes):
            path = None if item.path is None else str(item.path)
            yield Fingerprint(item.image, path, size, sha256=digest)


class _Found:
    """Counts of what was found."""

    def __init__(self) -> None:
        self.groups = self.others = self.bytes = 0

    def add(self, group: Group) -> None:
        """Count a group."""
        self.groups += 1
        self.others += len(group.others)
        self.bytes += sum(other.bytes or 0 for other in group.others if not other.is_kept)


def _tell_groups(groups: Iterator[Group], values: Mapping[str, Any]) -> _Found:
    """Write or print the groups as they come."""
    found = _Found()
    if values["output"] is not None:
        with table_writer(values["output"], COLUMNS) as write:
            for group in groups:
                found.add(group)
                for member in group.members:
                    write({"group": group.number, **member.to_json()})
        return found
    for group in groups:
        found.add(group)
        if values["as_json"]:
            for member in group.members:
                print_line(json_line({"group": group.number, **member.to_json()}))
        else:
            _print_group(group)
    return found


def _print_group(group: Group) -> None:
    from annotary.cli._output import one_line

    print_line(f"group {group.number:,}: {len(group.members):,} images")
    for member in group.members:
        also = f"  (also {', '.join(member.also)})" if member.also else ""
        mark = "keep" if member.is_kept else "    "
        print_line(one_line(f"  {mark}  {member.image}  {_facts(member)}{member.why}{also}"))


def _facts(member: Member) -> str:
    """Size in pixels and bytes, as far as they are known."""
    facts = []
    if member.width is not None and member.height is not None:
        facts.append(f"{member.width} x {member.height}")
    if member.bytes is not None:
        facts.append(_size(member.bytes))
    return ", ".join(facts) + "  " if facts else ""


class _Sheet:
    """A picture of the first groups.

    Args:
        place: Where it goes; None for no picture.
        most: How many groups are drawn.
    """

    def __init__(self, place: Path | None, most: int) -> None:
        self._place = place
        self._most = most
        self._groups: list[tuple[Member, ...]] = []

    def check(self, inputs: Sequence[str]) -> None:
        """Refuse what can be no sheet, and a place where something else is.

        Raises:
            UsageError: The message says what to do.
        """
        from annotary.catalog.contact_sheet import SUFFIXES
        from annotary.catalog.sheet_place import check_sheet_place

        if self._place is None:
            return
        if self._place.suffix.lower() not in SUFFIXES:
            raise UsageError(f"--sheet {self._place} must end in {', '.join(SUFFIXES)}")
        check_sheet_place(self._place, inputs)

    def passing(self, groups: Iterable[Group]) -> Iterator[Group]:
        """The groups, of which the first are remembered."""
        for group in groups:
            if self._place is not None and len(self._groups) < self._most:
                self._groups.append(tuple(group.members))
            yield group

    def draw(self, reading: Reading, paths: Sequence[str], groups: int, *, is_quiet: bool) -> None:
        """Draw what is remembered; images are read again for it."""
        from annotary.catalog.contact_sheet import Section, contact_sheet, save
        from annotary.cli._output import tell

        if self._place is None:
            return
        if not self._groups:
            if not is_quiet:
                tell(f"{self._place} is not drawn, as there are no groups")
            return
        shown = [members[:MOST_DRAWN] for members in self._groups]
        wanted = {(member.image, member.path) for members in shown for member in members}
        found = pictures(wanted, reading, paths)
        sections = [
            Section(
                f"group {number:,}",
                f"{counted(len(self._groups[number - 1]), 'image')}; framed is what to keep",
                [found.get(member.image) for member in members],
                [member.image for member in members],
                sum(member.is_kept for member in members),
            )
            for number, members in enumerate(shown, 1)
        ]
        save(contact_sheet(sections), self._place)
        if groups > len(sections) and not is_quiet:
            shown_of = f"the first {len(sections):,} of {groups:,} groups"
            tell(f"{self._place} shows {shown_of}; --sheet-groups says how many")


def _size(count: int) -> str:
    from annotary.models import told_size

    return told_size(count)


def _bytes_of(path: str | None) -> int | None:
    if path is None:
        return None
    try:
        return Path(path).stat().st_size
    except (OSError, ValueError):
        return None


def _model_for(places: list[str], values: Mapping[str, Any], *, has_files: bool) -> Loaded | None:
    """The model that embeds files as the catalogues' vectors were; None where there are no files to embed.

    Raises:
        UsageError: Vectors of different models would be compared, or a catalogue has none.
    """
    from annotary.catalog import Catalog
    from annotary.cli._annotating import DEFAULT_MODEL

    held = {}
    for place in places:
        part = Catalog.open(place).note.parts.get("embedding")
        if part is None:
            raise UsageError(
                f"{place} holds no vectors; add them: annotary embed PATH... --catalog {place}"
            )
        held[place] = (str(part["model"]), part.get("name"), part.get("weights"))
    if len(set(held.values())) > 1:
        told = ", ".join(f"{place} of {model}" for place, (model, *_) in held.items())
        raise UsageError(f"vectors of different models cannot be compared: {told}")
    model, name, weights = next(iter(held.values()), (None, DEFAULT_MODEL, None))
    if not has_files:
        if values["model"] is not None:
            raise UsageError("--model is for images that are in no catalogue")
        return None
    found = loaded(
        values["model"] or name or str(model).rpartition("@")[0], made(RuntimeOptions, dict(values))
    )
    if weights is not None and weights not in (found.fingerprint, found.weights):
        raise UsageError(
            f"{places[0]} holds vectors of {model} with other weights than {found.model.card.id} has;"
            " say the same --model"
        )
    return found
