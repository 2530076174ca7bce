"""Pipelines: what is declared is done, goes on after a stop, and is never mixed with what was made otherwise."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from annotary.cli import annotary as program  # noqa: E402
from annotary.cli._curate_run import command as run_command  # noqa: E402
from annotary.cli.curate import command as curate  # noqa: E402
from annotary.curation._plan_capfilt import _with_images  # noqa: E402
from annotary.curation._plan_steps import KINDS  # noqa: E402
from annotary.curation.balance import BalanceOptions, balance  # noqa: E402
from annotary.curation.entries import read_entries  # noqa: E402
from annotary.curation.looks import PictureOptions  # noqa: E402
from annotary.curation.match import match  # noqa: E402
from annotary.curation.plan import PlannedStep, read_plan, run_plan  # noqa: E402
from annotary.curation.steps import StepOptions  # noqa: E402
from annotary.curation.tables import BrokenPart, find_parts  # noqa: E402
from annotary.errors import MissingExtra, OutputError, UsageError  # noqa: E402
from annotary.sources import SourceOptions  # noqa: E402
from tests.conftest import child_environment  # noqa: E402

WORDS = ("dog", "red car", "tower", "rare bird", "photo", "on", "a", "the sea", "boat")
ONE = StepOptions(workers=1)


def make_pairs(folder: Path, tables: int = 3, rows: int = 40) -> Path:
    """Tables of captions, some of which match nothing and some of which come twice, with small noisy pictures."""
    luck = random.Random(5)
    (folder / "pairs" / "img").mkdir(parents=True)
    captions: list[str] = []
    for table in range(tables):
        made = []
        for number in range(rows):
            if luck.random() < 0.2:
                caption = f"IMG_{luck.randint(1, 99)}"
            elif captions and luck.random() < 0.2:
                caption = luck.choice(captions)
            else:
                some = luck.choices(WORDS, weights=(5, 4, 1, 1, 30, 20, 30, 3, 3), k=4)
                caption = " ".join(some)
            captions.append(caption)
            image = f"img/{table}-{number % 10}.png"
            made.append({"id": f"{table}-{number}", "image": image, "caption": caption})
        for number in range(10):
            draw = np.random.default_rng(100 * table + number)
            side = 24 if number else 8
            pixels = draw.integers(0, 255, (side, side, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "pairs" / "img" / f"{table}-{number}.png")
        pq.write_table(pa.Table.from_pylist(made), folder / "pairs" / f"{table:02d}.parquet")
    (folder / "entries.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return folder


PIPELINE = """
tables = ["pairs/*.parquet"]
output = "out"

[[step]]
use = "match"
entries = "entries.txt"
matched-only = true

[[step]]
use = "dedup"
by = ["text"]

[[step]]
use = "quality"
min_size = 16

[[step]]
use = "balance"
t = 5
"""


def declared(folder: Path, text: str = PIPELINE) -> Path:
    file = folder / "pipeline.toml"
    file.write_text(text, encoding="utf-8")
    return file


class Noted:
    """Writes down what a pipeline says."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: list[str] = []
        self.before: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def working(self, what: str, count: int, unit: str) -> Any:
        from contextlib import nullcontext

        assert count > 0
        assert unit in ("parts", "images")
        assert ":" in what
        return nullcontext(lambda done, tally: None)

    def ended(self, step: PlannedStep, outcome: Any) -> None:
        (self.before if outcome.was_done else self.done).append(step.name)


def run(file: Path, **how: Any) -> Noted:
    noted = Noted()
    run_plan(read_plan(file), steps=ONE, watcher=noted, **how)
    return noted


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder).to_pylist()


ALL = ["1-match", "2-dedup", "3-quality", "4-balance"]


