"""CapFilt: what is written, what is kept and why, and that nothing is lost on the way."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from annotary.cli import annotary as program
from annotary.curation._capfilt_output import read_rows, write_rows
from annotary.curation._capfilt_store import _share
from annotary.curation.capfilt import CapFiltOptions, CapFiltResult, capfilt, write_report
from annotary.errors import MissingExtra, NothingToDo, OutputError, UsageError
from annotary.pipeline import PipelineOptions
from annotary.sources import SourceOptions
from annotary.tasks.writing import Decoding, Matched, Written
from tests.conftest import child_environment
from tests.small_encoder import COLOURS, SmallEncoder

NAMES = ("red", "green", "blue", "yellow", "white", "black")


class Painter(SmallEncoder):
    """A captioner that names the colour of a picture, in capitals; of black pictures it has nothing to say."""

    def __init__(self, name: str = "painter") -> None:
        super().__init__(name=name)
        self.written = 0

    def check_prompt(self, prompt: str, decoding: Decoding) -> None:
        if len(prompt.split()) > decoding.max_length:
            raise UsageError("the prompt leaves no room")

    def write_captions(
        self, batch: Any, prompts: Sequence[str], decoding: Decoding
    ) -> list[list[Written]]:
        self.written += len(batch)
        found = []
        for picture in batch:
            mean = 255 * np.asarray(picture).mean(axis=(1, 2))
            name = min(NAMES, key=lambda one: np.abs(mean - np.array(COLOURS[one])).sum())
            found.append([] if name == "black" else [Written(f"A {name} wall", 0.5)])
        return found


class Judge(SmallEncoder):
    """A matcher whose probability of a match is 0.9 for the colour of the picture, and 0.1 for other texts."""

    def is_read_whole(self, text: str) -> bool:
        return len(text.split()) <= 16

    def match_texts(self, batch: Any, texts: Sequence[Sequence[str]]) -> list[list[Matched]]:
        self.images += len(batch)
        self.calls.append(tuple(text for some in texts for text in some))
        found = []
        for picture, some in zip(batch, texts, strict=True):
            mean = 255 * np.asarray(picture).mean(axis=(1, 2))
            name = min(NAMES, key=lambda one: np.abs(mean - np.array(COLOURS[one])).sum())
            found.append([Matched(0.9 if name in text.lower() else 0.1, None) for text in some])
        return found


@pytest.fixture
def walls(tmp_path: Path) -> Path:
    """A folder with a picture of each colour."""
    folder = tmp_path / "walls"
    folder.mkdir()
    for name in NAMES:
        Image.new("RGB", (12, 9), COLOURS[name]).save(folder / f"{name}.png")
    return folder


def table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A table with these rows, by the suffix of its name."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    elif name.endswith(".csv"):
        held = io.StringIO()
        writer = csv.DictWriter(held, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = held.getvalue()
    else:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(list(rows)), path)
        return path
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def pairs(walls: Path, count: int = 6) -> list[dict[str, Any]]:
    """A row for each picture: a true text for every second one, the text of its neighbour for the others."""
    rows = []
    for i in range(count):
        name, other = NAMES[i % 6], NAMES[(i + 1) % 6]
        said = name if i % 2 else other
        rows.append({"image": str(walls / f"{name}.png"), "caption": f"photo of a {said} wall"})
    return rows


def written(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        return found
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(
    path: Path | Sequence[Path],
    output: Path,
    captioner: Any = None,
    matcher: Any = None,
    **more: Any,
) -> CapFiltResult:
    keywords = {
        name: more.pop(name)
        for name in list(more)
        if name.endswith("_options") or name.startswith("report")
    }
    return capfilt(
        [path] if isinstance(path, Path) else path,
        output,
        CapFiltOptions(**more),
        captioner=captioner,
        matcher=matcher,
        **keywords,
    )


class TestTheTable:
    def test_one_row_a_text_with_score_origin_and_cards(self, walls, tmp_path):
        path = table(tmp_path / "pairs.jsonl", pairs(walls, 5))
        output = tmp_path / "out.jsonl"
        result = run(path, output, Painter(), Judge(name="judge"))
        rows = written(output)
        assert [(Path(row["image"]).stem, row["origin"], row["kept"]) for row in rows] == [
            ("red", "web", False),
            ("red", "synthetic", True),
            ("green", "web", True),
            ("green", "synthetic", True),
            ("blue", "web", False),
            ("blue", "synthetic", True),
            ("yellow", "web", True),
            ("yellow", "synthetic", True),
            ("white", "web", False),
            ("white", "synthetic", True),
        ]
        first, second = rows[:2]
        assert (first["text"], first["score"]) == ("photo of a green wall", 0.1)
        assert first["why"] == "score below 0.5"
        assert (first["table"], first["row"], first["column"]) == (str(path), 1, "caption")
        assert (first["captioner"], first["matcher"]) == (None, "judge@1.0")
        assert (second["text"], second["score"], second["why"]) == ("A red wall", 0.9, None)
        assert (second["certainty"], second["captioner"]) == (0.5, "painter@1.0")
        assert result.texts["web"]["kept"] == 2
        assert result.texts["web"]["noise_ratio"] == 3 / 5
        assert result.texts["synthetic"]["noise_ratio"] == 0.0
        assert (result.outcome.done, result.failures, result.settings["score"]) == (5, None, "itm")

    @pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "csv", "csv.gz", "parquet"])
    @pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
    def test_formats_hold_the_same(self, walls, tmp_path, suffix, ending):
        if "parquet" in (suffix, ending):
            pytest.importorskip("pyarrow")
        path = table(tmp_path / f"pairs.{suffix}", pairs(walls))
        output = tmp_path / f"out.{ending}"
        result = run(path, output, None, Judge())
        rows = written(output)
        assert result.rows == len(rows) == 6
        assert [row["kept"] in (True, "yes") for row in rows] == [False, True] * 3
        assert [float(row["score"]) for row in rows] == [0.1, 0.9] * 3
        assert {row["table"] for row in rows} == {str(path)}
        assert list(rows[0])[:6] == ["image", "text", "origin", "kept", "score", "why"]
        if ending == "parquet":
            from pyarrow import parquet

            schema = parquet.read_schema(output)
            assert str(schema.field("kept").type) == "bool"
            assert json.loads(schema.metadata[b"annotary.capfilt"])["matcher"] == "small@1.0"

    def test_images_of_a_tar_and_of_parquet_have_their_bytes_there(self, walls, tmp_path):
        tar = tmp_path / "shard.tar"
        with tarfile.open(tar, "w") as archive:
            for name in ("red", "green", "blue"):
                members = {
                    f"{name}.png": (walls / f"{name}.png").read_bytes(),
                    f"{name}.mask.png": b"no image",
                    f"{name}.txt": f"one {name} wall\n".encode(),
                    f"{name}.json": json.dumps({"alt": "a yellow wall", "image": "x"}).encode(),
                }
                for path, data in members.items():
                    info = tarfile.TarInfo(path)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        output = tmp_path / "out.jsonl"
        options = {"text_column": ("txt", "alt"), "report": tmp_path / "page.html"}
        result = run(tar, output, Painter(), Judge(), **options)
        rows = written(output)
        assert [row["kept"] for row in rows] == [True, False, True] * 3
        assert [row["why"] for row in rows[:3]] == [None, "score below 0.5", None]
        assert [row["column"] for row in rows[:3]] == ["txt", "alt", None]
        assert rows[0]["image"] == f"{tar}/red.png"
        assert result.outcome.failed == 0
        page = (tmp_path / "page.html").read_text()
        assert page.count("data:image/jpeg;base64,") == 3
        assert "from </" not in page
        assert '<span class="from">alt</span>' in page

        pytest.importorskip("pyarrow")
        images = [
            {"image": {"bytes": (walls / f"{name}.png").read_bytes(), "path": f"{name}.png"}}
            for name in ("red", "green")
        ]
        held = table(tmp_path / "held.parquet", [{**one, "text": "a red wall"} for one in images])
        output = tmp_path / "held.jsonl"
        run(held, output, None, Judge(), report=tmp_path / "held.html")
        rows = written(output)
        assert [row["image"] for row in rows] == [f"{held}/0-red.png", f"{held}/1-green.png"]
        assert [row["kept"] for row in rows] == [True, False]
        assert (tmp_path / "held.html").read_text().count("data:image/jpeg") == 2

    def test_an_image_with_several_rows_is_looked_at_once(self, walls, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        red = "walls/red.png"
        rows = [
            {"image": red, "caption": "a red wall"},
            {"image": "walls/green.png", "caption": "a green wall"},
            {"image": str(walls / "red.png"), "caption": "a blue wall"},
            {"image": "./walls/red.png", "caption": " a red  wall "},
        ]
        judge, painter = Judge(), Painter()
        output = tmp_path / "out.jsonl"
        run(table(Path("pairs.jsonl"), rows), output, painter, judge)
        assert (painter.written, judge.images) == (2, 2)
        found = written(output)
        assert [(row["text"], row["kept"], row["why"]) for row in found if row["image"] == red] == [
            ("a red wall", True, None),
            ("a blue wall", False, "score below 0.5"),
            (" a red  wall ", False, "the same as a web text of the image"),
            ("A red wall", False, "the same as a web text of the image"),
        ]

    def test_what_is_no_text_is_told_and_not_judged(self, walls, tmp_path):
        image = str(walls / "red.png")
        values = [None, "", " \n", 42, True, {"a": 1}, [], ["a red wall", 7], "\ud800 red"]
        rows = [{"image": image, "caption": value} for value in [*values, "a red wall"]]
        judge = Judge()
        result = run(table(tmp_path / "t.jsonl", rows), tmp_path / "out.jsonl", None, judge)
        found = written(tmp_path / "out.jsonl")
        assert [row["why"] for row in found] == [
            *("empty", "empty", "empty", "no text, but a number", "no text, but a truth value"),
            *("no text, but an object", "no text, but a list", None, "no text, but a number"),
            *(None, "the same as a web text of the image"),
        ]
        assert result.texts["web"]["dropped"] == {
            "empty": 3,
            "no text": 5,
            "the same as a web text of the image": 1,
        }
        assert result.texts["web"]["scored"] == 2
        assert judge.calls == [("a red wall", "��� red")]

    def test_images_of_which_nothing_is_asked_were_not_done_before(self, walls, tmp_path):
        rows = pairs(walls, 3)
        rows[1]["caption"] = ""
        path = table(tmp_path / "t.jsonl", rows)
        counts = [
            (outcome.done, outcome.done_before)
            for outcome in (
                run(path, tmp_path / "o.jsonl", None, Judge()).outcome for _ in range(2)
            )
        ]
        assert counts == [(3, 0), (0, 3)]

    def test_of_a_folder_what_a_step_has_written_is_left_out(self, walls, tmp_path):
        step = tmp_path / "in" / "matched"
        (step / "_state").mkdir(parents=True)
        table(tmp_path / "in" / "t.jsonl", pairs(walls, 3))
        table(step / "t.jsonl", pairs(walls, 2))
        (step / "_state" / "settings.json").write_text("{}")
        assert run(tmp_path / "in", tmp_path / "o.jsonl", None, Judge()).rows == 3
        with pytest.raises(UsageError, match="matched was not written to its end"):
            run(step, tmp_path / "p.jsonl", None, Judge())
        (step / "_report.json").write_text("{}")
        assert run(step, tmp_path / "p.jsonl", None, Judge()).rows == 2

    def test_a_caption_that_says_nothing_is_empty(self, walls, tmp_path):
        rows = [{"image": str(walls / "black.png"), "caption": "a black wall"}]
        run(table(tmp_path / "t.jsonl", rows), tmp_path / "out.jsonl", Painter(), Judge())
        found = written(tmp_path / "out.jsonl")
        assert [(row["kept"], row["why"]) for row in found] == [(True, None), (False, "empty")]

    def test_only_what_is_kept(self, walls, tmp_path):
        path = table(tmp_path / "t.csv", pairs(walls))
        result = run(path, tmp_path / "out.csv", None, Judge(), kept_only=True)
        assert [row["kept"] for row in written(tmp_path / "out.csv")] == ["yes"] * 3
        assert (result.rows, result.texts["web"]["texts"]) == (3, 6)


class TestDeciding:
    def test_the_ablations_of_the_paper(self, walls, tmp_path):
        path = table(tmp_path / "t.jsonl", pairs(walls))
        only_filter = run(path, tmp_path / "f.jsonl", None, Judge())
        assert only_filter.texts["synthetic"]["texts"] == 0
        only_captions = run(path, tmp_path / "c.jsonl", Painter(), None)
        assert only_captions.texts["web"]["kept"] == 6
        assert only_captions.texts["synthetic"]["dropped"] == {"empty": 1}
        assert only_captions.texts["web"]["noise_ratio"] is None
        assert all(row["score"] is None for row in written(tmp_path / "c.jsonl"))

    def test_a_probability_of_an_encoder_and_its_cosine(self, walls, tmp_path):
        path = table(tmp_path / "t.jsonl", pairs(walls))
        sigmoid = SmallEncoder("sigmoid")
        run(path, tmp_path / "s.jsonl", None, sigmoid)
        for row in written(tmp_path / "s.jsonl"):
            logit = 20.0 * row["cosine"] - 8.0
            assert row["score"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)
            assert row["kept"] == (row["score"] >= 0.5)
        with pytest.raises(UsageError, match=r"small@1\.0 scores by a cosine.*--keep-share"):
            run(path, tmp_path / "x.jsonl", None, SmallEncoder())
        result = run(path, tmp_path / "x.jsonl", None, SmallEncoder(), threshold=0.6)
        assert result.settings["score"] == "cosine"
        found = written(tmp_path / "x.jsonl")
        assert all(row["score"] == row["cosine"] for row in found)
        assert [row["kept"] for row in found] == [row["cosine"] >= 0.6 for row in found]
        assert {row["why"] for row in found} == {None, "cosine below 0.6"}

    def test_a_share_is_exact_and_ties_do_not_depend_on_the_order(self, walls, tmp_path):
        rows = [
            {"image": str(walls / f"{name}.png"), "caption": f"{name} wall number {i}"}
            for name in NAMES
            for i in range(5)
        ]
        kept = []
        for number, share in enumerate((0.3, 0.3, 0.3, 1.0, 0.05)):
            random.Random(number).shuffle(rows)
            output = tmp_path / f"{number}.jsonl"
            path = table(tmp_path / f"t{number}.jsonl", rows)
            result = run(path, output, None, Judge(), keep_share=share)
            found = written(output)
            assert result.texts["web"]["kept"] == {0.3: 9, 1.0: 30, 0.05: 2}[share]
            assert result.lowest_kept == 0.9
            kept.append({row["text"] for row in found if row["kept"]})
        assert kept[0] == kept[1] == kept[2]
        why = {row["why"] for row in written(tmp_path / "0.jsonl")}
        assert why == {None, "not among the best 30 %"}

    @given(st.integers(1, 1000), st.integers(0, 5000))
    def test_shares_are_rounded_to_the_nearest(self, thousandths, count):
        exact = thousandths * count
        found = _share(thousandths / 1000, count)
        assert abs(1000 * found - exact) <= 500
        assert found == (exact + 500) // 1000

    def test_another_threshold_asks_no_network(self, walls, tmp_path):
        path = table(tmp_path / "t.jsonl", pairs(walls))
        output = tmp_path / "out.jsonl"
        run(path, output, Painter(), Judge())
        judge, painter = Judge(), Painter()
        result = run(path, output, painter, judge, threshold=0.95)
        assert (judge.images, painter.written) == (0, 0)
        assert (result.outcome.done, result.outcome.done_before) == (0, 6)
        assert not any(row["kept"] for row in written(output))

    def test_batches_and_orders_change_nothing(self, walls, tmp_path):
        rows = pairs(walls, 12)
        found = []
        for number, size in enumerate((1, 3, 64)):
            random.Random(number).shuffle(rows)
            path = table(tmp_path / f"t{number}.jsonl", rows)
            output = tmp_path / f"{number}.jsonl"
            run(
                *(path, output, Painter(), SmallEncoder("sigmoid", name="eye")),
                pipeline_options=PipelineOptions(batch_size=size),
            )
            keys = ("image", "text", "origin", "kept", "score", "why")
            found.append(sorted([str(row[key]) for key in keys] for row in written(output)))
        assert found[0] == found[1] == found[2]

    def test_two_models_are_never_the_same_by_accident(self, walls, tmp_path):
        path = table(tmp_path / "t.jsonl", pairs(walls))

        class Both(Judge, Painter):
            pass

        both = Both(name="both")
        for captioner, matcher in ((both, both), ("starter", "starter")):
            with pytest.raises(UsageError, match=r"both starter|both both@1\.0"):
                run(path, tmp_path / "out.jsonl", captioner, matcher)
        assert not list(tmp_path.glob("out*"))
        result = run(path, tmp_path / "out.jsonl", both, both, allow_same_model=True)
        assert result.settings["same_model"] is True
        assert result.to_json()["same_model"] is True

    @pytest.mark.parametrize(
        ("told", "match"),
        [
            ({"keep_share": 0.0}, "keep_share must be above 0"),
            ({"keep_share": 1.5}, "keep_share must be above 0"),
            ({"threshold": 2.0}, "threshold must be in"),
            ({"threshold": 0.5, "keep_share": 0.5}, "threshold and keep_share"),
            ({"nucleus": 0.0}, "nucleus must be in"),
            ({"min_length": 30}, "max_length must be at least"),
        ],
    )
    def test_options_out_of_range(self, told, match):
        with pytest.raises(ValueError, match=match):
            CapFiltOptions(**told)


class TestWhatGoesWrong:
    def test_an_image_that_cannot_be_had_is_listed_and_tried_again(self, walls, tmp_path):
        rows = pairs(walls, 3)
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"no image")
        late = str(tmp_path / "late.png")
        rows[1:1] = [
            {"image": str(broken), "caption": "a red wall"},
            {"image": late, "caption": "a red wall"},
            {"image": "", "caption": "nothing"},
        ]
        path = table(tmp_path / "t.jsonl", rows)
        output = tmp_path / "out.jsonl"
        result = run(path, output, Painter(), Judge())
        assert (result.outcome.done, result.outcome.failed) == (3, 3)
        listed = written(tmp_path / "failures.jsonl")
        assert result.failures == tmp_path / "failures.jsonl"
        assert {one["image"] for one in listed} == {str(broken), late, f"{path}:4"}
        why = {row["image"]: row["why"] for row in written(output) if not row["kept"]}
        assert why[f"{path}:4"] == "the image could not be had: this row names no image"
        assert why[str(broken)].startswith("the image could not be had: ")
        assert result.texts["web"]["dropped"]["the image could not be had"] == 3

        Image.new("RGB", (9, 9), COLOURS["red"]).save(late)
        painter = Painter()
        again = run(path, output, painter, Judge())
        assert (again.outcome.done_before, again.outcome.failed_before) == (3, 3)
        assert painter.written == 0
        retried = run(path, output, painter, Judge(), retry_failed=True)
        assert (retried.outcome.done, retried.outcome.failed, painter.written) == (1, 2, 1)
        assert next(row for row in written(output) if row["image"] == late)["kept"]
        assert len(written(tmp_path / "failures.jsonl")) == 2

    def test_broken_rows_are_failures_and_the_others_are_done(self, walls, tmp_path):
        good = pairs(walls, 2)
        lines = [json.dumps(good[0]), "{no json", "[1]", json.dumps(good[1])]
        path = tmp_path / "t.jsonl"
        path.write_text("\n".join(lines))
        result = run(path, tmp_path / "out.jsonl", None, Judge())
        assert (result.outcome.done, result.outcome.failed) == (2, 2)
        listed = {one["image"]: one["message"] for one in written(tmp_path / "failures.jsonl")}
        assert "not JSON" in listed[f"{path}:2"]
        assert listed[f"{path}:3"] == "this row is no JSON object"

        other = tmp_path / "t.csv"
        first, second = good[0]["image"], good[1]["image"]
        other.write_text(f"image,caption\n{first},red, wall\n{second},a green wall\n")
        result = run(other, tmp_path / "csv.jsonl", None, Judge())
        assert (result.outcome.done, result.outcome.failed) == (1, 1)
        assert result.failures is not None
        assert "3 cells in place of 2" in result.failures.read_text()

    def test_a_tar_that_breaks_off_loses_only_its_end(self, walls, tmp_path):
        tar = tmp_path / "shard.tar"
        with tarfile.open(tar, "w") as archive:
            for name in ("red", "green"):
                archive.add(walls / f"{name}.png", f"{name}.png")
                data = f"a {name} wall".encode()
                info = tarfile.TarInfo(f"{name}.txt")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        data = tar.read_bytes()
        tar.write_bytes(data[: data.index(b"green.txt") + 200])
        result = run(tar, tmp_path / "out.jsonl", None, Judge())
        assert result.outcome.failed == 1
        kept = [row["text"] for row in written(tmp_path / "out.jsonl") if row["kept"]]
        assert kept == ["a red wall"]

    def test_columns_and_tables_that_are_not_there(self, walls, tmp_path):
        (tmp_path / "tables").mkdir()
        rows = [{"image": "a.png", "said": "x", "url": "u"}]
        path, output = table(tmp_path / "t.jsonl", rows), tmp_path / "out.jsonl"
        with pytest.raises(UsageError, match="choose one with --text-column: 'image', 'said'"):
            run(path, output, None, Judge())
        with pytest.raises(UsageError, match=r"no column 'alt' \(--text-column\).*'said'"):
            run(path, output, None, Judge(), text_column=("said", "alt"))
        options = SourceOptions(image_column="picture")
        with pytest.raises(UsageError, match="no column 'picture'"):
            run(path, output, None, Judge(), text_column=("said",), source_options=options)
        with pytest.raises(UsageError, match="no such file or folder"):
            run(tmp_path / "nothing.jsonl", output, None, Judge())
        with pytest.raises(UsageError, match="is no table"):
            run(walls / "red.png", output, None, Judge())
        with pytest.raises(NothingToDo, match="no table"):
            run(walls, output, None, Judge())
        with pytest.raises(UsageError, match=r"must end in \.parquet"):
            run(path, tmp_path / "out.txt", None, Judge())
        with pytest.raises(UsageError, match="neither a captioner nor a matcher"):
            run(path, output, None, None)
        with pytest.raises(UsageError, match="are for what a --matcher says"):
            run(path, output, Painter(), None, keep_share=0.5)
        good = table(tmp_path / "tables" / "good.jsonl", pairs(walls))
        with pytest.raises(UsageError, match="does not say how well texts fit"):
            run(good, output, None, object_with_card())
        with pytest.raises(UsageError, match=r"lies in .*tables, of which all tables are read"):
            run(good.parent, good.parent / "more" / "out.jsonl", None, Judge())
        assert not list(tmp_path.glob("out*"))

    def test_nothing_is_written_over(self, walls, tmp_path):
        path = table(tmp_path / "t.jsonl", pairs(walls))
        with pytest.raises(UsageError, match="is read and cannot be written"):
            run(path, path, None, Judge())
        mine = tmp_path / "mine.jsonl"
        mine.write_text("precious")
        for mode in ("skip", "overwrite"):
            with pytest.raises(OutputError, match="move it away"):
                run(path, mine, None, Judge(), on_existing=mode)
        assert mine.read_text() == "precious"
        output = tmp_path / "out.jsonl"
        run(path, output, Painter(), Judge())
        before = output.read_bytes()
        with pytest.raises(OutputError, match="holds results of other settings"):
            run(path, output, Painter(), Judge(), seed=1)
        assert output.read_bytes() == before
        result = run(path, output, Painter(), Judge(), seed=1, on_existing="overwrite")
        assert (result.outcome.done, result.outcome.done_before) == (6, 0)

    def test_new_rows_are_done_and_the_others_are_not_done_again(self, walls, tmp_path):
        path, output = table(tmp_path / "t.jsonl", pairs(walls, 3)), tmp_path / "out.jsonl"
        run(path, output, Painter(), Judge())
        more = [*pairs(walls, 5), {"image": str(walls / "red.png"), "caption": "a red door"}]
        table(path, more)
        painter = Painter()
        result = run(path, output, painter, Judge())
        assert (painter.written, result.outcome.done_before) == (3, 2)  # red has a new text
        assert [row["text"] for row in written(output) if row["kept"]].count("a red door") == 1
        assert [row["origin"] for row in written(output)].count("synthetic") == 5

    def test_without_pyarrow_text_tables_work(self, walls, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        path = table(tmp_path / "t.csv", pairs(walls))
        assert run(path, tmp_path / "out.jsonl", None, Judge()).rows == 6
        with pytest.raises(MissingExtra, match=r"annotary\[curate\]"):
            run(path, tmp_path / "out.parquet", None, Judge())


def object_with_card() -> Any:
    class Nothing:
        card = SmallEncoder().card
        streams = batch_size = 1

    return Nothing()


class _Page(HTMLParser):
    """What a page shows, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.articles: list[dict[str, str | None]] = []
        self.fetched: list[str] = []
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self._is_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._is_script = tag in ("script", "style")
        if tag == "article":
            self.articles.append(dict(attrs))
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if not self._is_script:
            self.texts.append(data)


