"""`annotary curate metadata`: what it writes, what it leaves alone, and what it tells."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from annotary.cli import main
from annotary.curation.entries import read_entries
from tests.conftest import child_environment
from tests.curation.test_metadata import written


@pytest.fixture
def run(capsys):
    """Runs the command in this process; gives the exit code, and what stands on standard output and standard error."""

    def annotary(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["curate", "metadata", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return annotary


@pytest.fixture
def files(tmp_path) -> list[object]:
    """Options with a small list without WordNet."""
    words = [f"{word}\t{1000 - i}" for i, word in enumerate(["the", "black", "cat", "“x”", "U.S."])]
    unigrams = written(tmp_path / "u.tsv", *words, "rest\t2000000", "bad")
    bigrams = written(tmp_path / "b.tsv", "black\tcat\t400", "the\tcat\t1")
    titles = written(tmp_path / "t.tsv", "The_Police\t500")
    given = ("--unigrams", unigrams, "--bigrams", bigrams, "--titles", titles)
    return ["--wordnet", "none", *given, "--bigram-pmi", "5"]


EXPECTED = [*map(str, range(100)), "rest", "the", "black", "cat", "“x”", "black cat", "The Police"]


@pytest.mark.parametrize("suffix", ["txt", "json", "csv", "jsonl", "parquet"])
def test_every_form_is_read_by_matching(run, files, suffix):
    path = Path(f"entries.{suffix}")
    code, out, err = run("--output", path, *files)
    assert code == 0, err
    assert out == ""
    assert list(read_entries(path)) == EXPECTED
    report = json.loads(Path(f"entries.{suffix}.report.json").read_text("utf-8"))
    assert report["entries"] == len(EXPECTED)
    assert report["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    dead = Path(f"entries.{suffix}.dead.jsonl").read_text("utf-8").splitlines()
    assert list(map(json.loads, dead)) == [{"entry": "U.S.", "source": "u", "count": 996}]
    assert report["never_match"]["file"] == f"entries.{suffix}.dead.jsonl"


def test_tables_have_ids_sources_and_counts(run, files):
    import pyarrow.parquet as pq

    run("--output", "entries.csv", *files)
    run("--output", "entries.jsonl", *files)
    run("--output", "entries.parquet", *files)
    records = pq.read_table("entries.parquet").to_pylist()
    assert records[0] == {"id": 0, "entry": "0", "source": "n", "count": None}
    assert records[100:102] == [
        {"id": 100, "entry": "rest", "source": "u", "count": 2000000},
        {"id": 101, "entry": "the", "source": "u", "count": 1000},
    ]
    assert records[-2]["source"] == "b"
    assert records[-1] == {"id": 106, "entry": "The Police", "source": "t", "count": 500}
    lines = Path("entries.jsonl").read_text("utf-8").splitlines()
    assert list(map(json.loads, lines)) == records
    with open("entries.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {name: "" if value is None else str(value) for name, value in record.items()}
        for record in records
    ]


def test_nothing_but_an_output_gives_english_wordnet(run):
    code, _, err = run("--output", "deep/entries.txt")
    assert code == 0
    assert len(read_entries("deep/entries.txt")) == 86_654
    assert "86,654 entries in deep/entries.txt" in err
    assert not Path("deep/entries.txt.dead.jsonl").exists()


def test_what_is_told(run, files):
    names = written(Path("classes.txt"), "black cat", "the police", "Cat", "emu")
    code, out, err = run("--output", "e.txt", *files, "--coverage", names, "--json")
    assert code == 0
    report = json.loads(out)
    assert report["coverage"]["found"] == 1
    assert report["coverage"]["found_in_lower_case"] == 1
    assert report["coverage"]["missing"] == ["the police", "Cat", "emu"]
    assert "unigrams: skipped" in err
    assert "u.tsv:7: no count in it" in err
    assert "1 entries that no text can match were left out; see e.txt.dead.jsonl" in err
    assert "1 of 4 names are entries, and 1 more are in lower case" in err
    quiet = run("--output", "e.txt", *files, "--quiet")
    assert quiet == (0, "", "")


def test_a_limit_that_no_pair_can_reach_is_told(run, files):
    _, _, err = run("--output", "e.txt", *files, "--bigram-pmi", "30")
    assert "no pair can have a PMI of 30, at most 20.9" in err


def test_the_same_again_takes_its_place_and_what_is_foreign_stays(run, files):
    path = Path("entries.txt")
    assert run("--output", path, *files)[0] == 0
    assert run("--output", path, *files, "--max-unigrams", "2")[0] == 0
    assert list(read_entries(path)) == [*EXPECTED[:102], *EXPECTED[105:]]
    path.write_text("mine\n")
    code, _, err = run("--output", path, *files)
    assert code == 2
    assert "--on-existing overwrite" in err
    assert path.read_text() == "mine\n"
    assert run("--output", path, *files, "--on-existing", "overwrite")[0] == 0
    assert list(read_entries(path)) == EXPECTED


@pytest.mark.parametrize(
    "name", ["entries.txt", "entries.txt.report.json", "entries.txt.dead.jsonl"]
)
def test_files_of_others_are_left_alone(run, files, name):
    Path(name).write_text('{"mine": 1}')
    code, _, err = run("--output", "entries.txt", *files)
    assert (code, err.count("\n")) == (2, 1)
    assert name in err
    assert Path(name).read_text() == '{"mine": 1}'
    assert not [
        path
        for path in Path().iterdir()
        if path.name.startswith("entries.txt") and path.name != name
    ]


def test_dead_entries_of_an_earlier_run_go(run, files):
    run("--output", "e.txt", *files)
    assert Path("e.txt.dead.jsonl").exists()
    assert run("--output", "e.txt", "--wordnet", "none")[0] == 0
    assert not Path("e.txt.dead.jsonl").exists()


def test_a_run_that_stops_between_two_files_can_be_given_again(run, files, monkeypatch):
    import annotary.sinks

    assert run("--output", "e.txt", *files)[0] == 0
    kept = Path("e.txt").read_bytes()
    real, left = annotary.sinks.write_atomically, [0]

    def stops(path, content, **options):
        if path.name == left[0]:
            raise KeyboardInterrupt
        real(path, content, **options)

    monkeypatch.setattr("annotary.sinks.write_atomically", stops)
    changed = [*files, "--max-unigrams", "3", "--keep-dead", "--unigram-count", "998"]
    for name in ("e.txt.dead.jsonl", "e.txt"):
        left[0] = name
        code, _, err = run("--output", "e.txt", *files, "--max-unigrams", "4")
        assert code != 0
        assert "is there already" not in err
        assert Path("e.txt").read_bytes() == kept
    left[0] = ""
    assert run("--output", "e.txt", *changed)[0] == 0
    assert Path("e.txt").read_bytes() != kept


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--output", "entries.xls"), "must end in .txt, .json, .csv, .jsonl, .parquet"),
        (("--output", "e.txt", "--bigrams", "b.tsv"), "--bigrams needs --unigrams"),
        (("--output", "e.txt", "--unigrams", "none.tsv"), "none.tsv: No such file"),
        (("--output", "e.txt", "--coverage", "none.txt"), "--coverage none.txt: No such file"),
        (("--output", "e.txt", "--report", "e.txt"), "has another use"),
        (("--output", "e.txt", "--max-titles", "-1"), "--max-titles must not be negative"),
        (("--output", "e.txt", "--wordnet", "none.txt"), "none.txt: No such file"),
        (("--output", "e.txt", "--captions", "none.csv"), "no such file or folder"),
        (("--output", "e.txt", "--text-column", "caption"), "--text-column is a column of"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(run, arguments, told):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert told in err.splitlines()[-1]
    assert not list(Path().iterdir())


def test_captions_that_broke_off_give_a_list_and_an_exit_code_of_1(run, tmp_path):
    table = tmp_path / "captions.parquet"
    table.write_bytes(b"PAR1 no table")
    written(tmp_path / "good.csv", "caption", "a dog", "a dog")
    code, _, err = run(
        *("--output", "e.txt", "--captions", "good.csv", "--captions", table),
        *("--unigram-count", "1", "--wordnet", "none", "--bigram-pmi", "0"),
    )
    assert code == 1
    assert "captions.parquet" in err
    assert list(read_entries("e.txt"))[100:] == ["a", "dog", "a dog"]


def test_the_hash_seed_changes_nothing(tmp_path, files):
    seen = set()
    for seed in ("0", "1", "4242"):
        output = tmp_path / seed / "entries.parquet"
        result = subprocess.run(
            [sys.executable, "-m", "annotary", "curate", "metadata", "--output", output, *files],
            capture_output=True,
            text=True,
            env={**child_environment(), "PYTHONHASHSEED": seed},
            check=False,
        )
        assert result.returncode == 0, result.stderr
        seen.add(output.read_bytes())
    assert len(seen) == 1