def test_a_pipeline_does_what_its_commands_do_one_after_the_other(tmp_path):
    file = declared(make_pairs(tmp_path))
    noted = run(file)
    assert noted.done == ALL
    assert not noted.notes
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [one["name"] for one in report["steps"]] == ALL
    rows = 120
    for one in report[
        "steps"
    ]:  # nothing is lost between steps, and every row that went has a reason
        assert one["rows_in"] == rows
        assert one["rows_out"] + sum(one["dropped"].values()) == rows
        rows = one["rows_out"]
        assert len(rows_of(tmp_path / "out" / one["name"])) == rows
    assert [min(one["dropped"]) for one in report["steps"]] == [
        "no entry matched", "duplicate text", "too small", "not drawn",
    ]  # fmt: skip
    texts = [row["caption"] for row in rows_of(tmp_path / "out" / "2-dedup")]
    assert len(set(texts)) == len(texts)
    assert not any(
        row["image"].endswith("-0.png") for row in rows_of(tmp_path / "out" / "3-quality")
    )
    # Paths of images start at the tables that were given, though what quality reads stands elsewhere.
    assert not report["steps"][2]["failures"]
    entries = read_entries(tmp_path / "entries.txt")
    match([tmp_path / "pairs"], entries, tmp_path / "matched", steps=ONE)
    balance(
        *(tmp_path / "matched", tmp_path / "balanced", BalanceOptions(t=5), ONE),
        tables=[tmp_path / "out" / "3-quality"],
    )
    assert rows_of(tmp_path / "balanced") == rows_of(tmp_path / "out" / "4-balance")


def test_the_command_tells_a_table_and_ends_with_0_and_does_nothing_twice(tmp_path):
    file = declared(make_pairs(tmp_path))
    first = CliRunner().invoke(program, ["curate", "run", str(file), "--workers", "1"])
    assert first.exit_code == 0, first.output
    lines = first.stdout.splitlines()
    assert lines[0].split() == ["step", "in", "out", "share", "seconds", "why"]
    assert [line.split()[0] for line in lines[1:]] == ALL
    assert "1-match: 120 in" in first.stderr
    assert "report.html" in first.stderr
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    again = CliRunner().invoke(program, ["curate", "run", str(file), "--json"])
    assert again.exit_code == 0
    assert all(one["was_done"] for one in json.loads(again.stdout)["steps"])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!DOCTYPE html>")
    quiet = CliRunner().invoke(program, ["curate", "run", str(file), "--quiet"])
    assert (quiet.exit_code, quiet.output) == (0, "")


@pytest.mark.parametrize(
    ("before", "after", "made", "why"),
    [
        ("t = 5", "t = 6", ALL[3:], "4-balance is made anew: t was 5 and is 6 now"),
        ("min_size = 16", "min_size = 17", ALL[2:], "and 4-balance behind it: min_size was 16"),
        (
            'by = ["text"]',
            'by = ["pair"]\nurl-column = "image"',
            ALL[1:],
            '2-dedup is made anew, and 3-quality, 4-balance behind it: by was "text"',
        ),
        ("matched-only = true", "", ALL, "matched_only was true and is not said now"),
    ],
)
def test_what_changes_is_made_anew_with_all_behind_it_and_nothing_else(
    tmp_path, before, after, made, why
):
    file = declared(make_pairs(tmp_path))
    run(file)
    noted = run(declared(tmp_path, PIPELINE.replace(before, after)))
    assert noted.done == made
    assert noted.before == ALL[: len(ALL) - len(made)]
    (note,) = noted.notes
    assert why in note
    fresh = tmp_path / "fresh"
    plan = read_plan(file)
    from dataclasses import replace

    run_plan(replace(plan, output=fresh), steps=ONE)
    for name in ALL:
        assert rows_of(fresh / name) == rows_of(tmp_path / "out" / name), name


def test_how_work_is_spread_and_how_keys_are_spelled_change_nothing(tmp_path):
    run(declared(make_pairs(tmp_path)))
    text = PIPELINE.replace("matched-only", "matched_only").replace('["text"]', '"text"')
    noted = run(declared(tmp_path, text.replace("t = 5", "t = 5.0\nseed = 0\nworkers = 2")))
    assert noted.before == ALL
    assert not noted.done


