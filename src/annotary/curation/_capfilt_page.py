"""What CapFilt keeps and drops, and why, as one page of HTML with pictures that needs nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import heapq
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from annotary import images
from annotary.curation._capfilt_page_parts import END, HEAD
from annotary.curation._capfilt_store import kind_of_reason
from annotary.curation._capfilt_tables import Tables
from annotary.errors import AnnotaryError, OutputError, UsageError
from annotary.images import DecodeOptions
from annotary.records import Item
from annotary.sinks._atomic import replacing
from annotary.sources import Reader, SourceOptions
from annotary.sources._paths import kind_of
from annotary.sources._rows import is_address

Row = Mapping[str, Any]

MARK = "<!-- annotary curate capfilt -->"
"""What a page begins with; nothing else is replaced by one."""

_SIDE = 240  # pixels of the longer side of a picture
_QUALITY = 75


def check_page(path: Path) -> None:
    """Refuse a place where no page can be, before the work is done.

    Raises:
        UsageError: It does not end as a page does.
        OutputError: Something else is there.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--report {path} must end in .html")
    try:
        with path.open("rb") as file:
            is_ours = file.read(len(MARK)) in (MARK.encode(), b"")
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    if not is_ours:
        raise OutputError(f"{path} is no report of annotary; move it away, or choose another name")


class Pictures:
    """Small pictures of images, as data URIs.

    Args:
        tables: Tables that may hold them.
        source_options: How images are read.
        decode_options: How they are decoded.
    """

    def __init__(
        self,
        tables: Sequence[str],
        source_options: SourceOptions,
        decode_options: DecodeOptions,
    ) -> None:
        self._tables = tables
        self._source_options = source_options
        self._decode_options = decode_options

    def of(self, names: Collection[str]) -> dict[str, str]:
        """The pictures of images, by name; those that cannot be had are left out."""
        found = {}
        with Reader(self._source_options) as reader:
            for item in self._items(names):
                try:
                    found[item.image] = self._drawn(reader.read(item))
                except (AnnotaryError, MemoryError):
                    continue
        return found

    def _items(self, names: Collection[str]) -> Iterator[Item]:
        inside = set()
        for name in names:
            if is_address(name):
                yield Item(name, url=name)
            elif kind_of(name) == "file":
                yield Item.from_path(name)
            else:
                inside.add(name)
        for table in self._tables:
            own = {name for name in inside if name.startswith(f"{table}/")}
            if not own or kind_of(table) != "file":
                continue
            try:
                for row in Tables([table], None, self._source_options).rows(with_images=True):
                    if isinstance(row.found, Item) and row.found.image in own:
                        yield row.found
            except AnnotaryError:
                continue

    def _drawn(self, data: bytes) -> str:
        decoded = images.decode(data, at_least=(_SIDE, _SIDE), options=self._decode_options)
        picture = Image.fromarray(decoded.pixels)
        picture.thumbnail((_SIDE, _SIDE))
        held = io.BytesIO()
        picture.save(held, "JPEG", quality=_QUALITY)
        return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()


