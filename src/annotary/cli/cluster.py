"""`annotary cluster`: put images into groups by what they show, and name the groups."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from annotary.catalog.clusters import ClusterOptions
from annotary.cli._annotating import DEFAULT_MODEL, Loaded, loaded, running_options
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
from annotary.images import DecodeOptions
from annotary.runtime import RuntimeOptions

if TYPE_CHECKING:
    from annotary.catalog import Catalog
    from annotary.catalog.clusters import Clusters
    from annotary.catalog.clusters_rows import ClusterRows

COLUMNS = ("image", "cluster", "name", "distance")
NOISE = "(none)"

_SHOWN = 3


@click.command("cluster", cls=SectionedCommand, short_help="Group images by what they show.")
@click.argument("paths", nargs=-1, metavar="PATH...")
@click.option(
    "--catalog",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Group the images of this catalogue by the vectors it holds, and name the groups by its tags.",
)
@options_of(ClusterOptions)
@click.option(
    "--model",
    metavar="NAME",
    help="What embeds images and the words for names: starter, unless a catalogue has vectors of another.",
)
@click.option(
    "--names",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Name groups by these words or phrases, one a line, instead of tags.",
)
@click.option(
    "--sheet",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the most typical images of every group: a .jpg or .png, or a folder for a picture of each.",
)
@click.option(
    "--sheet-images",
    type=click.IntRange(1, 1000),
    default=16,
    show_default=True,
    help="How many images of a group are drawn.",
)
@table_options
@running_options
def command(paths: tuple[str, ...], **values: Any) -> None:
    """Put images into groups by what they show: name, size and most typical images of each are printed.

    `--output FILE` writes which group every image is in, and `--sheet FILE` draws the groups.
    """
    click.get_current_context().exit(until_nobody_reads(lambda: _cluster(paths, values)))


class _Named(NamedTuple):
    """A cluster as it is told.

    Attributes:
        number: From 1, the largest first.
        names: What it is called.
        images: How many there are.
        nearest: The most typical, the nearest to the centre first.
    """

    number: int
    names: tuple[str, ...]
    images: int
    nearest: list[tuple[str, str | None, float]]

    @property
    def name(self) -> str:
        return ", ".join(self.names) or f"cluster {self.number}"


def _cluster(paths: tuple[str, ...], values: dict[str, Any]) -> int:
    from annotary.catalog.clusters import find_clusters
    from annotary.catalog.clusters_rows import ClusterRows
    from annotary.cli._output import tell

    options = made(ClusterOptions, values)
    if bool(paths) == (values["catalog"] is not None):
        raise UsageError("name images to group: either PATH... or --catalog FOLDER")
    check_table(values, paths, COLUMNS, can_print=True)
    _check_sheet(values["sheet"], paths)
    names = _read_names(values["names"])
    reading = Reading(values)
    with (
        tempfile.TemporaryDirectory(
            prefix="annotary-cluster-", ignore_cleanup_errors=True
        ) as folder,
        closing(ClusterRows(Path(folder))) as rows,
    ):
        if values["catalog"] is not None:
            model = _from_catalog(rows, values)
        else:
            model = _from_files(rows, reading, paths, values)
        rows.close()
        if not len(rows):
            raise UsageError("there are no images with vectors to group")
        clusters = find_clusters(rows.vectors(), options)
        named = _described(rows, clusters, _names(rows, clusters, model, names), values)
        _write(rows, clusters, named, values)
        _draw(named, reading, paths, values)
    noise = len(clusters.labels) - int(clusters.sizes.sum())
    if not named and not values["quiet"]:
        tell("nothing lies densely enough: say a smaller --min-size, or --method kmeans")
    told = f"{counted(len(rows), 'image')} in {counted(len(named), 'cluster')}"
    return reading.end(values["output"], told + (f", {noise:,} in none" if noise else ""))


def _from_files(
    rows: ClusterRows, reading: Reading, paths: Sequence[str], values: Mapping[str, Any]
) -> _Texts:
    import numpy as np

    from annotary.catalog._vector_cache import VectorCache
    from annotary.catalog.clusters_images import KnownImages
    from annotary.cli._output import tell
    from annotary.records import Annotation
    from annotary.tasks.embedding import Embed
    from annotary.tasks.encoding import image_encoder

    reading.open(paths)
    found = loaded(values["model"] or DEFAULT_MODEL, made(RuntimeOptions, dict(values)))
    task = Embed(image_encoder(found.model))
    decoding = made(DecodeOptions, values)
    # Named as those of annotary search --in are, so that either spares the other its work.
    pixels = f"{decoding.reduce} {decoding.transparency}"
    cache = VectorCache(f"{found.weights} {found.model.choice.library} {pixels}")
    images = KnownImages(rows, cache)
    with closing(cache), closing(images):
        for item, record, _ in reading.results(
            *(paths, [task], "embedding", images.to_do, lambda item: images.take(item, None))
        ):
            assert item is not None
            assert isinstance(record, Annotation)
            assert record.embedding is not None
            images.take(item, np.array(record.embedding.vector, np.float32))
    if cache.problem and not values["quiet"]:
        tell(f"vectors could not be kept in {cache.path}: {cache.problem}")
    return _Texts(lambda: found, is_quiet=values["quiet"])


def _from_catalog(rows: ClusterRows, values: Mapping[str, Any]) -> _Texts:
    from annotary.catalog import Catalog
    from annotary.catalog._columns import recovered

    catalog = Catalog.open(values["catalog"])
    if catalog.dimensions is None:
        place = catalog.path
        raise UsageError(
            f"{place} holds no vectors; add them: annotary embed PATH... --catalog {place}"
        )
    columns = ["image", "path", "tag_names", "embedding"]
    for batch in catalog.rows(columns, where="embedding IS NOT NULL"):
        vectors = batch.column("embedding").flatten().to_numpy().reshape(len(batch), -1)
        told = zip(*(batch.column(name).to_pylist() for name in columns[:3]), strict=True)
        for vector, (image, path, tags) in zip(vectors, told, strict=True):
            rows.add(recovered(image), recovered(path) if path else None, vector, tags)
    return _Texts(lambda: _model_of(catalog, values), is_quiet=values["quiet"])


def _model_of(catalog: Catalog, values: Mapping[str, Any]) -> Loaded:
    """The model whose vectors a catalogue holds.

    Raises:
        UsageError: It is another one than was told, or has changed since.
    """
    held = catalog.note.parts["embedding"]
    name = values["model"] or held.get("name") or str(held["model"]).rpartition("@")[0]
    found = loaded(name, made(RuntimeOptions, dict(values)))
    if held.get("weights") not in (None, found.fingerprint, found.weights):
        raise UsageError(
            f"{catalog.path} holds vectors of {held['model']} with other weights than"
            f" {found.model.card.id} has; words cannot be compared with them"
        )
    return found


class _Texts:
    """The model that embeds words, loaded only when words are needed.

    Args:
        load: Loads it.
        is_quiet: Whether nothing is told.
    """

    def __init__(self, load: Callable[[], Loaded], *, is_quiet: bool) -> None:
        self._load = load
        self._is_quiet = is_quiet

    def of(self, names: Sequence[str] | None) -> tuple[list[str], Any]:
        """Words and their vectors float32[t, d]; the model's own tags, or else the starter's, when none are told.

        Where none are told and the model does not know texts, there are none.

        Raises:
            UsageError: Words were told, and the model does not know texts.
        """
        from annotary import weights
        from annotary.cards import read_vocabulary
        from annotary.cli._output import tell
        from annotary.tasks.class_vectors import class_vectors
        from annotary.tasks.encoding import dual_encoder
        from annotary.tasks.label_sets import LabelClass, shortened

        found: Loaded = self._load()
        if names is None and not hasattr(found.model, "embed_texts"):
            return [], None
        encoder = dual_encoder(found.model)
        vocabulary = getattr(found.model, "vocabulary", None)
        if names is None and vocabulary is None:
            vocabulary = read_vocabulary(weights.shipped()["starter"])
        words = list(vocabulary.names if names is None else names)  # type: ignore[union-attr]
        classes = [LabelClass(word, (word.replace("_", " "),)) for word in words]
        vectors, is_truncated = class_vectors(encoder, classes, found.text_cache())
        if is_truncated.any() and not self._is_quiet:
            cut = [shortened(word) for word, long in zip(words, is_truncated, strict=True) if long]
            more = f", and {len(cut) - _SHOWN:,} more" if len(cut) > _SHOWN else ""
            told = f"{', '.join(cut[:_SHOWN])}{more}"
            tell(f"longer than {encoder.card.id} reads, so the end is left out: {told}")
        return words, vectors


def _names(
    rows: ClusterRows, clusters: Clusters, model: _Texts, names: Sequence[str] | None
) -> list[tuple[str, ...]]:
    """What clusters are called: by tags where there are any, else by the nearest words."""
    from annotary.catalog.clusters_names import names_by_tags, names_by_texts

    count = len(clusters.sizes)
    if names is None and any(row.tags for row in rows):
        labels = clusters.labels.tolist()
        return names_by_tags(
            ((label, row.tags or ()) for label, row in zip(labels, rows, strict=True)), count
        )
    words, vectors = model.of(names)
    if not words:
        return [()] * count
    every = rows.vectors()
    mean = sum(every[start : start + 4096].sum(axis=0) for start in range(0, len(every), 4096))
    return names_by_texts(clusters.centres, mean / len(every), words, vectors)


def _described(
    rows: ClusterRows,
    clusters: Clusters,
    names: list[tuple[str, ...]],
    values: Mapping[str, Any],
) -> list[_Named]:
    """The clusters with their most typical images, and how they are called."""
    most = max(_SHOWN, values["sheet_images"] if values["sheet"] is not None else 0)
    heaps: list[list[tuple[float, int, str, str | None]]] = [[] for _ in names]
    told = zip(clusters.labels.tolist(), clusters.distances.tolist(), rows, strict=True)
    for place, (label, distance, row) in enumerate(told):
        if label >= 0:
            entry = (-distance, -place, row.image, row.path)
            (heapq.heappush if len(heaps[label]) < most else heapq.heappushpop)(heaps[label], entry)
    return [
        _Named(
            number,
            names[number - 1],
            int(clusters.sizes[number - 1]),
            [(image, path, -near) for near, _, image, path in sorted(heap, reverse=True)],
        )
        for number, heap in enumerate(heaps, 1)
    ]


def _write(
    rows: ClusterRows, clusters: Clusters, named: list[_Named], values: Mapping[str, Any]
) -> None:
    from annotary.cli._output import one_line

    if values["output"] is not None:
        with table_writer(values["output"], COLUMNS) as write:
            told = zip(rows, clusters.labels.tolist(), clusters.distances.tolist(), strict=True)
            for row, label, distance in told:
                name = named[label].name if label >= 0 else NOISE
                write(
                    {
                        "image": row.image,
                        "cluster": label + 1,
                        "name": name,
                        "distance": round(distance, 6),
                    }
                )
    if values["as_json"]:
        for cluster in named:
            nearest = [{"image": image, "distance": round(d, 6)} for image, _, d in cluster.nearest]
            print_line(
                json_line(
                    {
                        "cluster": cluster.number,
                        "name": cluster.name,
                        "names": list(cluster.names),
                        "images": cluster.images,
                        "share": round(cluster.images / len(rows), 6),
                        "nearest": nearest,
                    }
                )
            )
    elif values["output"] is None:
        width = max((len(f"{cluster.images:,}") for cluster in named), default=1)
        for cluster in named:
            typical = ", ".join(image for image, _, _ in cluster.nearest[:_SHOWN])
            share = f"{cluster.images:>{width},}  {cluster.images / len(rows):>6.1%}"
            print_line(one_line(f"{cluster.number:>3}  {share}  {cluster.name}  ({typical})"))


def _draw(
    named: list[_Named], reading: Reading, paths: Sequence[str], values: Mapping[str, Any]
) -> None:
    """The contact sheet, or a folder of them."""
    from annotary.catalog.contact_sheet import SUFFIXES, Section, contact_sheet, save

    place: Path | None = values["sheet"]
    if place is None or not named:
        return
    most = values["sheet_images"]
    found = pictures({n[:2] for cluster in named for n in cluster.nearest[:most]}, reading, paths)

    def section(cluster: _Named) -> Section:
        shown = [found.get(image) for image, _, _ in cluster.nearest[:most]]
        title = f"{cluster.number}  {cluster.name}" if cluster.names else cluster.name
        return Section(title, counted(cluster.images, "image"), shown)

    if place.suffix.lower() in SUFFIXES:
        sheets = {place: contact_sheet([section(cluster) for cluster in named])}.items()
    else:
        digits = len(str(len(named)))
        sheets = (  # type: ignore[assignment]
            (place / f"cluster-{cluster.number:0{digits}}.jpg", contact_sheet([section(cluster)]))
            for cluster in named
        )
    for path, sheet in sheets:
        save(sheet, path)


def _check_sheet(place: Path | None, paths: Sequence[str]) -> None:
    """Refuse what can be no sheet, and places where something else is."""
    from annotary.catalog.contact_sheet import SUFFIXES
    from annotary.catalog.sheet_place import check_sheet_place

    if place is None:
        return
    if place.suffix.lower() in SUFFIXES:
        check_sheet_place(place, paths)
    elif place.suffix or (place.exists() and not place.is_dir()):
        raise UsageError(f"--sheet {place} must end in {', '.join(SUFFIXES)}, or be a folder")
    else:
        for path in place.glob("cluster-*.jpg"):
            if path.stem.removeprefix("cluster-").isdecimal():
                check_sheet_place(path, paths)


def _read_names(path: Path | None) -> list[str] | None:
    """The words of a file, one a line.

    Raises:
        UsageError: It cannot be read, or holds none.
    """
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UsageError(f"cannot read --names {path}: {why}") from error
    names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not names:
        raise UsageError(f"--names {path} holds no words")
    return names