def test_tables_and_entries_that_change_make_all_anew(tmp_path):
    file = declared(make_pairs(tmp_path))
    run(file)
    entries = tmp_path / "entries.txt"
    entries.write_text(entries.read_text(encoding="utf-8"), encoding="utf-8")
    assert run(file).before == ALL  # only its time has changed
    entries.write_text(entries.read_text(encoding="utf-8") + "wall\n", encoding="utf-8")
    noted = run(file)
    assert noted.done == ALL
    assert "what entries names has changed" in noted.notes[0]
    table = pa.Table.from_pylist([{"id": "new", "image": "img/0-1.png", "caption": "a new boat"}])
    pq.write_table(table, tmp_path / "pairs" / "03.parquet")
    noted = run(file)
    assert noted.done == ALL
    assert "1-match is made anew" in noted.notes[0]
    assert "its input has changed" in noted.notes[0]
    (tmp_path / "pairs" / "03.parquet").unlink()
    assert run(file).done == ALL
    assert not list((tmp_path / "out").rglob("03.parquet"))


def test_what_was_lost_of_a_step_is_made_again_and_what_was_made_of_it(tmp_path):
    file = declared(make_pairs(tmp_path))
    run(file)
    wanted = rows_of(tmp_path / "out" / "4-balance")
    (tmp_path / "out" / "2-dedup" / "01.parquet").unlink()
    untouched = tmp_path / "out" / "2-dedup" / "00.parquet"
    before = untouched.stat().st_mtime_ns
    noted = run(file)
    assert noted.before == ["1-match"]
    assert noted.done == ALL[1:]
    assert untouched.stat().st_mtime_ns == before
    assert rows_of(tmp_path / "out" / "4-balance") == wanted


def test_from_makes_steps_anew_and_until_stops_before_the_others(tmp_path):
    file = declared(make_pairs(tmp_path))
    with pytest.raises(
        UsageError, match=r"3-quality cannot be begun with: 1-match: it is not done"
    ):
        run(file, begin="3")
    assert run(file, until="dedup").done == ALL[:2]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report["steps"]) == 2
    assert not report["is_whole"]
    noted = run(file, begin="2-dedup")
    assert noted.before == ["1-match"]
    assert noted.done == ALL[1:]
    assert "2-dedup is made anew: asked for with --from" in noted.notes[0]
    for how, told in (
        ({"until": "5"}, "no step '5'"),
        ({"begin": "x"}, "the steps are 1-match"),
        ({"begin": "3", "until": "2"}, "3-quality does not come before 2-dedup"),
    ):
        with pytest.raises(UsageError, match=told):
            run(file, **how)


def test_a_pipeline_that_is_killed_goes_on_and_ends_as_if_nothing_was(tmp_path):
    file = declared(make_pairs(tmp_path, tables=30, rows=30))
    command = [sys.executable, "-m", "annotary", "curate", "run", str(file), "--workers", "1"]
    kills = 0
    for step in ("1-match", "2-dedup", "3-quality"):
        child = subprocess.Popen(
            command, env=child_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while child.poll() is None and not list((tmp_path / "out" / step).glob("*.parquet")):
            time.sleep(0.002)
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            kills += 1
        child.wait()
    assert kills
    done = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "1-match").glob("*.parquet")
    }
    noted = run(file)
    assert not any("anew" in note for note in noted.notes)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    from dataclasses import replace

    run_plan(replace(read_plan(file), output=tmp_path / "fresh"), steps=ONE)
    for name in ALL:
        assert rows_of(tmp_path / "fresh" / name) == rows_of(tmp_path / "out" / name), name


def test_what_is_thrown_away_when_a_run_is_killed_meanwhile_is_not_gone_on_with(tmp_path):
    file = declared(make_pairs(tmp_path))
    run(file)
    note = tmp_path / "out" / "_pipeline" / "3-quality.json"
    note.write_text('{"made_from": null}')  # as it stands while the folder is removed
    (tmp_path / "out" / "3-quality" / "00.parquet").unlink()
    noted = run(file)
    assert "3-quality is made anew, and 4-balance behind it" in noted.notes[0]
    assert noted.done == ALL[2:]


def test_folders_of_others_are_not_touched(tmp_path):
    file = declared(make_pairs(tmp_path))
    mine = tmp_path / "out" / "2-dedup" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(OutputError, match=r"2-dedup holds something that no pipeline has written"):
        run(file)
    assert mine.read_text() == "mine"
    shutil.rmtree(mine.parent)
    run(file)
    short = (
        PIPELINE.partition('[[step]]\nuse = "quality"')[0] + '[[step]]\nuse = "balance"\nt = 5\n'
    )
    noted = run(declared(tmp_path, short))
    assert noted.done == ["3-balance"]
    assert [note.rpartition("/")[2] for note in noted.notes] == [
        f"{name} is of a step that the pipeline has no more; it stays as it is"
        for name in ("3-quality", "4-balance")
    ]
    assert rows_of(tmp_path / "out" / "4-balance")