@given(
    st.lists(st.one_of(st.none(), st.text()), min_size=1, max_size=8),
    st.sampled_from(["out.csv", "out.jsonl", "out.parquet"]),
)
def test_texts_come_back_from_every_format(texts, name):
    if name == "out.parquet":
        pytest.importorskip("pyarrow")
    rows = [
        {"image": f"{i}.png", "text": text, "origin": "web", "kept": i % 2 == 0, "why": None}
        for i, text in enumerate(texts)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        assert write_rows(path, rows, {}) == len(rows)
        found = list(read_rows(path))
    assert [row["kept"] for row in found] == [row["kept"] for row in rows]
    empty = "" if name == "out.csv" else None
    assert [row["text"] for row in found] == [empty if one is None else one for one in texts]


class TestThePage:
    def test_it_is_one_file_that_escapes_and_fetches_nothing(self, walls, tmp_path):
        evil = "<script>alert(1)</script> & \"red\" 'x' <img src=http://x>"
        rows = [*pairs(walls), {"image": str(walls / "red.png"), "caption": evil}]
        rows.append({"image": "<b>gone</b>.png", "caption": "a red wall"})
        path, page = table(tmp_path / "t.jsonl", rows), tmp_path / "page.html"
        run(path, tmp_path / "out.jsonl", Painter(), Judge(), report=page)
        text = page.read_text()
        assert text.count("<script>") == 1
        shown = _Page(text)
        assert evil in shown.texts
        assert "<b>gone</b>.png" in shown.texts
        assert len(shown.fetched) == 6
        assert all(one.startswith("data:image/jpeg;base64,") for one in shown.fetched)
        assert not shown.tags & {"link", "iframe"}
        assert not re.search(r"url\(|@import|fetch\(|https?://", text.replace("http://x", ""))
        red = shown.articles[0]
        assert (red["data-web"], red["data-synthetic"]) == ("dk", "k")
        assert (red["data-low"], red["data-high"]) == ("0.1", "0.9")

    def test_the_sample_is_the_same_and_has_both_kinds(self, walls, tmp_path):
        rows = []
        for i in range(30):
            name = f"{i}.png"
            Image.new("RGB", (9, 9), COLOURS[NAMES[i % 6]]).save(walls / name)
            said = NAMES[i % 6] if i % 10 else "nothing"
            rows.append({"image": str(walls / name), "caption": f"a {said} wall"})
        path, output = table(tmp_path / "t.jsonl", rows), tmp_path / "out.csv"
        page = tmp_path / "page.html"
        run(path, output, None, Judge(), report=page, report_images=8)
        first = _Page(page.read_text())
        assert len(first.articles) == 8
        assert sum(one["data-web"] == "d" for one in first.articles) == 3  # there are no more
        assert write_report(output, tmp_path / "again.html", images=8) == 8
        again = _Page((tmp_path / "again.html").read_text())
        assert again.fetched == first.fetched
        assert again.articles == first.articles
        write_report(output, page, images=8, seed=1)
        assert _Page(page.read_text()).fetched != first.fetched

    def test_what_is_no_table_or_no_page(self, walls, tmp_path):
        other = table(tmp_path / "other.jsonl", pairs(walls))
        with pytest.raises(UsageError, match="is no table that annotary curate capfilt wrote"):
            write_report(other, tmp_path / "page.html")
        mine = tmp_path / "mine.html"
        mine.write_text("<html>")
        with pytest.raises(OutputError, match="is no report of annotary"):
            run(other, tmp_path / "out.jsonl", None, Judge(), report=mine)
        assert not (tmp_path / "out.jsonl").exists()
        with pytest.raises(UsageError, match=r"must end in \.html"):
            write_report(other, tmp_path / "page.pdf")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.blip import make_blip
    from tests.encoders import make_encoder

    root = tmp_path_factory.mktemp("models")
    made = {kind: make_blip(root / kind, kind) for kind in ("captioning", "itm")}
    made |= {kind: make_encoder(root / kind, kind) for kind in ("clip", "siglip2")}
    return {name: f"dir:{path}" for name, path in made.items()}


def photos(folder: Path, count: int) -> Path:
    """A table of photos that differ."""
    folder.mkdir()
    rows = []
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
        rows.append({"image": str(folder / f"{i:03}.png"), "alt": f"a photo of {i} cats and a dog"})
    return table(folder.parent / "pairs.csv", rows)


class TestTheCommand:
    @pytest.fixture
    def call(self, capfd):
        def run_it(*arguments: object) -> tuple[int, str, str]:
            capfd.readouterr()
            exact = () if "--report" in arguments else ("--precision", "fp32", "--threads", "1")
            told = ["curate", "capfilt", *map(str, arguments), *exact]
            code = program.main(told, prog_name="annotary", standalone_mode=False)
            printed = capfd.readouterr()
            return int(code or 0), printed.out, printed.err

        return run_it

    def test_end_to_end_with_blip(self, call, models, tmp_path):
        path, output = photos(tmp_path / "photos", 6), tmp_path / "out.jsonl"
        command = (path, "--captioner", models["captioning"], "--matcher", models["itm"])
        code, out, err = call(*command, "--output", output, "--json")
        assert code == 0
        told = json.loads(out)
        assert (told["images"], told["score"], told["threshold"]) == (6, "itm", 0.5)
        assert told["captioner"] == "captioning@unversioned"
        assert set(told["texts"]) == {"web", "synthetic"}
        assert "6 done in" in err
        assert "noise ratio" in err
        rows = written(output)
        assert [row["origin"] for row in rows] == ["web", "synthetic"] * 6
        for row in rows:
            assert row["kept"] == (row["score"] >= 0.5)
            assert row["cosine"] is not None
        texts = [row["text"] for row in rows if row["origin"] == "synthetic"]
        assert len(set(texts)) > 3
        # The same words are drawn for an image by itself, and judged the same.
        with path.open() as file:
            head, *_, last = file.read().splitlines()
        path.with_name("one.csv").write_text(f"{head}\n{last}\n")
        call(path.with_name("one.csv"), *command[1:], "--output", tmp_path / "one.jsonl")
        alone = written(tmp_path / "one.jsonl")
        assert [row["text"] for row in alone] == [row["text"] for row in rows[-2:]]
        scores = [row["score"] for row in rows[-2:]]
        assert [row["score"] for row in alone] == pytest.approx(scores, abs=1e-4)
        code, _, err = call(output, "--report", tmp_path / "page.html", "--report-images", "3")
        assert code == 0
        assert "3 images in" in err
        assert len(_Page((tmp_path / "page.html").read_text()).articles) == 3

    def test_encoders_filter_by_what_their_scores_are(self, call, models, tmp_path):
        path = photos(tmp_path / "photos", 4)
        filters = ("--captioner", "none", "--matcher")
        with pytest.raises(UsageError, match="scores by a cosine"):
            call(path, *filters, models["clip"], "--output", tmp_path / "c.jsonl")
        share = ("--keep-share", "0.5", "--output", tmp_path / "c.jsonl", "--json", "--quiet")
        code, out, err = call(path, *filters, models["clip"], *share)
        assert (code, err) == (0, "")
        assert json.loads(out)["texts"]["web"]["kept"] == 2
        _, out, _ = call(path, *filters, models["siglip2"], "--output", "s.jsonl", "--json")
        assert json.loads(out)["score"] == "sigmoid"

    def test_what_makes_no_sense(self, call, models, tmp_path):
        path = photos(tmp_path / "photos", 1)
        output = ("--output", tmp_path / "out.jsonl")
        both = ("--captioner", models["captioning"], "--matcher", models["itm"])
        for told, match in (
            ((path, *both), "say where the table goes"),
            ((path, "--matcher", "starter", *output), "say which model writes captions"),
            ((path, "--captioner", "none", *output), "say which model filters"),
            ((path, *both, *output, "--keep-share", "2"), "--keep-share must be above 0"),
            ((path, *both, *output, "--keep-share", "1", "--shard", "1/2"), "--shard does a part"),
            ((path, "--captioner", models["itm"], *both[2:], *output), "are both"),
            ((path, *both[:3], models["captioning"], *output), "are both dir:"),
            (
                (path, "--captioner", models["clip"], *both[2:], *output),
                "clip.* writes no captions",
            ),
            ((path, *both, "--report", "x.html"), "only with --output"),
        ):
            with pytest.raises(UsageError, match=match):
                call(*told)
        copy = tmp_path / "other-name"
        shutil.copytree(models["itm"].removeprefix("dir:"), copy)
        (copy / "README.md").write_text("another")
        with pytest.raises(UsageError, match="are both"):
            call(path, "--captioner", f"dir:{copy}", "--matcher", models["itm"], *output)

    def test_a_run_that_is_killed_goes_on(self, call, models, tmp_path):
        count = 20
        path = photos(tmp_path / "photos", count)
        (tmp_path / "photos" / "007.png").write_bytes(b"no image")
        # One by one, as networks round the last digit otherwise in a batch of other images.
        options = ["--captioner", models["captioning"], "--matcher", models["itm"]]
        options += ["--batch-size", "1", "--output"]
        command = [sys.executable, "-m", "annotary", "curate", "capfilt", str(path), *options]
        command += ["killed.jsonl", "--precision", "fp32", "--threads", "1"]
        output, journal = tmp_path / "killed.jsonl", tmp_path / "killed.jsonl.journal.jsonl"
        with subprocess.Popen(command, env=child_environment(), stderr=subprocess.PIPE) as process:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and process.poll() is None:
                if journal.exists() and journal.read_bytes().count(b"\n") >= 4:
                    break
                time.sleep(0.002)
            process.kill()
        done = journal.read_bytes().count(b"\n")
        assert 4 <= done < count - 1
        assert not output.exists()
        with journal.open("ab") as file:
            file.write(b'{"image": "cut')
        code, _, told = call(path, *options, output)
        assert code == 1
        assert re.search(rf"\b{done} done before", told)
        assert "1 failed" in told
        assert call(path, *options, tmp_path / "whole.jsonl")[0] == 1
        assert written(output) == written(tmp_path / "whole.jsonl")
        images = [json.loads(line)["image"] for line in journal.read_text().splitlines()]
        assert len(images) == len(set(images)) == count - 1
