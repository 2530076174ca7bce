"""A run that stops anywhere and is started again: no image twice, none missing, no half line."""

from __future__ import annotations

import csv
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import child_environment

COUNT = 150


def start(
    folder: Path, model: Path, output: Path, *more: str, **options
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "annotary", "tag", str(folder), "--model", f"dir:{model}"]
    command += ["--output", str(output), "--threads", "1", "--batch-size", "1", *more]
    limit = options.pop("largest_file", None)

    def prepare() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)  # whoever runs the tests may ignore some
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        command,
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=prepare,
        **options,
    )


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors.decode()


def names_in(output: Path) -> list[str]:
    """The images of an output, read by readers of Python's own."""
    if output.suffix == ".jsonl":
        return [json.loads(line)["image"] for line in output.read_text().splitlines()]
    if output.suffix == ".json":
        return [record["image"] for record in json.loads(output.read_text())]
    with output.open(newline="") as file:
        return [row["image"] for row in csv.DictReader(file)]


def size_of(output: Path) -> int:
    if output.is_dir():
        return sum(1 for _ in output.glob("*.txt"))
    return output.stat().st_size if output.exists() else 0


def stop_somewhere(process, output: Path, growth: int, number: int) -> None:
    """Send a signal when the output has grown by so much."""
    goal = size_of(output) + growth
    deadline = time.monotonic() + 30
    while size_of(output) < goal and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    if process.poll() is None:
        process.send_signal(number)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments(colours, photos, tmp_path, suffix, seed):
    folder = photos(COUNT, size=(200, 150))
    (folder / "00042.png").write_bytes(b"broken")
    output = tmp_path / f"out{suffix}"
    chance = random.Random(seed)
    killed = 0
    for _ in range(4):
        process = start(folder, colours, output)
        stop_somewhere(process, output, chance.randrange(1, 6000), signal.SIGKILL)
        process.communicate(timeout=60)
        killed += process.returncode == -signal.SIGKILL
        if suffix == ".jsonl" and output.exists():
            whole = output.read_bytes().rpartition(b"\n")[0].split(b"\n")
            assert all(json.loads(line) for line in whole if line)
    assert killed >= 2
    code, errors = finish(start(folder, colours, output))
    assert code == 1, errors
    expected = [str(path) for path in sorted(folder.iterdir()) if path.name != "00042.png"]
    assert names_in(output) == expected
    failures = names_in(tmp_path / "failures.jsonl")
    assert failures == [str(folder / "00042.png")]