@pytest.mark.skipif(sys.platform == "win32", reason="locks of this kind are of Unix")
def test_two_processes_do_not_work_on_one_output(tmp_path):
    import fcntl

    file = declared(make_pairs(tmp_path))
    run(file)
    with (tmp_path / "out" / "_pipeline" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another process works on"):
            run(file)


def test_broken_tables_are_listed_and_the_others_go_on(tmp_path):
    file = declared(make_pairs(tmp_path))
    broken = tmp_path / "pairs" / "01.parquet"
    broken.write_bytes(broken.read_bytes()[:-40])
    done = CliRunner().invoke(program, ["curate", "run", str(file), "--workers", "1"])
    assert done.exit_code == 1
    assert "1 broken, listed in its _failures.jsonl" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out" / "4-balance").glob("*.parquet")) == [
        "00.parquet",
        "02.parquet",
    ]
    noted = run(
        file
    )  # what failed is tried again; as nothing came of it, the others are left alone
    assert noted.done == ["1-match"]
    assert noted.before == ALL[1:]
    assert run(file, begin="4").done == ["4-balance"]
    for table in (tmp_path / "pairs").glob("*.parquet"):
        table.write_bytes(b"PAR1")
    done = CliRunner().invoke(program, ["curate", "run", str(file), "--workers", "1"])
    assert isinstance(done.exception, BrokenPart)


def test_an_image_that_was_broken_is_told_again(tmp_path):
    """So that nobody wonders about the exit code of a run that had nothing to do."""
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "0.jsonl").write_text('{"image": "none.jpg", "caption": "a dog"}\n')
    file = tmp_path / "pipeline.toml"
    step = '[[step]]\nuse = "quality"\nneed-image = true\nworkers = 1\n'
    file.write_text(f'tables = ["pairs"]\noutput = "out"\n{step}')
    for when in ("in", "done before"):
        done = CliRunner().invoke(program, ["curate", "run", str(file)])
        assert done.exit_code == 1
        assert re.search(rf"1-quality: .*{when}.*; 1 broken, listed in its _fail", done.stderr)


def test_an_empty_table_is_listed_and_the_others_go_on(tmp_path):
    file = declared(make_pairs(tmp_path), PIPELINE.replace("pairs/*.parquet", "pairs"))
    (tmp_path / "pairs" / "000.jsonl").write_text("")
    done = CliRunner().invoke(program, ["curate", "run", str(file), "--workers", "1"])
    assert done.exit_code == 1, done.output
    assert "1-match: 120 in" in done.stderr
    assert "000.jsonl" in (tmp_path / "out" / "1-match" / "_failures.jsonl").read_text()


def test_a_list_of_entries_is_made_and_used_by_the_match_behind_it(tmp_path):
    make_pairs(tmp_path)
    (tmp_path / "words.tsv").write_text("dog\t500\nboat\t300\nseldom\t2\n", encoding="utf-8")
    text = """
    tables = ["pairs"]
    output = "out"
    [[step]]
    use = "metadata"
    unigrams = "words.tsv"
    wordnet = "none"
    [[step]]
    use = "match"
    [[step]]
    use = "balance"
    target_size = 20
    """
    noted = run(declared(tmp_path, text))
    assert noted.done == ["1-metadata", "2-match", "3-balance"]
    entries = json.loads((tmp_path / "out" / "2-match" / "_entries.json").read_text())
    assert set(entries) == {*map(str, range(100)), "dog", "boat"}
    assert "1-metadata" in (tmp_path / "out" / "report.html").read_text()
    text = text.replace('wordnet = "none"', 'wordnet = "none"\n    unigram-count = 1')
    noted = run(declared(tmp_path, text))
    assert noted.done == ["1-metadata", "2-match", "3-balance"]
    entries = json.loads((tmp_path / "out" / "2-match" / "_entries.json").read_text())
    assert "seldom" in entries


