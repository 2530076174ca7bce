"""The page of a dataset: what there is, how often tags occur, samples, what was left out. It needs no other file."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from annotary import images
from annotary.errors import ImageError
from annotary.training.dataset.image_cache import reduced_size
from annotary.training.dataset.index import IMAGES, Split
from annotary.training.dataset.tables import Rows

SAMPLES = 12
"""Pictures of each part that are shown."""

_MOST_TAGS, _MOST_DROPPED = 40, 60
_THUMBNAIL = 168  # pixels of the longer side
_LARGEST = 64 * 1024 * 1024  # bytes of an original that is read for a thumbnail

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --card: #f6f7f8; --ink: #1b1f23; --pale: #59636e; --line: #d9dde2;
  --bar: #3457c4; --other: #c98a2b; --track: #e7eaee; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1215; --card: #171b20; --ink: #e6e9ec; --pale: #a0a9b4;
  --line: #30363e; --bar: #8aa4ff; --other: #e0b060; --track: #262c33; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 980px; padding: 28px 16px 64px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 44px 0 10px; padding-top: 18px; border-top: 1px solid var(--line); }
p, figcaption { color: var(--pale); font-size: .9rem; margin: 0 0 10px; overflow-wrap: anywhere; }
ul { list-style: none; padding: 0; margin: 14px 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 10px; }
.figures li { padding: 10px 12px; background: var(--card); border-radius: 8px; }
.figures span { display: block; color: var(--pale); font-size: .8rem; }
.figures b { font-size: 1.2rem; font-weight: 600; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: 4px 0 4px 12px; text-align: right; font-weight: 400; border-bottom: 1px solid var(--line); }
th { color: var(--pale); font-size: .8rem; vertical-align: bottom; }
th:first-child, td:first-child { padding-left: 0; text-align: left; overflow-wrap: anywhere; min-width: 90px; }
td.text { text-align: left; overflow-wrap: anywhere; }
td.bar { width: 38%; min-width: 80px; }
td.bar span { display: flex; height: 9px; border-radius: 2px; background: var(--track); overflow: hidden; }
td.bar i { height: 100%; background: var(--bar); }
td.bar i + i, .other.key { background: var(--other); }
.key { display: inline-block; width: 9px; height: 9px; border-radius: 2px; background: var(--bar); margin-right: 5px; }
svg { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--pale); } svg .grid { stroke: var(--line); fill: none; }
svg rect { fill: var(--bar); }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; }
.samples li { background: var(--card); border-radius: 8px; padding: 8px; min-width: 0; }
.samples img, .gone { display: block; width: 100%; height: 150px; object-fit: contain; border-radius: 4px; }
.gone { color: var(--pale); padding-top: 60px; text-align: center; font-size: .8rem; }
.samples b { display: block; font-size: .78rem; font-weight: 600; margin-top: 6px; overflow-wrap: anywhere; }
.samples span { color: var(--pale); font-size: .78rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
"""


def summary_page(
    folder: Path,
    train: Rows,
    validation: Rows,
    tags: Sequence[str],
    categories: Sequence[str],
    told: Mapping[str, Any],
    report: Mapping[str, Any],
) -> str:
    """The page.

    Args:
        folder: Of the dataset, where reduced pictures are.
        train: The training images.
        validation: The validation images.
        tags: All tags, those with most images first.
        categories: Of each.
        told: What `dataset.json` says.
        report: What `report.json` says.
    """
    counts = [np.bincount(rows.tags, minlength=len(tags)).tolist() for rows in (train, validation)]
    title = f"Dataset {folder.resolve().name}"
    pieces = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy"',
        " content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        f"<title>{_safe(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_safe(title)}</h1>",
        f"<p>From {_safe(', '.join(told['settings']['inputs']))}</p>",
        _figures(report["counts"], train, validation),
        "".join(f"<p>{_safe(note)}.</p>" for note in report["notes"]),
        "<h2>How often tags occur</h2>",
        _histogram([one + other for one, other in zip(*counts, strict=True)]),
        _tag_table(tags, categories, counts),
        _kinds(categories, counts),
    ]
    suffix = str(told["cache_suffix"])
    for name, rows in (("Training images", train), ("Validation images", validation)):
        if len(rows.ids):
            pieces.append(f"<h2>{name}, a sample</h2>{_samples(folder, rows, tags, suffix)}")
    pieces += [_dropped_images(report), _dropped_tags(report), "</body></html>\n"]
    return "".join(pieces)


