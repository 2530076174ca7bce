"""Pages about steps and pipelines: they say what the reports say, need nothing else, and believe no text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from annotary.cli import annotary as program  # noqa: E402
from annotary.curation._rank_plot import rank_plot, short  # noqa: E402
from annotary.curation._report_parts import percent, told  # noqa: E402
from annotary.curation.balance import BalanceOptions, balance  # noqa: E402
from annotary.curation.entries import Entries  # noqa: E402
from annotary.curation.match import MatchOptions, match  # noqa: E402
from annotary.curation.report_page import page_of, write_page, write_plot  # noqa: E402
from annotary.curation.steps import StepOptions  # noqa: E402
from annotary.errors import OutputError, UsageError  # noqa: E402

ONE = StepOptions(workers=1)
SVG = "{http://www.w3.org/2000/svg}"
EVIL = "<script>alert('1')</script>"
VOID = {"meta", "path", "rect", "br"}


class Page(HTMLParser):
    """The texts and attributes of a page; an element that is not closed is an error."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: set[str] = set()
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.texts.append(data.strip())

    def figure(self, name: str) -> str:
        """The large number below a name."""
        return self.texts[self.texts.index(name) + 1]


def matched(folder: Path) -> Path:
    """100 captions: 60 with "photo", 20 with an entry that is markup, 5 with one of their own, the others without."""
    captions = ["a photo here"] * 60 + [f"x {EVIL} y"] * 20
    captions += [f"own{number} only" for number in range(5)] + ["nothing"] * 15
    ids = [f"{number}" for number in range(100)]
    pq.write_table(pa.table({"id": ids, "caption": captions}), folder / "pairs.parquet")
    entries = Entries(("photo", EVIL, *(f"own{number}" for number in range(5)), "never"))
    match([folder / "pairs.parquet"], entries, folder / "matched", steps=ONE)
    return folder / "matched"


def balanced(folder: Path, **options: Any) -> Path:
    balance(matched(folder), folder / "balanced", BalanceOptions(**options), ONE)
    return folder / "balanced"


def test_the_page_of_a_balanced_folder_says_what_its_report_says(tmp_path):
    folder = balanced(tmp_path, t=10)
    report = json.loads((folder / "_report.json").read_text())
    html = page_of(folder, tmp_path)
    page = Page(html)
    assert page.figure("rows in") == "100"
    assert page.figure("rows out") == str(report["rows_out"])
    assert page.figure("t") == "10"
    assert page.figure("texts without an entry") == "15.0%"
    assert page.figure("entries above t, of 8") == "2"
    assert page.figure("matches in the tail, before") == percent(5 / 85)
    assert page.figure("matches in the tail, after") == percent(report["tail_share_kept"])
    assert page.figure("no entry matched") == "15"
    assert page.figure("not drawn") == str(report["dropped"]["not drawn"])
    row = page.texts.index("photo")
    kept = next(one["after"] for one in report["head"] if one["entry"] == "photo")
    assert page.texts[row + 1 : row + 4] == ["60", str(kept), "0.16667"]
    assert "t = 10" in page.texts
    assert page.texts.count("rank of the entry") == 2  # wide and narrow


def test_a_page_needs_nothing_but_itself_and_escapes_what_it_shows(tmp_path):
    folder = balanced(tmp_path, t=10)
    for html in (page_of(folder, tmp_path), page_of(tmp_path / "matched", tmp_path)):
        page = Page(html)
        assert EVIL in page.texts
        assert not page.tags & {"script", "link", "img", "iframe", "object"}
        assert not [name for name, _ in page.attributes if name.startswith("on")]
        places = [value for name, value in page.attributes if name in ("src", "href") and value]
        assert all(place.startswith("#") for place in places)
        assert "default-src 'none'" in html
        assert "url(" not in html
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)
        assert "prefers-color-scheme: dark" in html


def test_the_page_of_matches_shows_the_entries_that_most_texts_have(tmp_path):
    page = Page(page_of(matched(tmp_path), tmp_path))
    assert page.figure("texts without an entry") == "15.0%"
    assert page.figure("entries in a text") == "0.85"
    assert page.figure("entries found, of 8") == "7"
    assert page.texts[page.texts.index("photo") + 1] == "60"
    assert "No row was dropped." in page.texts
    assert "t" not in page.texts


def test_rows_that_matched_nothing_are_told_when_they_are_left_out(tmp_path):
    matched(tmp_path)
    entries = Entries(("photo",))
    options = MatchOptions(matched_only=True)
    match([tmp_path / "pairs.parquet"], entries, tmp_path / "less", options, ONE)
    page = Page(page_of(tmp_path / "less", tmp_path))
    row = page.texts.index("no entry matched")
    assert page.texts[row + 1 : row + 3] == ["40", "40.0%"]


@pytest.mark.parametrize("size", [(340, 300), (720, 380)])
def test_lines_stand_where_logarithms_say(size):
    curve = [(1, 10_000, 100), (10, 1_000, 0), (100, 10, 10)]
    root = ElementTree.fromstring(rank_plot(curve, 100, width=size[0], height=size[1]))
    paths: dict[str, str] = {}
    for one in root.iter(f"{SVG}path"):  # the legend comes last
        paths.setdefault(one.get("class", ""), one.get("d", ""))
    points = [tuple(map(float, one)) for one in re.findall(r"([\d.]+) ([\d.]+)", paths["before"])]
    # The first is there twice: a point alone would be a dot.
    (x1, y1), (x2, y2), (x3, y3) = points[1:]
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.11)  # two decades
    assert y3 - y2 == pytest.approx(2 * (y2 - y1), abs=0.11)
    limit = float(re.findall(r"M46 ([\d.]+)H", paths["limit"])[0])
    assert limit == pytest.approx(y1 + 2 * (y2 - y1), abs=0.11)
    after = re.findall(r"M[^M]*", paths["after"])
    assert len(after) == 2  # a gap where nothing is kept
    assert float(after[0].split("L")[1].split()[1]) == pytest.approx(limit, abs=0.11)


