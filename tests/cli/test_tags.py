"""Scores that are kept, tags that are chosen from them again, and tags that are counted."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from annotary.registry import load
from annotary.sinks import format_named, formats
from tests.cli.test_tag import annotary, complaint
from tests.conftest import child_environment


@pytest.fixture
def model(colours) -> tuple[str, str]:
    return "--model", f"dir:{colours}"


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_tags_are_chosen_from_saved_scores_as_from_the_network(photos, model, tmp_path):
    folder = photos(30)
    (folder / "bad.png").write_bytes(b"no image")
    result = annotary("tag", folder, *model, "--output", "a.jsonl", "--save-scores", "s")
    assert result.returncode == 1
    for wishes in (
        (),
        ("--threshold", "0.3"),
        ("--preset", "precise", "--exclude", "red"),
        ("--mcut", "--order", "vocabulary"),
        ("--threshold", "0.9", "--min-tags", "2", "--replace", "green=verdant"),
        ("--category-threshold", "colour=0.4", "--top", "1"),
    ):
        shutil.rmtree("one", ignore_errors=True)
        kept = ("--save-scores", "one/s")
        made = annotary("tag", folder, *model, "--output", "one/a.jsonl", *kept, *wishes)
        assert made.returncode == 1
        again = annotary("tags", "apply", "s", "--output", "one/b.jsonl", *wishes)
        assert again.returncode == 0, again.stderr
        assert "30 tagged" in again.stderr
        assert len(lines(tmp_path / "one/a.jsonl")) == 30
        assert lines(tmp_path / "one/a.jsonl") == lines(tmp_path / "one/b.jsonl")


def test_saved_scores_go_to_sidecars_of_the_same_names(photos, model, tmp_path):
    folder = photos(3, "deep/photos")
    assert annotary("tag", "deep", *model, "--save-scores", "s", "--quiet").returncode == 0
    assert annotary("tags", "apply", "s", "--format", "txt", "--output", "t").returncode == 0
    assert annotary("tag", "deep", *model, "--format", "txt", "--output", "u").returncode == 0
    for path in sorted(folder.iterdir()):
        name = f"photos/{path.stem}.txt"
        assert (tmp_path / "t" / name).read_text() == (tmp_path / "u" / name).read_text()


def test_images_of_archives_are_tagged_again_where_that_can_be(photos, model, tmp_path):
    folder = photos(3)
    shutil.make_archive("photos", "zip", folder)
    assert annotary("tag", "photos.zip", *model, "--save-scores", "s", "--quiet").returncode == 0
    assert annotary("tags", "apply", "s", "--format", "txt", "--output", "t").returncode == 0
    assert sorted(path.name for path in (tmp_path / "t").glob("*.txt")) == [
        f"0000{i}.txt" for i in range(3)
    ]
    beside = annotary("tags", "apply", "s", "--format", "txt")
    assert (beside.returncode, "3 failed" in beside.stderr) == (1, True)
    tar = annotary("tags", "apply", "s", "--output", "new/photos.tar")
    assert (tar.returncode, "3 failed" in tar.stderr) == (1, True)
    assert (
        "in an archive, which scores do not keep" in (tmp_path / "new/failures.jsonl").read_text()
    )


def test_scores_are_continued_whatever_the_output_holds(photos, model, tmp_path):
    folder = photos(6)
    assert annotary("tag", folder, *model, "--output", "a.jsonl").returncode == 0
    before = (tmp_path / "a.jsonl").read_bytes()
    # Scores that are asked for later are made; the records are not written twice.
    result = annotary("tag", folder, *model, "--output", "a.jsonl", "--save-scores", "s")
    assert (result.returncode, result.stderr.split()[0]) == (0, "6")
    assert (tmp_path / "a.jsonl").read_bytes() == before
    result = annotary("tag", folder, *model, "--output", "a.jsonl", "--save-scores", "s")
    assert "0 tagged" in result.stderr
    assert "6 done before" in result.stderr
    # Without an output the scores alone tell what is done.
    result = annotary("tag", folder, *model, "--save-scores", "s")
    assert (result.stdout, "6 done before" in result.stderr) == ("", True)
    assert annotary("tags", "apply", "s", "--json").stdout.count("\n") == 6


def test_places_that_are_taken_are_refused(photos, model, tmp_path):
    folder = photos(1)
    same = annotary("tag", folder, *model, "--format", "txt", "--output", "x", "--save-scores", "x")
    assert "need a place each" in complaint(same)
    assert not (tmp_path / "x").exists()
    assert annotary("tag", folder, *model, "--save-scores", "s", "--quiet").returncode == 0
    over = annotary(
        "tags", "apply", "s", "--format", "txt", "--output", "s", "--on-existing", "overwrite"
    )
    assert "s holds saved scores" in complaint(over)


def test_an_image_that_vanished_is_listed_when_scores_are_asked_for_later(photos, model, tmp_path):
    folder = photos(2)
    (tmp_path / "list.lst").write_text("photos/00000.png\nphotos/00001.png\n")
    assert annotary("tag", "list.lst", *model, "--output", "a.jsonl").returncode == 0
    (folder / "00001.png").unlink()
    result = annotary("tag", "list.lst", *model, "--output", "a.jsonl", "--save-scores", "s")
    assert (result.returncode, "see failures.jsonl" in result.stderr) == (1, True)
    assert len(lines(tmp_path / "failures.jsonl")) == 1


def test_a_run_that_is_killed_keeps_scores_and_records_together(photos, model, tmp_path):
    folder = photos(400)
    command = [sys.executable, "-m", "annotary", "tag", str(folder), *model]
    command += ["--output", "a.jsonl", "--save-scores", "s"]
    for _ in range(3):
        child = subprocess.Popen(command, env=child_environment(), stderr=subprocess.DEVNULL)
        size = (tmp_path / "a.jsonl").stat().st_size if (tmp_path / "a.jsonl").exists() else 0
        for _ in range(1000):
            time.sleep(0.01)
            if child.poll() is not None or (
                (tmp_path / "a.jsonl").exists() and (tmp_path / "a.jsonl").stat().st_size > size
            ):
                break
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert annotary(*command[3:]).returncode == 0
    assert annotary("tags", "apply", "s", "--output", "b.jsonl").returncode == 0
    records, again = lines(tmp_path / "a.jsonl"), lines(tmp_path / "b.jsonl")
    assert len(records) == 400
    assert {r["image"] for r in records} == {r["image"] for r in again}
    assert len(again) == 400


def test_an_ensemble_of_two_models(photos, colours, tmp_path):
    from tests.conftest import make_colours

    other = make_colours(tmp_path / "other", version="2.0")
    folder = photos(4)
    both = f"dir:{colours}, dir:{other}"
    result = annotary("tag", folder, "--ensemble", both, "--json", "--save-scores", "s")
    assert result.returncode == 0, result.stderr
    alone = annotary("tag", folder, "--model", f"dir:{colours}", "--json")
    for line, expected in zip(result.stdout.splitlines(), alone.stdout.splitlines(), strict=True):
        found, one = json.loads(line), json.loads(expected)
        assert found["sources"] == {"tags": "colours@1.0+colours@2.0"}
        assert [t["name"] for t in found["tags"]] == [t["name"] for t in one["tags"]]
        for tag, same in zip(found["tags"], one["tags"], strict=True):
            assert tag["score"] == pytest.approx(
                same["score"], abs=5e-4
            )  # scores are kept as float16
    twice = annotary("tag", folder, "--ensemble", f"dir:{colours},dir:{colours}")
    assert "two or more different models" in complaint(twice)
    clash = annotary("tag", folder, "--ensemble", both, "--model", f"dir:{colours}")
    assert "--ensemble takes the place of --model" in complaint(clash)


def test_tags_are_counted(photos, model):
    folder = photos(5)
    assert (
        annotary("tag", folder, *model, "--output", "a.jsonl", "--threshold", "0").returncode == 0
    )
    shown = annotary("tags", "stats", "a.jsonl")
    head, *rows = shown.stdout.splitlines()
    assert head == "5 images, 0 without tags; 3 different tags, 3.0 an image"
    assert sorted(row.split()[-1] for row in rows) == ["blue", "green", "red"]
    assert all(row.split()[:2] == ["5", "100.0%"] for row in rows)
    told = json.loads(annotary("tags", "stats", "a.jsonl", "--json", "--top", "2").stdout)
    assert (told["images"], told["given_tags"], len(told["tags"])) == (5, 15, 2)
    assert 0 < told["tags"][0]["mean_score"] < 1


def test_tags_of_every_format_are_counted_alike(photos, model):
    photos(4)
    expected = None
    for form in formats():
        if "tags" not in format_named(form).parts:
            continue
        assert hasattr(load("sinks", form), "read"), form
        output = {"imagefolder": "photos/metadata.jsonl"}.get(form, f"made.{form}")
        wishes = ("--threshold", "0.3", "--format", form, "--output", output)
        made = annotary("tag", "photos", *model, *wishes)
        assert made.returncode == 0, made.stderr
        result = annotary("tags", "stats", output, "--format", form, "--json")
        assert result.returncode == 0, result.stderr
        found = json.loads(result.stdout)
        told = [(tag["name"].rpartition(":")[2], tag["images"]) for tag in found["tags"]]
        expected = expected or told
        assert (found["images"], sorted(told)) == (4, sorted(expected)), form
    assert expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("apply", "missing"), "missing holds no saved scores"),
        (("stats", "missing.jsonl"), "no such file or folder: 'missing.jsonl'"),
        (("stats", "."), "no sidecars in ."),
        (("stats", "broken.jsonl"), "broken.jsonl, line 1, holds no image"),
    ],
)
def test_wrong_calls_get_one_line(call, message, tmp_path):
    (tmp_path / "broken.jsonl").write_text("{}\n")
    assert message in complaint(annotary("tags", *call))