WRONG = [
    ("tables = [", "is no TOML"),
    ('output = "out"\n[[step]]\nuse = "match"', "has no tables"),
    ('tables = ["pairs"]\n[[step]]\nuse = "match"', "has no output"),
    ('tables = ["pairs"]\noutput = "out"', r"has no step; say \[\[step\]\]"),
    (PIPELINE.replace("[[step]]", "[[steps]]"), "unknown key 'steps', did you mean step"),
    (PIPELINE.replace('output = "out"', 'output = "out"\nworkers = 2'), "unknown key 'workers'"),
    ('tables = ["pairs"]\noutput = "out"\n[step]\nuse = "match"', r"written as \[\[step\]\]"),
    (PIPELINE.replace('use = "dedup"', 'use = "dedupe"'), "step 2: unknown use 'dedupe'; known: "),
    (PIPELINE.replace('use = "dedup"', ""), "step 2 says no use"),
    (PIPELINE.replace("t = 5", "tt = 5"), r"step 4 \(balance\): unknown key 'tt'.*Known: .*t, "),
    (PIPELINE.replace("t = 5", 't = "5"'), r"step 4 \(balance\): t must be a number, but got '5'"),
    (PIPELINE.replace("t = 5", "t = true"), "t must be a number, but got True"),
    (PIPELINE.replace("t = 5", "t = -5"), r"step 4 \(balance\): t must be above 0, but got -5"),
    (PIPELINE.replace("t = 5", ""), "t, target_size or tail_share must be said"),
    (PIPELINE.replace("t = 5", "t = 5\nseed = 1.5"), "seed must be a whole number, but got 1.5"),
    (PIPELINE.replace('["text"]', '["txt"]'), r"step 2 \(dedup\): by must be of text, url"),
    (PIPELINE.replace("t = 5", "t = 5\nworkers = 0"), "workers must be at least 1"),
    (PIPELINE.replace("t = 5", 't = 5\nexecutor = "slurm"'), "executor must be one of local, ray"),
    (PIPELINE.replace("t = 5", "t = 5\nshard = '1/2'"), "unknown key 'shard'"),
    (PIPELINE.replace("t = 5", "t = 5\nname = 'a/b'"), "name must be of letters"),
    (PIPELINE.replace("min_size = 16", "min_size = 16\nmin-size = 1"), "min_size is there twice"),
    (PIPELINE.replace("pairs/*", "none/*"), "no file is called as 'none/"),
    (PIPELINE.replace("pairs/*.parquet", "none.parquet"), "no such file or folder"),
    (PIPELINE.replace("entries.txt", "none.txt"), r"step 1 \(match\): entries: no such file"),
    (
        PIPELINE.replace("t = 5", 't = 5\nid = ["uid"]'),
        r"step 4 \(balance\): .*no column 'uid' \(id\); its columns are 'id', 'image', 'caption'",
    ),
    (
        PIPELINE.replace("matched-only = true", 'text-column = "alt"'),
        r"step 1 \(match\): .*no column 'alt' \(text_column\)",
    ),
    (
        PIPELINE.replace('by = ["text"]', 'by = "url"'),
        r"step 2 \(dedup\): .* choose one with url_column",
    ),
    (PIPELINE.replace("min_size = 16", ""), r"step 3 \(quality\): nothing is asked"),
    (
        PIPELINE.replace(
            "min_size = 16", 'preset = "none"\nimage_column = "picture"\nmin_size = 1'
        ),
        r"step 3 \(quality\): .*no column 'picture'",
    ),
    (
        PIPELINE.replace("pairs/*.parquet", "."),
        "the output .*out is in the folder .*, of which all",
    ),
    (PIPELINE.replace('"out"', '"pairs/out"').replace("/*.parquet", ""), "is in the folder"),
    (
        'tables = ["pairs"]\noutput = "out"\n[[step]]\nuse = "balance"\nt = 5',
        r'no step before has matched .* put a step with use = "match" before it',
    ),
    (
        PIPELINE.replace(
            '[[step]]\nuse = "dedup"', '[[step]]\nuse = "match"\n[[step]]\nuse = "dedup"'
        ),
        r"step 2 \(match\): the column 'caption' was matched by a step before",
    ),
    (
        PIPELINE.replace('use = "dedup"\nby = ["text"]', 'use = "capfilt"\ncaptioner = "none"'),
        r'step 2 \(capfilt\): say which model filters: matcher = "NAME"',
    ),
    (
        PIPELINE.replace(
            'use = "dedup"\nby = ["text"]',
            'use = "capfilt"\ncaptioner = "none"\nmatcher = "no-such-model"',
        ),
        "no-such-model",
    ),
    (
        PIPELINE.replace(
            'use = "dedup"\nby = ["text"]',
            'use = "capfilt"\ncaptioner = "dir:gone"\nmatcher = "none"',
        ),
        "captioner: no such file or folder: '.*gone'",
    ),
]


