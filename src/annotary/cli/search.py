"""`annotary search`: find images by words and by images."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from annotary.catalog.query import SearchOptions, Term, combined
from annotary.catalog.sheet_place import check_sheet_place
from annotary.cli._annotating import DEFAULT_MODEL, loaded, running_options
from annotary.cli._options import SectionedCommand, made, options_of
from annotary.errors import UsageError
from annotary.images import DecodeOptions
from annotary.pipeline.local import PipelineOptions
from annotary.runtime import RuntimeOptions
from annotary.sources import SourceOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

    from annotary.catalog import Catalog
    from annotary.cli._annotating import Loaded

SHEET_SUFFIXES = (".jpg", ".jpeg", ".png")


@click.command("search", cls=SectionedCommand, short_help="Find images by words and by images.")
@click.argument("query", nargs=-1, metavar="QUERY...")
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="FILE",
    help="Find what is like this image. May be given several times, and with words.",
)
@click.option(
    "--minus",
    "minus",
    multiple=True,
    metavar="TEXT",
    help="Find what is less like this text. May be given several times.",
)
@click.option(
    "--minus-image",
    "minus_images",
    multiple=True,
    metavar="FILE",
    help="Find what is less like this image. May be given several times.",
)
@click.option(
    "--catalog",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Search this catalogue, as `annotary embed` makes one.",
)
@click.option(
    "--in",
    "places",
    multiple=True,
    metavar="PATH",
    help="Search these images: a folder, a list, an archive, ... May be given several times.",
)
@click.option(
    "--model",
    metavar="NAME",
    help="A name of `annotary models`, hf:OWNER/NAME or dir:PATH. A catalogue knows its own; otherwise it is starter.",
)
@click.option(
    "--rerank",
    metavar="NAME",
    help="Have this model look again at the best 128 of a text, such as blip-itm-base-coco, and order them anew.",
)
@options_of(SearchOptions)
@click.option(
    "--sheet",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw what is found into this picture, too, the best first: a JPEG or PNG. It replaces nothing but a sheet.",
)
@click.option(
    "--paths", "as_paths", is_flag=True, help="Print paths alone, one a line, for other programs."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each image.")
@click.option("--quiet", is_flag=True, help="No progress bar and no counts.")
@running_options
def command(query: tuple[str, ...], **values: Any) -> None:
    """Find images by words, by images, or by both: "this photo, but at night".

    All words of QUERY are one text. Without a catalogue, images are embedded where they are, once: their vectors are
    kept in the cache.
    """
    click.get_current_context().exit(_search(query, values))


class _Query(NamedTuple):
    """What is searched for.

    Attributes:
        vector: float32[d].
        text: The only text, if the query is nothing else: of it a model knows how probably it fits.
        images: The bytes of its images.
        words: The only text in words, if the query is nothing else; else empty.
    """

    vector: npt.NDArray[np.float32]
    text: npt.NDArray[np.float32] | None
    images: tuple[bytes, ...]
    words: str = ""


class _Row(NamedTuple):
    """An image that was found.

    Attributes:
        image: Its name.
        path: Its absolute path; empty for what is no file.
        score: The cosine.
        vector: float32[d].
        record: What the catalogue says of it.
        match: How probably the text belongs to it, 0..1, where a second model has looked at it; else None.
    """

    image: str
    path: str
    score: float
    vector: npt.NDArray[np.float32]
    record: dict[str, Any]
    match: float | None = None


def _search(query: tuple[str, ...], values: dict[str, Any]) -> int:
    options = made(SearchOptions, values)
    _check_words(query)
    has_query = query or values["images"] or values["minus"] or values["minus_images"]
    if not has_query:
        raise UsageError("say what to search for: words, or --image FILE")
    if (values["catalog"] is None) == (not values["places"]):
        raise UsageError("say where to search: either --catalog FOLDER or --in PATH")
    if values["as_paths"] and values["as_json"]:
        raise UsageError("say one of --paths and --json")
    if values["sheet"] is not None:
        if values["sheet"].suffix.lower() not in SHEET_SUFFIXES:
            raise UsageError(f"--sheet {values['sheet']} must end in {', '.join(SHEET_SUFFIXES)}")
        words = [told.removeprefix("image:") for told in query]
        read = (*values["images"], *values["minus_images"], *values["places"], *words)
        check_sheet_place(values["sheet"], read)
    if values["rerank"] is not None and (values["images"] or values["minus"] or not query):
        raise UsageError("--rerank looks again at what a text finds; search for words alone")
    if values["places"] and options.where is not None:
        raise UsageError("--where is for --catalog: images in a folder have no columns")
    if values["catalog"] is not None:
        return _in_catalog(values["catalog"], query, options, values)
    return _in_place(query, options, values)


def _check_words(query: tuple[str, ...]) -> None:
    """Refuse words that are files and folders: most likely a shell has put them where one --in was meant for all.

    Raises:
        UsageError: One is.
    """
    for told in query:
        if os.path.isdir(told):  # noqa: PTH112 - never raises
            raise UsageError(f"{told} is a folder: say --in {told}; if it is a text, text:{told}")
        if os.path.isfile(told):  # noqa: PTH113 - never raises
            raise UsageError(
                f"{told} is a file: say --image {told}, or --in {told}; if it is a text, text:{told}"
            )


def _in_catalog(
    path: Path, query: tuple[str, ...], options: SearchOptions, values: dict[str, Any]
) -> int:
    import hashlib

    from annotary.catalog import Catalog

    catalog = Catalog.open(path)
    if not catalog.count(options.where):
        is_empty = options.where is None or not len(catalog)
        condition = "" if is_empty else f" for which {options.where!r} holds"
        raise UsageError(f"{path} holds no images{condition}")
    found = _model_of(catalog, values)
    wanted = _query(found, query, options, values)
    where = options.where
    if wanted.images and not options.keep_query:
        digests = ", ".join(f"'{hashlib.sha256(data).hexdigest()}'" for data in wanted.images)
        others = f"(sha256 IS NULL OR sha256 NOT IN ({digests}))"
        where = others if where is None else f"({where}) AND {others}"
    hits = catalog.search(
        *(wanted.vector, _looked_at(options, values)),
        where=where,
        threshold=options.threshold,
        is_exact=options.exact,
    )
    ids = [one for one, _ in hits]
    scores = dict(hits)
    rows = []
    for row in catalog.rows_of(ids):
        record = row.annotation.to_json()
        vector = _array(record.pop("embedding"))
        rows.append(_Row(record["image"], row.path, scores[row.id], vector, record))
    _show(_again(rows, wanted, options, values), wanted, found, values)
    return 0


def _model_of(catalog: Catalog, values: dict[str, Any]) -> Loaded:
    """The model whose vectors a catalogue holds.

    Raises:
        UsageError: It is another one than was told, or has changed since.
    """
    from annotary import weights

    path, held = catalog.path, catalog.note.parts.get("embedding")
    if held is None:
        raise UsageError(
            f"{path} holds no vectors; add them: annotary embed PATH... --catalog {path}"
        )
    told = values["model"] or held["name"]
    known = weights.known()
    if told != held["name"] and told in known and held["name"] in known:
        # Nothing has to be fetched to see this.
        raise UsageError(f"{path} is of {held['name']}, and not of {told}; leave --model out")
    found = loaded(told, made(RuntimeOptions, values))
    if found.fingerprint != held["weights"]:
        remedy = (
            "leave --model out"
            if values["model"]
            else f"rebuild it: annotary embed PATH... --catalog {path} --on-existing overwrite"
        )
        raise UsageError(
            f"{path} holds vectors of {held['model']} with the weights {held['weights']}, and"
            f" {values['model'] or held['name']} is {found.model.card.id} with {found.fingerprint}; {remedy}"
        )
    return found


def _in_place(query: tuple[str, ...], options: SearchOptions, values: dict[str, Any]) -> int:
    from annotary.catalog._vector_cache import VectorCache
    from annotary.catalog.in_place import SearchInPlace
    from annotary.cli import Stopped
    from annotary.cli._output import tell
    from annotary.cli._progress import progress_bar
    from annotary.sources import Reader, can_be_counted, open_sources
    from annotary.tasks.encoding import image_encoder

    source_options, decode_options = made(SourceOptions, values), made(DecodeOptions, values)
    pipeline_options = made(PipelineOptions, values)
    places = values["places"]
    items = open_sources(places, source_options)
    items = chain(list(islice(items, 1)), items)  # nothing there is told before the model is loaded
    found = loaded(values["model"] or DEFAULT_MODEL, made(RuntimeOptions, values))
    wanted = _query(found, query, options, values)
    pixels = f"{decode_options.reduce} {decode_options.transparency}"
    cache = VectorCache(f"{found.weights} {found.model.choice.library} {pixels}")
    with ExitStack() as opened:
        opened.callback(cache.close)
        reader = opened.enter_context(Reader(source_options))
        search = SearchInPlace(
            *(items, image_encoder(found.model), wanted.vector, _looked_at(options, values)),
            *(cache, reader, decode_options, pipeline_options),
            left_out=() if options.keep_query else wanted.images,
        )
        count = None
        if can_be_counted(places):
            count = lambda: sum(1 for _ in open_sources(places, source_options))  # noqa: E731
        try:
            with progress_bar("embedding", count, quiet=values["quiet"]) as bar:
                for record in search:
                    bar.update(search.outcome)
                    if not record.ok:
                        tell(f"{record.image}: {getattr(record, 'message', '')}")
        except KeyboardInterrupt as error:
            raise Stopped("stopped; what was embedded is kept for the next search") from error
    least = -2.0 if options.threshold is None else options.threshold
    matches = (match for match in search.matches() if match.score >= least)
    rows = [_Row(*match, {"image": match.image}) for match in matches]
    _show(_again(rows, wanted, options, values), wanted, found, values)
    if cache.problem and not values["quiet"]:
        tell(f"vectors could not be kept in {cache.path}: {cache.problem}")
    outcome = search.outcome
    if not values["quiet"] and not values["as_json"]:
        failed = f"; {outcome.failed:,} failed" if outcome.failed else ""
        known = f", {outcome.done:,} embedded now" if outcome.done else ""
        tell(f"{_images(outcome.done + outcome.done_before)} searched{known}{failed}")
    return 1 if outcome.failed else 0


def _looked_at(options: SearchOptions, values: dict[str, Any]) -> int:
    """How many images are found before a second look at them."""
    from annotary.cli._reranking import LOOKED_AT

    return options.top if values["rerank"] is None else max(options.top, LOOKED_AT)


def _again(
    rows: list[_Row], wanted: _Query, options: SearchOptions, values: dict[str, Any]
) -> list[_Row]:
    """The best of what was found, after a second look at it where one is asked for."""
    from annotary.cli._reranking import second_look

    if values["rerank"] is None:
        return rows
    if not wanted.words:
        raise UsageError("--rerank looks again at what a text finds; search for words alone")
    places = [row.path or (row.image if "://" in row.image else "") for row in rows]
    order = second_look(places, wanted.words, values)
    seen = {place for place, _ in order}
    rest = [row for place, row in enumerate(rows) if place not in seen]
    return [*(rows[place]._replace(match=score) for place, score in order), *rest][: options.top]


def _query(
    found: Loaded, query: tuple[str, ...], options: SearchOptions, values: dict[str, Any]
) -> _Query:
    """The vector of a query.

    Raises:
        UsageError: The model does not know texts, or the query makes no sense.
        ImageError: An image cannot be read.
    """
    from annotary.inputs import side_of

    sides = [side_of(told) for told in query]
    words = " ".join(told for kind, told in sides if kind == "text")
    images = [*values["images"], *(told for kind, told in sides if kind == "image")]
    texts = [*([words] if words else []), *values["minus"]]
    vectors = _of_texts(found, texts)
    terms = [Term(vectors[0], options.text_weight)] if words else []
    terms += [Term(vector, -options.minus_weight) for vector in vectors[len(terms) :]]
    read = [(told, _bytes_of(told), weight) for told, weight in _weighted(images, options, values)]
    terms += [Term(_of_image(found, told, data), weight) for told, data, weight in read]
    shown = tuple(data for _, data, _ in read)
    is_text = bool(words) and len(terms) == 1
    return _Query(combined(terms), vectors[0] if is_text else None, shown, words if is_text else "")


def _weighted(
    images: list[str], options: SearchOptions, values: dict[str, Any]
) -> list[tuple[str, float]]:
    subtracted = [(told, -options.minus_weight) for told in values["minus_images"]]
    return [*((told, 1.0) for told in images), *subtracted]


def _of_texts(found: Loaded, texts: list[str]) -> npt.NDArray[np.float32]:
    """The vectors float32[n, d] of texts."""
    from annotary.cli._output import tell
    from annotary.tasks.encoding import dual_encoder

    if not texts:
        return _array([]).reshape(0, 0)
    embedded = dual_encoder(found.model).embed_texts(texts)
    for text, is_truncated in zip(texts, embedded.is_truncated, strict=True):
        if is_truncated:
            tell(f"longer than {found.model.card.id} reads, so the end is left out: {text}")
    return embedded.vectors


def _bytes_of(told: str) -> bytes:
    """The bytes of an image of the query.

    Raises:
        UsageError: They cannot be had.
    """
    from annotary.errors import ImageError
    from annotary.records import Item
    from annotary.sources import Reader

    is_address = told.startswith(("http://", "https://"))
    item = Item(told, url=told) if is_address else Item.from_path(told)
    try:
        with Reader(SourceOptions()) as reader:
            return reader.read(item)
    except ImageError as error:
        raise UsageError(f"{told}: {error}") from error


def _of_image(found: Loaded, told: str, data: bytes) -> npt.NDArray[np.float32]:
    from annotary.api import Annotator
    from annotary.records import Annotation

    (record,) = Annotator(found.model).embed(data)
    if not isinstance(record, Annotation):
        raise UsageError(f"{told}: {record.message}")
    assert record.embedding is not None
    return _array(record.embedding.vector)


def _array(values: Any) -> npt.NDArray[np.float32]:
    import numpy as np

    return np.array(values, dtype=np.float32)


def _show(rows: list[_Row], wanted: _Query, found: Loaded, values: dict[str, Any]) -> None:
    """Print what was found, and draw it."""
    from annotary.cli._output import tell

    if values["sheet"] is not None:
        _draw(rows, values["sheet"])
    if values["as_paths"]:
        lines = (os.fsencode(row.path) for row in rows if row.path)
    else:
        told = _lines(rows, wanted, found, as_json=values["as_json"])
        lines = (line.encode("utf-8", "backslashreplace") for line in told)
    try:
        for line in lines:
            sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Whoever reads our output has enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not rows and not values["quiet"]:
        tell(
            "nothing was found" + (" above --threshold" if values["threshold"] is not None else "")
        )
    others = sum(not row.path for row in rows) if values["as_paths"] else 0
    if others and not values["quiet"]:
        tell(f"{_images(others)} in archives and at addresses left out: they have no path")


def _lines(rows: list[_Row], wanted: _Query, found: Loaded, *, as_json: bool) -> Iterator[str]:
    from annotary.cli._output import one_line
    from annotary.tasks.comparison import Comparer
    from annotary.tasks.encoding import dual_encoder

    if not as_json:
        for rank, row in enumerate(rows, 1):
            match = "" if row.match is None else f"  {row.match:.3f}"
            yield f"{rank:>3}  {row.score:+.3f}{match}  {one_line(_name(row))}"
        return
    comparer = None
    if wanted.text is not None:
        with contextlib.suppress(UsageError):  # not every model says how probable a cosine is
            comparer = Comparer(dual_encoder(found.model))
    for rank, row in enumerate(rows, 1):
        told: dict[str, Any] = {"rank": rank, "score": round(row.score, 6)}
        if comparer is not None and wanted.text is not None:
            probability = comparer.match(row.vector, wanted.text).probability
            assert probability is not None
            told["probability"] = round(probability, 6)
        if row.match is not None:
            told["match"] = round(row.match, 6)
        yield json.dumps({**told, **row.record}, ensure_ascii=False)


def _draw(rows: list[_Row], path: Path) -> None:
    """Draw what was found, the best first; members of archives cannot be looked up again and are grey."""
    from annotary.catalog.contact_sheet import Section, contact_sheet, save, thumbnail
    from annotary.errors import ImageError
    from annotary.records import Item
    from annotary.sources import Reader

    pictures = []
    with Reader(SourceOptions()) as reader:
        for row in rows:
            is_address = row.image.startswith(("http://", "https://"))
            item = Item(row.image, url=row.image) if is_address else None
            item = Item.from_path(row.path) if row.path else item
            try:
                pictures.append(None if item is None else thumbnail(reader.read(item)))
            except ImageError:
                pictures.append(None)
    captions = [f"{row.score:.2f} {os.path.basename(row.image)}" for row in rows]
    found = Section("annotary search", _images(len(rows)), pictures, captions)
    save(contact_sheet([found]), path)


def _images(count: int) -> str:
    """A count of images in words."""
    return f"{count:,} image" + ("" if count == 1 else "s")


def _name(row: _Row) -> str:
    """How a file is named from here, if it is below; else its whole path, or the name of what is no file."""
    if not row.path:
        return row.image
    here = os.path.join(os.getcwd(), "")  # noqa: PTH109, PTH118
    return row.path.removeprefix(here)