@dataclass(slots=True)
class _Totals:
    """What became of all texts of an origin."""

    texts: int = 0
    kept: int = 0
    scored: int = 0
    unmatched: int = 0
    why: dict[str, int] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Count a text."""
        self.texts += 1
        self.kept += bool(row["kept"])
        has_score = row.get("score") is not None
        self.scored += has_score
        if not row["kept"]:
            self.unmatched += has_score
            why = kind_of_reason(str(row.get("why") or "dropped"))
            self.why[why] = self.why.get(why, 0) + 1


def write_page(
    path: Path,
    rows: Callable[[], Iterable[Row]],
    pictures: Pictures,
    told: Mapping[str, Any],
    *,
    images: int,
    seed: int,
) -> int:
    """Write the page.

    Args:
        path: Where.
        rows: Gives all texts, those of an image together; it is gone through twice.
        pictures: Draws the images.
        told: What a result says of them, as far as it is known.
        images: How many are shown, at most: half of them with a text that was dropped, where there are so many.
        seed: Of which those are: the same seed and names give the same.

    Returns:
        How many images are shown.

    Raises:
        OutputError: It cannot be written.
    """
    if images < 1:
        raise UsageError(f"--report-images must be at least 1, but got {images}")
    totals = {"web": _Totals(), "synthetic": _Totals()}
    models: dict[str, str] = {}
    chosen, count = _chosen(_counted(rows(), totals, models), images, seed)
    groups = [
        (name, list(own))
        for name, own in groupby(rows(), key=lambda row: str(row["image"]))
        if name in chosen
    ]
    drawn = pictures.of(chosen)
    columns = {row.get("column") for _, own in groups for row in own if row["origin"] == "web"}
    has_columns = len(columns) > 1
    try:
        with replacing(path) as file:
            head = _head({**models, **told}, totals, len(groups), count)
            file.write(f"{MARK}\n{HEAD}{head}".encode("utf-8", "backslashreplace"))
            for name, own in groups:
                shown = _image(name, own, drawn.get(name), has_columns=has_columns)
                file.write(shown.encode("utf-8", "backslashreplace"))
            file.write(END.encode())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    return len(groups)


def _counted(
    rows: Iterable[Row], totals: Mapping[str, _Totals], models: dict[str, str]
) -> Iterator[Row]:
    """The rows, which are counted as they pass."""
    for row in rows:
        totals["synthetic" if row["origin"] == "synthetic" else "web"].add(row)
        for name in ("captioner", "matcher"):
            if row.get(name):
                models[name] = str(row[name])
        yield row


def _chosen(rows: Iterable[Row], most: int, seed: int) -> tuple[set[str], int]:
    """The images that are shown, and how many there are in all."""
    heaps: tuple[list[tuple[int, str]], list[tuple[int, str]]] = ([], [])
    count = 0
    for name, own in groupby(rows, key=lambda row: str(row["image"])):
        count += 1
        is_whole = all(row["kept"] for row in list(own))
        digest = hashlib.blake2b(
            f"{seed}\0{name}".encode("utf-8", "backslashreplace"), digest_size=8
        )
        entry = (-int.from_bytes(digest.digest(), "big"), name)
        heap = heaps[is_whole]
        heapq.heappush(heap, entry) if len(heap) < most else heapq.heappushpop(heap, entry)
    dropped, whole = (sorted(heap, reverse=True) for heap in heaps)
    from_dropped = min(len(dropped), max(most - most // 2, most - len(whole)))
    shown = dropped[:from_dropped] + whole[: most - from_dropped]
    return {name for _, name in shown}, count


def _head(told: Mapping[str, Any], totals: Mapping[str, _Totals], shown: int, images: int) -> str:
    """The heading, and the numbers of all texts."""
    facts = [f"captioner {told['captioner']}" if told.get("captioner") else "no captioner"]
    facts.append(f"filter {told['matcher']}" if told.get("matcher") else "no filter")
    if told.get("same_model"):
        facts.append("captioner and filter are the same model")
    if told.get("threshold") is not None:
        facts.append(f"kept from {told['threshold']:g} on")
    if told.get("keep_share") is not None:
        facts.append(f"the best {told['keep_share'] * 100:g} % are kept")
    rows, reasons = [], []
    for name, one in totals.items():
        noise = f"{one.unmatched / one.scored:.1%}" if one.scored else "-"
        cells = (f"{one.texts:,}", f"{one.kept:,}", f"{one.texts - one.kept:,}", noise)
        numbers = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{name}</th>{numbers}</tr>')
        why = "; ".join(f"{why}: {count:,}" for why, count in sorted(one.why.items()))
        if why:
            reasons.append(f'<p class="why">{name}, dropped: {escape(why)}</p>\n')
    return (
        f"<p>{escape(' · '.join(facts))}</p>\n"
        "<table><tr><th>texts</th><th>all</th><th>kept</th><th>dropped</th><th>noise ratio</th></tr>"
        f"{''.join(rows)}</table>\n{''.join(reasons)}"
        f"<p>{shown:,} of {images:,} images are shown. The noise ratio is the share of the texts with a score that"
        " the filter dropped.</p>\n</header>\n"
        f"{_CONTROLS}<main>\n"
    )


_CONTROLS = """<form id="controls">
<label>show <select id="show">
<option value="all">all</option>
<option value="dropped">with a dropped text</option>
<option value="whole">nothing dropped</option>
<option value="synthetic">web dropped, synthetic kept</option>
<option value="web">synthetic dropped, web kept</option>
</select></label>
<label>order <select id="order">
<option value="low">lowest score first</option>
<option value="high">highest score first</option>
<option value="name">name</option>
</select></label>
<label>with <input id="words" type="search" placeholder="words or a name"></label>
<output id="count"></output>
</form>
"""


def _image(name: str, rows: Sequence[Row], picture: str | None, *, has_columns: bool) -> str:
    """An image with its texts; with their columns, where there are several."""
    scores = [row["score"] for row in rows if row.get("score") is not None]
    states = {
        origin: "".join(
            sorted({"k" if row["kept"] else "d" for row in rows if row["origin"] == origin})
        )
        for origin in ("web", "synthetic")
    }
    attributes = (
        f' data-low="{min(scores, default=2)}" data-high="{max(scores, default=-2)}"'
        f' data-web="{states["web"]}" data-synthetic="{states["synthetic"]}"'
    )
    shown = (
        f'<img src="{picture}" alt="">'
        if picture
        else '<div class="gone">this image cannot be shown</div>'
    )
    columns = "".join(
        f"<section><h3>{origin}</h3>"
        f"{_texts([row for row in rows if row['origin'] == origin], has_columns)}</section>"
        for origin in ("web", "synthetic")
    )
    return (
        f'<article{attributes}><figure>{shown}<figcaption dir="auto">{escape(name)}</figcaption></figure>'
        f"{columns}</article>\n"
    )


def _texts(rows: Sequence[Row], has_columns: bool) -> str:
    if not rows:
        return '<p class="none">none</p>'
    return f"<ul>{''.join(_text(row, has_columns) for row in rows)}</ul>"


def _text(row: Row, has_columns: bool) -> str:
    """A text, whether it is kept, and why not."""
    state = "kept" if row["kept"] else "dropped"
    text = str(row.get("text") or "")
    said = f'<p dir="auto">{escape(text)}</p>' if text.strip() else '<p class="none">(empty)</p>'
    score = row.get("score")
    told = [f"<b>{state}</b>"]
    if score is not None:
        width = 100 * min(1.0, max(0.0, float(score)))
        bar = f'<span class="bar"><span style="width:{width:.1f}%"></span></span>'
        told.append(f'{bar}<span class="score">{float(score):.3f}</span>')
    if row.get("why"):
        told.append(f"<span>{escape(str(row['why']))}</span>")
    if has_columns and row.get("column"):
        told.append(f'<span class="from">{escape(str(row["column"]))}</span>')
    return f'<li class="{state}">{said}<div>{"".join(told)}</div></li>'