@given(
    st.lists(st.integers(1, 10**11), min_size=1, max_size=200),
    st.one_of(st.none(), st.floats(0.01, 1e12)),
    st.data(),
)
def test_every_plot_is_whole_and_stays_inside(counts, t, data):
    counts = sorted(counts, reverse=True)
    curve = [
        (rank, count, data.draw(st.integers(0, count)) if t is not None else None)
        for rank, count in enumerate(counts, 1)
    ]
    root = ElementTree.fromstring(rank_plot(curve, t, is_alone=True))
    for path in root.iter(f"{SVG}path"):
        for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.get("d", "")):
            assert 0 <= float(x) <= 720
            assert 0 <= float(y) <= 380
    texts = [one.text for one in root.iter(f"{SVG}text")]
    assert "rank of the entry" in texts
    assert ("after" in texts) == (t is not None)


def test_numbers_of_axes_and_shares_are_short():
    assert [short(10**power) for power in range(10)] == [
        *("1", "10", "100", "1k", "10k", "100k", "1M", "10M", "100M", "1B"),
    ]
    assert [percent(one) for one in (0, 1, 0.5, 0.0004, 0.99999)] == [
        *("0%", "100%", "50.0%", "0.040%", "99.999%"),
    ]
    assert told("tail_share", 0.25) == "25.0%"
    assert told("", [1_000, "a"]) == "1,000, a"
    assert told("", value=True) == "yes"


def test_the_plot_is_written_alone_for_balanced_and_for_matched_folders(tmp_path):
    folder = balanced(tmp_path, t=10)
    for place, lines in ((folder, {"before", "after"}), (tmp_path / "matched", {"before"})):
        file = tmp_path / f"{place.name}.svg"
        write_plot(place, file)
        root = ElementTree.parse(file).getroot()
        drawn = {one.get("class") for one in root.iter(f"{SVG}path")}
        assert drawn & {"before", "after"} == lines
        assert "prefers-color-scheme: dark" in file.read_text()
        write_plot(place, file)  # an earlier one is replaced
    np.save(tmp_path / "matched" / "_counts.npy", np.zeros(8, np.uint64))
    with pytest.raises(UsageError, match="nothing that was matched or balanced"):
        write_plot(tmp_path / "matched", tmp_path / "none.svg")


def test_only_pages_of_its_own_are_replaced(tmp_path):
    folder = matched(tmp_path)
    mine = tmp_path / "mine.html"
    mine.write_text("<!DOCTYPE html><p>mine")
    with pytest.raises(OutputError, match="is no report of annotary"):
        write_page(folder, mine)
    drawing = tmp_path / "mine.svg"
    drawing.write_text("<svg/>")
    with pytest.raises(OutputError, match="is no report of annotary"):
        write_plot(folder, drawing)
    with pytest.raises(UsageError, match=r"must end in \.html"):
        write_page(folder, tmp_path / "mine.txt")
    with pytest.raises(UsageError, match=r"must end in \.svg"):
        write_plot(folder, tmp_path / "mine.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no report"):
        write_page(tmp_path / "empty", tmp_path / "page.html")
    (folder / "_report.json").write_text("{")
    with pytest.raises(UsageError, match=r"_report\.json cannot be read"):
        write_page(folder, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_command_writes_into_the_folder_what_pyarrow_does_not_take_for_a_table(tmp_path):
    folder = balanced(tmp_path, t=10)
    done = CliRunner().invoke(program, ["curate", "report", str(folder)])
    assert done.exit_code == 0, done.output
    assert done.stderr.strip() == f"written: {folder / '_report.html'}"
    assert pq.read_table(folder).num_rows
    plot = tmp_path / "plot.svg"
    done = CliRunner().invoke(program, ["curate", "report", str(folder), "--plot", str(plot)])
    assert done.stderr.strip() == f"written: {plot}"
    both = ["--plot", str(plot), "--output", str(tmp_path / "page.html"), "--quiet"]
    done = CliRunner().invoke(program, ["curate", "report", str(folder), *both])
    assert (done.exit_code, done.output) == (0, "")
    assert (tmp_path / "page.html").exists()
    done = CliRunner().invoke(program, ["curate", "report", str(tmp_path / "none")])
    assert isinstance(done.exception, UsageError)


def test_a_folder_and_entries_with_any_name_can_be_shown(tmp_path):
    place = tmp_path / 'a "b" & <c>'
    place.mkdir()
    captions = ["שלום עולם x", " spaced  out ", "plain"]
    pq.write_table(pa.table({"id": list("abc"), "caption": captions}), place / "p.parquet")
    match([place / "p.parquet"], Entries(("שלום עולם", "plain", "")), place / "m<1>", steps=ONE)
    page = Page(page_of(place / "m<1>", place))
    assert "match: m<1>" in page.texts
    assert "שלום עולם" in page.texts


def test_ticks_are_powers_of_ten():
    root = ElementTree.fromstring(rank_plot([(1, 87_000_000, 40_000), (400_000, 1, 1)], 20_000))
    texts = {one.text for one in root.iter(f"{SVG}text")}
    assert {"1", "10", "1k", "1M", "100M", "t = 20,000"} <= texts
    assert "1B" not in texts
