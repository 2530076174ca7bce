"""`annotary tag` as a user meets it: a process, its output, its exit code, one line for what is wrong."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from annotary.records import from_line
from tests.conftest import child_environment, make_colours


def annotary(*arguments: str | Path, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "annotary", *map(str, arguments)]
    return subprocess.run(
        command,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def complaint(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that a wrong call gets, without traceback and with exit code 2."""
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("annotary: ")
    return result.stderr


def test_tags_are_printed(colours, photos):
    folder = photos(3)
    result = annotary("tag", folder, "--model", f"dir:{colours}", "--threshold", "0", "--top", "1")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        str(path) for path in sorted(folder.iterdir())
    ]
    assert all(line.split(": ")[1].split()[0] in ("red", "green", "blue") for line in lines)
    assert result.stderr.startswith("3 tagged in ")


def test_json_prints_records_and_nothing_else(colours, photos):
    folder = photos(3)
    (folder / "00001.png").write_bytes(b"")
    result = annotary("tag", folder, "--model", f"dir:{colours}", "--json", "--quiet")
    assert result.returncode == 1
    assert result.stderr == ""
    records = [from_line(line) for line in result.stdout.splitlines()]
    assert [record.ok for record in records] == [True, False, True]
    assert not list(Path.cwd().glob("*.jsonl"))


def test_failures_without_a_file_are_told(colours, photos):
    folder = photos(1)
    (folder / "a.jpg").write_bytes(b"")
    result = annotary("tag", folder, "--model", f"dir:{colours}")
    assert result.returncode == 1
    assert f"{folder / 'a.jpg'}: the file is empty\n" in result.stderr
    assert "1 failed" in result.stderr


def test_sidecars_beside_the_images(colours, photos):
    folder = photos(2)
    result = annotary("tag", folder, "--model", f"dir:{colours}", "--format", "txt")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in folder.glob("*.txt")} == {"00000.txt", "00001.txt"}
    again = annotary("tag", folder, "--model", f"dir:{colours}", "--format", "txt")
    assert "0 tagged" in again.stderr
    assert "2 had a result already (--on-existing append or overwrite" in again.stderr