@pytest.mark.parametrize(("text", "told"), WRONG)
def test_what_is_wrong_is_told_in_one_line_before_anything_is_done(tmp_path, text, told):
    file = declared(make_pairs(tmp_path, tables=1, rows=4), text)
    with pytest.raises(UsageError, match=told) as error:
        run_plan(read_plan(file))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(program, ["curate", "run", str(file), "--check"])
    assert isinstance(done.exception, UsageError)
    assert str(done.exception) == str(error.value)


def test_a_file_that_is_not_there_or_no_text_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_plan(tmp_path / "none.toml")
    (tmp_path / "one.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not UTF-8"):
        read_plan(tmp_path / "one.toml")


def test_check_finds_nothing_wrong_and_writes_nothing(tmp_path):
    file = declared(make_pairs(tmp_path))
    done = CliRunner().invoke(program, ["curate", "run", str(file), "--check"])
    assert done.exit_code == 0, done.output
    assert done.stderr.strip() == "4 steps: 1-match, 2-dedup, 3-quality, 4-balance"
    assert not (tmp_path / "out").exists()


def flags_of(command: click.Command) -> set[str]:
    return {one.name for one in command.params if isinstance(one, click.Option) and one.name}


@pytest.mark.parametrize("use", list(KINDS))
def test_the_keys_of_a_step_are_the_options_of_its_command(use):
    command = curate.get_command(click.Context(curate), use)
    assert command is not None
    known = set(KINDS[use].keys())
    if use == "capfilt":
        known.remove("images")  # what the command reads stands where its paths start
    flags = flags_of(command)
    assert known <= flags, known - flags
    left = {
        *("output", "quiet", "as_json", "shard", "on_existing", "tables", "looks", "report"),
        *("retry_failed", "coverage"),
    }
    assert flags - known <= left, flags - known - left