def _figures(counts: Mapping[str, int], train: Rows, validation: Rows) -> str:
    images_left = len(train.ids) + len(validation.ids)
    mean = (len(train.tags) + len(validation.tags)) / max(1, images_left)
    figures = {
        "images that came": f"{counts['posts']:,}",
        "training images": f"{counts['train']:,}",
        "validation images": f"{counts['validation']:,}",
        "tags": f"{counts['tags']:,}",
        "tags an image, on average": f"{mean:.1f}",
        "images left out": f"{counts['dropped_images']:,}",
        "tags left out": f"{counts['dropped_tags']:,}",
    }
    cells = "".join(f"<li><span>{k}</span><b>{v}</b></li>" for k, v in figures.items())
    return f'<ul class="figures">{cells}</ul>'


def _histogram(totals: Sequence[int]) -> str:
    """How many tags have how many images, in steps of one, two, five, ten, twenty …, as a drawing."""
    edges = [1]
    while edges[-1] <= max(totals):
        edges.append(edges[-1] * 5 // 2 if str(edges[-1])[0] == "2" else edges[-1] * 2)
    bars = [(low, high, sum(low <= one < high for one in totals)) for low, high in pairwise(edges)]
    while len(bars) > 1 and not bars[0][2]:
        bars.pop(0)
    width, height, left, bottom, top = 900, 250, 8, 46, 24
    step = (width - 2 * left) / len(bars)
    most = max(number for _, _, number in bars)
    pieces = []
    for place, (low, high, number) in enumerate(bars):
        x, tall = left + place * step, (height - top - bottom) * number / most
        y = height - bottom - tall
        name = f"{low:,}" if high - low == 1 else f"{low:,}–{high - 1:,}"
        size = 'textLength="%.0f" lengthAdjust="spacingAndGlyphs"' % (step - 4)
        fitted = size if len(name) * 6.6 > step - 4 else ""
        pieces.append(
            f'<rect x="{x + 2:.1f}" y="{y:.1f}" width="{step - 4:.1f}" height="{tall:.1f}" rx="2"/>'
            f'<text x="{x + step / 2:.1f}" y="{y - 6:.1f}" text-anchor="middle">{number:,}</text>'
            f'<text x="{x + step / 2:.1f}" y="{height - bottom + 17}" text-anchor="middle" {fitted}>{name}</text>'
        )
    return (
        f'<div class="scroll"><svg viewBox="0 0 {width} {height}" role="img" style="min-width:560px"'
        ' aria-label="Number of tags by number of images">'
        f'<path class="grid" d="M{left} {height - bottom}H{width - left}"/>{"".join(pieces)}'
        f'<text x="{width / 2:.0f}" y="{height - 8}" text-anchor="middle">images that a tag has</text>'
        f'<text x="{left}" y="14">tags</text></svg></div>'
    )


def _tag_table(
    tags: Sequence[str], categories: Sequence[str], counts: Sequence[Sequence[int]]
) -> str:
    most = max(one + other for one, other in zip(*counts, strict=True))
    has_categories = any(categories)
    rows = []
    for place in range(min(len(tags), _MOST_TAGS)):
        train, validation = counts[0][place], counts[1][place]
        parts = "".join(f'<i style="width:{100 * n / most:.2f}%"></i>' for n in (train, validation))
        kind = f"<td>{_safe(categories[place])}</td>" if has_categories else ""
        rows.append(
            f"<tr><td>{_safe(tags[place])}</td>{kind}"
            f'<td>{train:,}</td><td>{validation:,}</td><td class="bar"><span>{parts}</span></td></tr>'
        )
    more = f"<p>The {_MOST_TAGS} most frequent of {len(tags):,}; tags.csv has all.</p>"
    return (
        f'<div class="scroll"><table><tr><th>tag{"<th>category" if has_categories else ""}'
        '<th><i class="key"></i>train<th><i class="key other"></i>validation<th></tr>'
        + "".join(rows)
        + "</table></div>"
        + (more if len(tags) > _MOST_TAGS else "")
    )


def _kinds(categories: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """The categories, where there are several."""
    kinds = sorted(set(categories))
    if len(kinds) < 2:
        return ""
    rows = []
    for kind in kinds:
        own = [place for place, one in enumerate(categories) if one == kind]
        uses = sum(counts[0][place] + counts[1][place] for place in own)
        rows.append((_safe(kind or "(none)"), f"{len(own):,}", f"{uses:,}"))
    return "<h2>Categories</h2>" + _table(("category", "tags", "uses"), rows)


def _samples(folder: Path, rows: Rows, tags: Sequence[str], suffix: str) -> str:
    """Some images, evenly from the first to the last, with their tags."""
    split = Split(
        rows.ids,
        rows.offsets,
        rows.tags,
        rows.sha256,
        rows.images,
        tag_count=len(tags),
        cache=folder / IMAGES,
        suffix=suffix,
    )
    number = min(SAMPLES, len(rows.ids))
    pieces = []
    for place in range(number):
        row = place * len(rows.ids) // number
        own = rows.tags[rows.offsets[row] : rows.offsets[row + 1]]
        listed = ", ".join(tags[tag] for tag in own.tolist())
        picture = _thumbnail(split.path(row))
        shown = (
            f'<img alt="" src="data:image/jpeg;base64,{picture}">'
            if picture
            else '<span class="gone">no picture</span>'
        )
        pieces.append(
            f"<li>{shown}<b>{_safe(rows.ids[row])}</b><span>{_safe(listed) or 'no tags'}</span></li>"
        )
    return f'<ul class="samples">{"".join(pieces)}</ul>'


def _thumbnail(path: Path) -> str:
    """A small JPEG of a picture in base64; empty where it cannot be read."""
    try:
        if path.stat().st_size > _LARGEST:
            return ""
        decoded = images.decode(path.read_bytes(), at_least=(_THUMBNAIL, _THUMBNAIL))
    except (OSError, ValueError, ImageError):
        return ""
    rows, columns = reduced_size(decoded.width, decoded.height, _THUMBNAIL)
    picture = Image.fromarray(decoded.pixels).resize((columns, rows), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode()


def _dropped_images(report: Mapping[str, Any]) -> str:
    reasons = report["dropped_images_by_reason"]
    if not reasons:
        return ""
    counted = [(_safe(why), f"{number:,}") for why, number in reasons.items()]
    # Some of each reason, rather than the first sixty of one.
    share = math.ceil(_MOST_DROPPED / len(reasons))
    shown: dict[str, int] = {}
    rows = []
    for one in report["dropped_images"]:
        shown[one["why"]] = shown.get(one["why"], 0) + 1
        if shown[one["why"]] <= share:
            detail = "; ".join(
                part
                for part in (one.get("told", ""), f"as {one['of']}" if "of" in one else "")
                if part
            )
            rows.append((_safe(one["id"]), _safe(one["why"]), _safe(detail)))
    more = (
        "<p>Some of each; report.json has all.</p>"
        if len(rows) < len(report["dropped_images"])
        else ""
    )
    return (
        "<h2>Images left out</h2>"
        + _table(("why", "images"), counted)
        + "<p></p>"
        + _table(("image", "why", "more"), rows)
        + more
    )


def _dropped_tags(report: Mapping[str, Any]) -> str:
    every = report["dropped_tags"]
    if not every:
        return ""
    rows = [
        (_safe(one["tag"]), _safe(one["category"]), f"{one['images']:,}", _safe(one["why"]))
        for one in every[:_MOST_DROPPED]
    ]
    more = (
        f"<p>The first of {len(every):,}; report.json has all.</p>"
        if len(every) > len(rows)
        else ""
    )
    return "<h2>Tags left out</h2>" + _table(("tag", "category", "images", "why"), rows) + more


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are safe already."""
    head = "".join(f"<th>{one}</th>" for one in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _safe(text: str) -> str:
    """A text in a page, whatever is in it."""
    return escape(text.encode("utf-8", "backslashreplace").decode())