def test_a_sidecar_that_two_images_want(colours, photos, tmp_path):
    folder = photos(1)
    (folder / "00000.bmp").write_bytes((folder / "00000.png").read_bytes())
    result = annotary(
        "tag", folder, "--model", f"dir:{colours}", "--format", "txt", "--output", "tags"
    )
    assert result.returncode == 1
    (line,) = (tmp_path / "tags" / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["error"] == "SidecarError"


def test_a_list_on_standard_input(colours, photos):
    folder = photos(2)
    names = "\0".join(str(path) for path in sorted(folder.iterdir()))
    result = annotary("tag", "-", "--model", f"dir:{colours}", "--json", input=names)
    assert [json.loads(line)["image"] for line in result.stdout.splitlines()] == names.split("\0")


def test_an_image_named_twice_is_done_once(colours, photos):
    path = photos(1) / "00000.png"
    result = annotary("tag", path, path, path.parent, "--model", f"dir:{colours}", "--json")
    assert len(result.stdout.splitlines()) == 1


def test_names_that_are_not_utf8(colours, photos, tmp_path):
    folder = photos(1)
    name = os.fsencode(folder) + b"/caf\xe9 \n.png"
    (folder / "00000.png").rename(os.fsdecode(name))
    result = annotary("tag", folder, "--model", f"dir:{colours}", "--output", "out.jsonl")
    assert result.returncode == 0, result.stderr
    assert os.fsencode(from_line((tmp_path / "out.jsonl").read_bytes()).image) == name
    printed = annotary("tag", folder, "--model", f"dir:{colours}")
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.count("\n") == 1


def test_one_image_under_two_names_is_done_once(colours, photos):
    folder = photos(1)
    result = annotary("tag", folder, f"{folder}/../photos", "--model", f"dir:{colours}", "--json")
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos"], "no such file or folder: 'photos'"),
        ([], "Missing argument 'PATH...' (see annotary tag --help)"),
        (
            [".", "--bad"],
            "No such option '--bad' (Did you mean one of: '--embed', '--shard'?) (see annotary tag",
        ),
        ([".", "--threshold", "high"], "'high' is not a valid float"),
        ([".", "--threshold", "2"], "--threshold must be in 0..1, but got 2.0"),
        ([".", "--preset", "best"], "'best' is not one of 'balanced', 'precise', 'broad'"),
        ([".", "--threshold", "0.1", "--preset", "broad"], "--threshold takes the place of preset"),
        ([".", "--top", "0"], "--top must be whole and at least 1"),
        (
            [".", "--format", "xyz"],
            "unknown format 'xyz'; known: caption, coco, coco-captions, csv, cvat, folders",
        ),
        ([".", "--format", "csv"], "--format csv needs --output FILE"),
        ([".", "--output", "out"], "'out' has no suffix"),
        ([".", "--output", "out.pdf"], "names no format"),
        ([".", "--json", "--output", "a.jsonl"], "--json prints"),
        ([".", "--batch-size", "0"], "--batch-size must be at least 1"),
        ([".", "--threads", "0"], "--threads must be at least 1"),
        ([".", "--timeout", "0"], "--timeout must be positive"),
        ([".", "--model", "stater"], "unknown model 'stater'"),
        ([".", "--model", "dir:nowhere"], "no model directory 'nowhere'"),
        ([".", "--output", "/proc/nowhere/out.jsonl"], "cannot write"),
        ([".", "--output", "folder.jsonl"], "is a folder"),
        ([".", "--model", ""], "unknown model ''"),
        ([".", "--model", "m" * 300], "unknown model 'mmm"),
        ([".", "--model", "dir:"], "no model directory ''"),
        ([".", "--device", "cuda"], "offers no CUDA"),
        ([".", "--separator", ""], "--separator must not be empty"),
        ([".", "--retry-failed"], "--retry-failed and --on-existing need --output"),
        (
            [".", "--output", "a.csv", "--on-existing", "append"],
            "append is for --format caption, hydrus, json-files, txt, xmp",
        ),
        ([".", "--format", "jsonl", "--output", "."], "is no file"),
        (
            [".", "--format", "jsonl", "--output", "a.jsonl", "--escape"],
            "--escape is for --format capt",
        ),
        ([".", "--prefix", "x"], "--prefix is for --format caption, "),
        (
            [".", "--format", "txt", "--output", "file"],
            "file is a file, and this format needs a folder",
        ),
        ([".", "--format", "jsonl", "--output", "/dev/null"], "is no ordinary file"),
        (["."], "no images in ."),
        ([".", "--output", "new.jsonl"], "no images in ."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_calls_get_one_line(colours, tmp_path, arguments, message):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "file").write_text("")
    if arguments[:1] == ["."] and "no images" not in message:
        Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    model = [] if "--model" in arguments else ["--model", f"dir:{colours}"]
    before = set(tmp_path.iterdir())
    assert message in complaint(annotary("tag", *arguments, *model))
    assert set(tmp_path.iterdir()) == before, "a wrong call leaves nothing behind"


def test_an_output_of_other_settings_is_refused(colours, photos, tmp_path):
    folder = photos(2)
    common = ["tag", folder, "--output", "out.jsonl"]
    assert annotary(*common, "--model", f"dir:{colours}").returncode == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    told = complaint(annotary(*common, "--model", f"dir:{colours}", "--threshold", "0.1"))
    assert "threshold was not said, now 0.1" in told
    other = make_colours(tmp_path / "other", version="2.0")
    told = complaint(annotary(*common, "--model", f"dir:{other}"))
    assert "model was 'colours@1.0', now 'colours@2.0'" in told
    assert (tmp_path / "out.jsonl").read_bytes() == before
    anew = annotary(*common, "--model", f"dir:{other}", "--on-existing", "overwrite")
    assert anew.returncode == 0
    assert b"colours@2.0" in (tmp_path / "out.jsonl").read_bytes()


def test_a_file_of_somebody_else_is_never_touched(colours, photos, tmp_path):
    precious = tmp_path / "out.jsonl"
    precious.write_text("precious\n")
    told = complaint(annotary("tag", photos(1), "--model", f"dir:{colours}", "--output", precious))
    assert "was not written by annotary" in told
    assert precious.read_text() == "precious\n"
    assert {path.name for path in tmp_path.iterdir()} == {"out.jsonl", "photos"}


def test_two_runs_in_one_folder_keep_their_failures_apart(colours, photos, tmp_path):
    for name in ("first", "second"):
        folder = photos(1, name)
        (folder / f"{name}.jpg").write_bytes(b"")
        annotary("tag", folder, "--model", f"dir:{colours}", "--output", f"{name}.jsonl")
    assert "first.jpg" in (tmp_path / "failures.jsonl").read_text()
    assert "second.jpg" in (tmp_path / "second.jsonl.failures.jsonl").read_text()


def test_a_run_without_failures_keeps_its_name_for_them(colours, photos, tmp_path):
    first, second = photos(1, "first"), photos(1, "second")
    for folder in (first, second):
        annotary("tag", folder, "--model", f"dir:{colours}", "--output", f"{folder.name}.jsonl")
    for folder in (second, first):
        (folder / "late.jpg").write_bytes(b"")
        annotary("tag", folder, "--model", f"dir:{colours}", "--output", f"{folder.name}.jsonl")
    assert "second" in (tmp_path / "second.jsonl.failures.jsonl").read_text()
    assert "first" in (tmp_path / "failures.jsonl").read_text()


def test_a_reader_that_has_enough(colours, photos):
    command = (
        f"{sys.executable} -m annotary tag {photos(200)} --model dir:{colours} --quiet | head -n 1"
    )
    result = subprocess.run(
        command, shell=True, env=child_environment(), capture_output=True, text=True, check=False
    )
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1


def test_the_bar_of_a_terminal(colours, photos):
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "annotary",
        "tag",
        str(photos(300)),
        "--model",
        f"dir:{colours}",
    ]
    environment = {**child_environment(), "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # the terminal is gone with the process
        pass
    os.close(ours)
    assert process.wait(60) == 0
    assert b"tagging " in shown
    assert b" images, " in shown
    assert b"/s" in shown
    assert b"300 tagged in " in shown


def test_sidecars_mirror_the_folders_below_the_argument(colours, photos, tmp_path):
    inner = photos(1, "photos/2024")
    photos(1, "photos/2025")
    model = f"dir:{colours}"
    result = annotary("tag", inner.parent, "--model", model, "--format", "txt", "--output", "tags")
    assert result.returncode == 0, result.stderr
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.txt")}
    assert found == {"tags/2024/00000.txt", "tags/2025/00000.txt"}


def test_an_input_in_braces_is_not_written_over(photos, colours, tmp_path):
    folder, model = photos(2), ("--model", f"dir:{colours}")
    for number in range(2):
        assert annotary("tag", folder, *model, "--output", f"{number}.tar").returncode == 0
    before = (tmp_path / "1.tar").read_bytes()
    wishes = ("--output", "1.tar", "--on-existing", "overwrite")
    assert "1.tar is read and cannot be written" in complaint(
        annotary("tag", "{0..1}.tar", *model, *wishes)
    )
    assert (tmp_path / "1.tar").read_bytes() == before


def test_a_settings_file_of_somebody_else_is_left_alone(photos, colours, tmp_path):
    folder, model = photos(1), ("--model", f"dir:{colours}")
    (tmp_path / "a.jsonl.run.json").write_text('{"experiment": "mine"}')
    told = complaint(annotary("tag", folder, *model, "--output", "a.jsonl"))
    assert "a.jsonl.run.json is not one of annotary's" in told
    assert (tmp_path / "a.jsonl.run.json").read_text() == '{"experiment": "mine"}'
    assert not (tmp_path / "a.jsonl").exists()


def test_captions_that_the_shell_names_with_the_images_are_no_lists(photos, colours):
    folder, model = photos(2), ("--model", f"dir:{colours}")
    assert annotary("tag", folder, *model, "--format", "txt").returncode == 0
    assert annotary("tag", folder, *model, "--format", "caption", "--full-names").returncode == 0
    everything = sorted(map(str, folder.iterdir()))
    assert len(everything) == 6
    result = annotary("tag", *everything, *model, "--json")
    assert (result.returncode, result.stdout.count("\n")) == (0, 2)


def test_sidecars_of_an_archive_need_a_place(photos, colours):
    shutil.make_archive("photos", "zip", photos(2))
    model = ("--model", f"dir:{colours}")
    told = complaint(annotary("tag", "photos.zip", *model, "--format", "txt"))
    assert "the images of photos.zip are no files to put sidecars beside; say --output" in told
    assert annotary("tag", "photos.zip", *model, "--format", "txt", "--output", "t").returncode == 0


@pytest.mark.parametrize("mode", ["skip", "append", "overwrite"])
def test_a_list_that_is_read_is_no_sidecar(photos, colours, tmp_path, mode):
    folder = photos(1)
    (folder / "00000.png").rename(folder / "list.png")
    (folder / "list.txt").write_text("list.png\n")
    model = ("--model", f"dir:{colours}")
    wishes = ("--format", "txt", "--on-existing", mode)
    result = annotary("tag", folder / "list.txt", *model, *wishes)
    assert (result.returncode, "1 failed" in result.stderr) == (1, True)
    assert (folder / "list.txt").read_text() == "list.png\n"