def test_killed_sidecars(colours, photos, tmp_path):
    folder = photos(COUNT, size=(200, 150))
    output = tmp_path / "tags"
    chance = random.Random(3)
    for _ in range(3):
        process = start(folder, colours, output, "--format", "txt", "--threshold", "0")
        stop_somewhere(process, output, chance.randrange(1, 40), signal.SIGKILL)
        process.communicate(timeout=60)
    assert finish(start(folder, colours, output, "--format", "txt", "--threshold", "0"))[0] == 0
    sidecars = sorted(output.glob("*.txt"))
    assert [path.stem for path in sidecars] == [f"{i:05}" for i in range(COUNT)]
    for path in sidecars:
        assert sorted(path.read_text().removesuffix("\n").split(", ")) == ["blue", "green", "red"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_ctrl_c_leaves_a_whole_output_and_says_how_to_go_on(colours, photos, tmp_path, suffix):
    folder = photos(COUNT, size=(200, 150))
    output = tmp_path / f"out{suffix}"
    process = start(folder, colours, output)
    stop_somewhere(process, output, 500, signal.SIGINT)
    code, errors = finish(process)
    assert code == 130
    assert errors.strip() == "annotary: stopped; the same command goes on where it stopped"
    found = names_in(output)
    expected = [str(path) for path in sorted(folder.iterdir())]
    assert 0 < len(found) < COUNT
    assert found == expected[: len(found)]
    assert finish(start(folder, colours, output))[0] == 0
    assert names_in(output) == expected


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_full_disk(colours, photos, tmp_path, suffix):
    folder = photos(60)
    output = tmp_path / f"out{suffix}"

    code, errors = finish(start(folder, colours, output, largest_file=4001))
    assert code == 2
    assert errors.count("\n") == 1
    assert "cannot write" in errors
    assert "Traceback" not in errors
    assert output.stat().st_size <= 4001
    assert finish(start(folder, colours, output))[0] == 0
    assert names_in(output) == [str(path) for path in sorted(folder.iterdir())]


def test_a_disk_that_was_full_from_the_start(colours, photos, tmp_path):
    output = tmp_path / "out.jsonl"
    code, errors = finish(start(photos(3), colours, output, largest_file=10))
    assert code == 2
    assert "cannot write" in errors
    assert finish(start(photos(3), colours, output))[0] == 0
    assert len(names_in(output)) == 3


def test_two_processes_do_not_write_one_output(colours, photos, tmp_path):
    folder = photos(COUNT, size=(400, 300))
    output = tmp_path / "out.jsonl"
    first = start(folder, colours, output)
    stop_somewhere(first, output, 100, signal.SIGSTOP)
    try:
        code, errors = finish(start(folder, colours, output))
        assert code == 2
        assert "another process is writing" in errors
    finally:
        first.send_signal(signal.SIGCONT)
    assert finish(first)[0] == 0
    assert len(names_in(output)) == COUNT


def test_new_images_are_added_and_done_ones_are_not_repeated(colours, photos, tmp_path):
    output = tmp_path / "out.jsonl"
    assert finish(start(photos(3), colours, output))[0] == 0
    before = output.read_bytes()
    folder = photos(5)
    code, errors = finish(start(folder, colours, output))
    assert code == 0
    assert "3 done before" in errors
    assert output.read_bytes().startswith(before)
    assert names_in(output) == [str(path) for path in sorted(folder.iterdir())]


def test_failed_images_are_tried_again_when_asked(colours, photos, tmp_path):
    folder = photos(3)
    good = (folder / "00001.png").read_bytes()
    (folder / "00001.png").write_bytes(b"")
    output = tmp_path / "out.jsonl"
    assert finish(start(folder, colours, output))[0] == 1
    (folder / "00001.png").write_bytes(good)
    code, errors = finish(start(folder, colours, output))
    assert code == 1
    assert "1 failed" in errors
    assert len(names_in(output)) == 2
    assert finish(start(folder, colours, output, "--retry-failed"))[0] == 0
    assert sorted(names_in(output)) == [str(path) for path in sorted(folder.iterdir())]
    assert not (tmp_path / "failures.jsonl").exists()


def test_failures_of_the_source_are_counted_once(colours, photos, tmp_path):
    folder = photos(2)
    (folder / "broken.png").symlink_to("nowhere")
    output = tmp_path / "out.jsonl"
    code, errors = finish(start(folder, colours, output))
    assert code == 1
    assert "; 1 failed; see" in errors
    code, errors = finish(start(folder, colours, output))
    assert code == 1
    assert "2 done before; 1 failed before" in errors
    assert len(names_in(tmp_path / "failures.jsonl")) == 1


def test_a_run_over_other_images_does_not_count_their_failures(colours, photos, tmp_path):
    first, second = photos(1, "first"), photos(1, "second")
    (first / "bad.png").touch()
    output = tmp_path / "out.jsonl"
    assert finish(start(first, colours, output))[0] == 1
    code, errors = finish(start(second, colours, output))
    assert (code, "failed" in errors) == (0, False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_asked_to_stop_by_the_system(colours, photos, tmp_path, number):
    folder = photos(COUNT, size=(200, 150))
    output = tmp_path / "out.json"
    process = start(folder, colours, output)
    stop_somewhere(process, output, 500, number)
    code, errors = finish(process)
    assert code == 128 + number
    assert errors.count("\n") == 1
    assert 0 < len(names_in(output)) < COUNT


def test_stopped_while_standard_input_is_open(colours, photos, tmp_path):
    path = photos(1) / "00000.png"
    output = tmp_path / "out.jsonl"
    with start("-", colours, output, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(os.fsencode(path) + b"\n")
        process.stdin.flush()
        stop_somewhere(process, output, 1, signal.SIGINT)
        code, errors = process.wait(30), process.stderr.read().decode()
    assert code == 130, errors
    assert errors.count("\n") == 1, errors
    assert names_in(output) == [str(path)]


def test_an_input_is_never_written_over(colours, photos, tmp_path):
    output = tmp_path / "out.jsonl"
    assert finish(start(photos(2), colours, output))[0] == 0
    before = output.read_bytes()
    code, errors = finish(start(output, colours, output, "--on-existing", "overwrite"))
    assert code == 2
    assert "is read and cannot be written" in errors
    assert output.read_bytes() == before
    code, errors = finish(
        start(
            tmp_path / "photos" / "00000.png",
            colours,
            tmp_path / "photos" / "00000.png",
            "--format",
            "json",
        )
    )
    assert code == 2


@pytest.mark.parametrize("wrong", [["--batch-size", "0"], ["--model", "none"]])
def test_a_wrong_call_throws_nothing_away(colours, photos, tmp_path, wrong):
    output = tmp_path / "out.jsonl"
    assert finish(start(photos(2), colours, output))[0] == 0
    before = output.read_bytes()
    assert (
        finish(start(tmp_path / "photos", colours, output, "--on-existing", "overwrite", *wrong))[0]
        == 2
    )
    (tmp_path / "empty").mkdir()
    assert finish(start(tmp_path / "empty", colours, output, "--on-existing", "overwrite"))[0] == 2
    assert output.read_bytes() == before


def test_a_printer_that_is_full(colours, photos):
    command = [sys.executable, "-m", "annotary", "tag", str(photos(2)), "--model", f"dir:{colours}"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            command,
            env=child_environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "No space left on device" in result.stderr


def test_stopped_while_servers_are_silent(colours, tmp_path):
    """The process ends at once, and does not wait for threads that wait for a server."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/a.jpg"
        process = start(address, colours, tmp_path / "out.jsonl", "--timeout", "100")
        silent.settimeout(30)
        connection, _ = silent.accept()
        with connection:
            connection.recv(100)
            process.send_signal(signal.SIGINT)
            code, errors = finish(process)  # fails after 60 s, long before the server's time is up
    assert code == 130
    assert "stopped" in errors