def test_every_option_of_run_is_a_field_or_its_own():
    assert flags_of(run_command) == {
        *("output", "begin", "until", "check", "as_json", "quiet", "workers", "executor"),
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    from tests.blip import make_blip

    folder = tmp_path_factory.mktemp("models")
    make_blip(folder / "captioner", "captioning")
    make_blip(folder / "filter", "itm", seed=3)
    return folder


def test_texts_that_capfilt_keeps_become_tables_that_are_matched_anew(tmp_path, models):
    make_pairs(tmp_path, tables=2, rows=4)
    text = f"""
    tables = ["pairs/*.parquet"]
    output = "out"
    [[step]]
    use = "match"
    entries = "entries.txt"
    [[step]]
    use = "capfilt"
    captioner = "dir:{models}/captioner"
    matcher = "dir:{models}/filter"
    keep_share = 0.5
    [[step]]
    use = "match"
    name = "match-again"
    entries = "entries.txt"
    [[step]]
    use = "balance"
    t = 2
    """
    noted = run(declared(tmp_path, text))
    assert noted.done == ["1-match", "2-capfilt", "3-match-again", "4-balance"]
    texts = rows_of(tmp_path / "out" / "2-capfilt" / "_state" / "texts.parquet")
    assert {one["origin"] for one in texts} == {"web", "synthetic"}
    assert len({one["image"] for one in texts if one["score"] is not None}) == 8
    kept = [one for one in texts if one["kept"]]
    assert 0 < len(kept) < len(texts)
    rows = rows_of(tmp_path / "out" / "2-capfilt")
    assert len(rows) == len(kept)
    assert set(rows[0]) == {"id", "image", "caption", "origin", "score"}
    before = {row["id"]: row for row in rows_of(tmp_path / "pairs" / "00.parquet")}
    before |= {row["id"]: row for row in rows_of(tmp_path / "pairs" / "01.parquet")}
    for row in rows:  # each text is in a row of its own image
        assert row["image"] == before[row["id"]]["image"]
        if row["origin"] == "web":
            assert row["caption"] == before[row["id"]]["caption"]
    by_text = sorted((one["text"], one["origin"], one["score"]) for one in kept)
    assert by_text == sorted((row["caption"], row["origin"], row["score"]) for row in rows)
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'href="2-capfilt/_pictures.html"' in page
    assert (tmp_path / "out" / "2-capfilt" / "_pictures.html").exists()
    assert not (tmp_path / "out" / "2-capfilt" / "_state" / "images").exists()
    text = text.replace('matcher = "dir', 'max_length = 12\n    matcher = "dir')
    text = text.replace(
        '[[step]]\n    use = "match"\n    name = "match-again"\n    entries = "entries.txt"', ""
    )
    with pytest.raises(UsageError, match="no step before has matched the texts that it gets"):
        run(declared(tmp_path, text))


def test_images_of_tars_and_relative_paths_are_found_from_tables_that_stand_elsewhere(tmp_path):
    make_pairs(tmp_path, tables=1, rows=4)
    picture = (tmp_path / "pairs" / "img" / "0-1.png").read_bytes()
    with tarfile.open(tmp_path / "pairs" / "shard.tar", "w") as tar:
        for name in ("a", "b"):
            member = tarfile.TarInfo(f"{name}.png")
            member.size = len(picture)
            tar.addfile(member, io.BytesIO(picture))
    cells = ["img/0-1.png", "shard.tar/b.png", "shard.tar/a.png", "img/none.png", None]
    elsewhere = tmp_path / "elsewhere" / "x.parquet"
    elsewhere.parent.mkdir()
    pq.write_table(pa.table({"image": cells, "caption": list("vwxyz")}), elsewhere)
    (part,) = find_parts([elsewhere])
    copy = _with_images(
        *(part, tmp_path / "state", PictureOptions(images=tmp_path / "pairs"), SourceOptions())
    )
    found = rows_of(copy)
    assert [row["caption"] for row in found] == list("vwxyz")
    images = [row["image"] for row in found]
    assert images[0] == {"bytes": None, "path": str(tmp_path / "pairs" / "img" / "0-1.png")}
    assert images[1] == {"bytes": picture, "path": "shard.tar/b.png"}
    assert images[2]["bytes"] == picture
    assert images[3]["bytes"] is None
    assert images[3]["path"].endswith("none.png")
    assert images[4] is None


def test_the_pipeline_among_the_examples_runs(tmp_path):
    make_pairs(tmp_path, tables=2, rows=60)
    for file in (tmp_path / "pairs" / "img").iterdir():
        seed = int(file.stem.replace("-", ""))
        coarse = np.random.default_rng(seed).integers(0, 255, (7, 7, 3), np.uint8)
        Image.fromarray(coarse).resize((220, 220), Image.Resampling.BICUBIC).save(file)
    example = Path(__file__).parent.parent.parent / "examples" / "curate.toml"
    shutil.copy(example, tmp_path)
    noted = run(tmp_path / "curate.toml")
    assert noted.done == ["1-match", "2-dedup", "3-quality", "4-dedup-images", "5-balance"]
    left = rows_of(tmp_path / "curated" / "5-balance")
    assert 0 < len(left) <= len({row["image"] for row in left})


def test_the_pipelines_of_the_docs_are_pipelines(tmp_path):
    page = Path(__file__).parent.parent.parent / "docs" / "curate-run.md"
    blocks = re.findall(r"^```toml\n(.*?)^```$", page.read_text("utf-8"), re.S | re.M)
    assert len(blocks) == 2
    for block in blocks:
        plan = read_plan(declared(tmp_path, block))
        assert plan.steps[-1].name == f"{len(plan.steps)}-balance"


def test_ray_is_asked_for_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr("annotary.curation.plan.find_spec", lambda name: None)
    text = PIPELINE.replace("t = 5", 't = 5\nexecutor = "ray"')
    with pytest.raises(MissingExtra, match=r"annotary\[ray\]"):
        run_plan(read_plan(declared(make_pairs(tmp_path), text)))
    assert not (tmp_path / "out").exists()
