"""Steps over parts: whatever stops them, they go on, and what is there at the end does not tell of it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from annotary.curation.steps import (
    FAILURES,
    REPORT,
    StepOptions,
    Tally,
    add_to_report,
    read_report,
    run_step,
    take_folder,
)
from annotary.curation.tables import find_parts
from annotary.errors import AnnotaryError, OutputError, UsageError
from tests.conftest import child_environment
from tests.curation.steps_to_test import Copy, make_tables, tree

pytest.importorskip("pyarrow")

ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def log(tmp_path) -> Path:
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


def tries(log: Path) -> dict[str, int]:
    """How often each part was begun."""
    return {path.name: len(path.read_text().splitlines()) for path in sorted(log.iterdir())}


def run(log: Path, inputs: Path, output: Path, *, step=None, **options):
    on_part = options.pop("on_part", None)
    options.setdefault("workers", 1)
    step = step or Copy(str(log))
    return run_step(step, find_parts([inputs]), output, StepOptions(**options), on_part=on_part)


def no_child_is_left() -> bool:
    """Whether all processes that were started are gone, and were taken leave of; other tests may have some, too."""
    return not [one for one in psutil.Process().children() if _is_worker(one)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE or "annotary.curation._worker" in (
            process.cmdline()
        )
    except psutil.NoSuchProcess:
        return False


# --- the same, however many work on it


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_make_no_difference(tmp_path, log, workers):
    inputs = make_tables(tmp_path / "in", 7)
    (inputs / "05.jsonl").write_text("")
    (inputs / "bad.parquet").write_text("no table")
    told = []
    one = run(log, inputs, tmp_path / "one", workers=1)
    many = run(
        log, inputs, tmp_path / "many", workers=workers, on_part=lambda n, tally: told.append(n)
    )
    assert tree(tmp_path / "one") == tree(tmp_path / "many")
    assert told == list(range(1, 9))
    assert (one.total, one.failed) == (many.total, many.failed)
    assert one.total.rows_in == 6 * 21
    assert one.total.rows_out == 6 * 20
    assert one.total.dropped == {"broken row": 6}
    assert one.failed == ("bad",)
    assert list(many.tallies) == [f"{number:02}" for number in range(7)]
    report = read_report(tmp_path / "many")
    assert (report["parts"], report["parts_failed"], report["parts_missing"]) == (7, ["bad"], 0)
    assert report["bytes"] == sum(path.stat().st_size for path in inputs.glob("*.jsonl"))
    lines = (tmp_path / "many" / FAILURES).read_text().splitlines()
    assert [json.loads(line)["image"] for line in lines[:2]] == [
        f"{inputs}/00.jsonl:4",
        f"{inputs}/01.jsonl:4",
    ]
    assert json.loads(lines[-1])["image"] == f"{inputs}/bad.parquet"
    assert no_child_is_left()


def test_what_is_written_is_no_input(tmp_path, log):
    inputs = make_tables(tmp_path / "in", 2)
    run(log, inputs, tmp_path / "out")
    assert [part.name for part in find_parts([tmp_path / "out"])] == ["00", "01"]


def test_noise_of_workers_stays_with_them(tmp_path, log, capfd):
    inputs = make_tables(tmp_path / "in", 3)
    step = Copy(str(log), {"01": "say much"})
    assert run(log, inputs, tmp_path / "out", step=step, workers=2).failed == ()
    assert capfd.readouterr() == ("", "")


# --- going on


def test_only_what_is_not_done_is_done(tmp_path, log):
    inputs = make_tables(tmp_path / "in", 4)
    out = tmp_path / "out"
    first = run(log, inputs, out)
    before = tree(out)
    (out / "01.parquet").unlink()
    (out / "_state" / "parts" / "02.json").write_text("{half")
    again = run(log, inputs, out)
    assert tries(log) == {"00": 1, "01": 2, "02": 2, "03": 1}
    assert (first.done_before, again.done_before) == (0, 2)
    assert tree(out) == before
    assert again.total == first.total


def test_a_changed_table_is_made_anew(tmp_path, log):
    inputs = make_tables(tmp_path / "in", 3)
    out = tmp_path / "out"
    run(log, inputs, out)
    (inputs / "01.jsonl").write_text('{"id": "new"}\n')
    assert run(log, inputs, out).total.rows_out == 41
    assert tries(log) == {"00": 1, "01": 2, "02": 1}


def test_a_folder_that_is_made_anew_is_not_read_until_that_is_done(tmp_path, log):
    inputs = make_tables(tmp_path / "in", 2)
    out = tmp_path / "out"
    run(log, inputs, out)
    (inputs / "01.jsonl").write_text('{"id": "new"}\n')
    with pytest.raises(OutputError):
        run(log, inputs, out, step=Copy(str(log), {"01": "output"}), workers=1)
    with pytest.raises(UsageError, match="was not written to its end"):
        find_parts([out])
    run(log, inputs, out)
    assert len(find_parts([out])) == 2


def test_what_was_made_of_a_table_that_is_broken_now_is_gone(tmp_path, log):
    inputs = make_tables(tmp_path / "in", 2)
    out = tmp_path / "out"
    first = run(log, inputs, out)
    whole = (inputs / "00.jsonl").read_bytes()
    status = (inputs / "00.jsonl").stat()
    (inputs / "00.jsonl").write_bytes("x".encode("utf-16"))
    assert run(log, inputs, out).failed == ("00",)
    assert not (out / "00.parquet").exists()
    (inputs / "00.jsonl").write_bytes(whole)
    os.utime(inputs / "00.jsonl", ns=(status.st_atime_ns, status.st_mtime_ns))
    again = run(log, inputs, out)
    assert (again.failed, again.total) == ((), first.total)
    assert json.loads((out / REPORT).read_text())["parts_failed"] == []


def test_other_settings_are_refused_and_named(tmp_path, log):
    inputs = make_tables(tmp_path / "in", 2)
    out = tmp_path / "out"
    run(log, inputs, out)
    step = Copy(str(log), limit=2)
    with pytest.raises(
        OutputError, match=r"out holds results of other settings \(limit was 1 and is now 2\);"
    ):
        run(log, inputs, out, step=step)
    step.name = "move"
    with pytest.raises(OutputError, match="out holds results of the step copy; choose another"):
        run(log, inputs, out, step=step)
    assert tries(log) == {"00": 1, "01": 1}
    run(log, inputs, out, step=step, on_existing="overwrite")
    assert tries(log) == {"00": 2, "01": 2}
    assert read_report(out)["step"] == "move"


def test_damaged_settings_can_be_overwritten(tmp_path, log):
    inputs = make_tables(tmp_path / "in", 1)
    out = tmp_path / "out"
    for damage in ("{", "[]"):
        run(log, inputs, out, on_existing="overwrite")
        (out / "_state" / "settings.json").write_text(damage)
        with pytest.raises(OutputError, match="is damaged; say --on-existing overwrite"):
            run(log, inputs, out)
    assert run(log, inputs, out, on_existing="overwrite").total.rows_out == 20


def test_strangers_are_refused(tmp_path, log):
    inputs = make_tables(tmp_path / "in", 2)
    out = tmp_path / "out"
    run(log, inputs, out)
    (inputs / "01.jsonl").unlink()
    with pytest.raises(OutputError, match=r"out holds 01\.parquet of tables that are not among"):
        run(log, inputs, out)
    assert run(log, inputs, out, on_existing="overwrite").total.rows_out == 20
    assert not (out / "01.parquet").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").touch()
    with pytest.raises(OutputError, match="other holds something else"):
        run(log, inputs, other, on_existing="overwrite")
    assert (other / "mine.txt").exists()


@pytest.mark.parametrize("place", ["in", "."])
def test_inputs_are_not_written_over(tmp_path, log, place):
    inputs = make_tables(tmp_path / "all" / "in", 1)
    with pytest.raises(UsageError, match="holds tables that are read; choose an --output beside"):
        run(log, inputs, tmp_path / "all" / place)


def test_a_folder_can_be_taken_first(tmp_path, log):
    inputs = make_tables(tmp_path / "in", 1)
    out = tmp_path / "out"
    run(log, inputs, out)
    step = Copy(str(log), limit=5)
    with pytest.raises(OutputError, match="other settings"):
        take_folder(step, out, StepOptions())
    take_folder(step, out, StepOptions(on_existing="overwrite"))
    (out / "_state" / "sample").touch()
    assert run(log, inputs, out, step=step).done_before == 0
    assert (out / "_state" / "sample").exists()


def test_reports(tmp_path, log):
    with pytest.raises(UsageError, match="holds no report"):
        read_report(tmp_path)
    run(log, make_tables(tmp_path / "in", 1), tmp_path / "out")
    add_to_report(tmp_path / "out", {"entries": 7})
    assert read_report(tmp_path / "out")["entries"] == 7


def test_tallies_survive_json():
    tally = Tally(rows_in=3, beside={"x": 1.5})
    tally.skip([("a.tar/x", "no JSON")] * 1002)
    again = Tally.from_json(json.loads(json.dumps(tally.to_json())))
    assert again == tally
    assert (again.rows_in, again.dropped) == (1005, {"broken row": 1002})
    assert len(again.failures) == 1001
    assert again.failures[-1].message == "and 2 more broken rows"


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"shard": "3/2"}, {"shard": "1/2", "on_existing": "overwrite"}]
)
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=r"must be|cannot be"):
        StepOptions(**options)


# --- what goes wrong with one part


@pytest.mark.parametrize("workers", [1, 2])
def test_what_only_one_part_lacks_is_listed(tmp_path, log, workers):
    inputs = make_tables(tmp_path / "in", 4)
    step = Copy(str(log), {"01": "usage", "02": "memory"})
    result = run(log, inputs, tmp_path / "out", step=step, workers=workers)
    assert result.failed == ("01", "02")
    assert result.is_complete
    told = [failure.message for failure in result.total.failures[-2:]]
    assert told == ["this part lacks the column 'text'", "there is not enough memory for it"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.parquet")) == [
        "00.parquet",
        "03.parquet",
    ]
    # It is tried again, not believed.
    step.wrong = {}
    result = run(log, inputs, tmp_path / "out", step=step, workers=workers)
    assert (result.failed, result.total.rows_out) == ((), 80)
    assert read_report(tmp_path / "out")["parts_failed"] == []


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("exit", "the process that worked on it ended with 3"),
        (
            "kill",
            "the process that worked on it was ended by SIGKILL; is there enough memory?: the memory is at its end",
        ),
    ],
)
def test_a_part_that_ends_its_process_is_tried_again_and_listed(tmp_path, log, what, told):
    inputs = make_tables(tmp_path / "in", 6)
    result = run(log, inputs, tmp_path / "out", step=Copy(str(log), {"01": what}), workers=2)
    assert result.failed == ("01",)
    assert result.total.failures[-1].message == told
    assert tries(log) == {"00": 1, "01": 2, "02": 1, "03": 1, "04": 1, "05": 1}
    assert not list((tmp_path / "out").glob("01*"))


def test_a_process_that_dies_once_is_forgiven(tmp_path, log):
    inputs = make_tables(tmp_path / "in", 4)
    step = Copy(str(log), dict.fromkeys(("00", "02"), "kill once"))
    run(log, inputs, tmp_path / "out", step=step, workers=2)
    run(log, inputs, tmp_path / "plain", workers=1)
    assert tree(tmp_path / "out") == tree(tmp_path / "plain")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("what", "kind", "told"),
    [
        ("output", OutputError, "the disk is full"),
        ("extra", UsageError, "Curating needs an optional part"),
        ("odd", AnnotaryError, "one and two"),
        ("bug", ZeroDivisionError, "a bug"),
    ],
)
def test_what_ends_the_step(tmp_path, log, workers, what, kind, told):
    inputs = make_tables(tmp_path / "in", 9)
    with pytest.raises(kind, match=told) as error:
        run(log, inputs, tmp_path / "out", step=Copy(str(log), {"01": what}), workers=workers)
    if what == "bug" and workers == 2:
        assert "_go_wrong" in error.value.__notes__[0]
    assert no_child_is_left()
    result = run(log, inputs, tmp_path / "out", workers=workers)
    assert (result.failed, result.total.rows_out) == ((), 180)


def test_a_step_that_workers_cannot_import_says_so(tmp_path, log):
    inputs = make_tables(tmp_path / "in", 2)
    step = Copy(str(log))
    step.pause = _Unfit()
    with pytest.raises(RuntimeError, match="only here"):
        run(log, inputs, tmp_path / "out", step=step, workers=2)


class _Unfit:
    """It can be sent, and not be received."""

    def __reduce__(self):
        return _fail, (os.getpid(),)


def _fail(pid: int) -> float:
    raise RuntimeError("only here")


# --- stops of all kinds

PROGRAM = """
import sys
from annotary.curation.steps import StepOptions, run_step
from annotary.curation.tables import find_parts
from tests.curation.steps_to_test import Copy
log, inputs, output, workers, pause = sys.argv[1:]
print("begun", flush=True)
try:
    run_step(Copy(log, pause=float(pause)), find_parts([inputs]), __import__("pathlib").Path(output),
             StepOptions(workers=int(workers)))
except KeyboardInterrupt:
    sys.exit(130)
"""


def start(log: Path, inputs: Path, output: Path, workers: int, pause: float = 0.02):
    environment = child_environment()
    environment["PYTHONPATH"] += os.pathsep + ROOT
    arguments = [str(log), str(inputs), str(output), str(workers), str(pause)]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    return process


def wait_for(condition, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(found)


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_random_moments(tmp_path, log, workers):
    inputs = make_tables(tmp_path / "in", 24)
    out = tmp_path / "out"
    chance = random.Random(workers)
    killed = 0
    for _ in range(3):
        before = len(list(log.iterdir()))
        process = start(log, inputs, out, workers)
        goal = min(23, before + chance.randrange(1, 7))
        wait_for(lambda: len(list(log.iterdir())) >= goal or process.poll() is not None)  # noqa: B023
        time.sleep(chance.random() * 0.02)
        family = [process_of(process.pid), *children(process)]
        process.kill()
        process.communicate(timeout=30)
        killed += process.returncode == -signal.SIGKILL
        # The workers do not outlive it for long, and what they wrote is whole.
        assert not psutil.wait_procs([one for one in family if one], timeout=10)[1]
        for path in out.glob("*.parquet"):
            assert path.read_bytes()[-4:] == b"PAR1"
    assert killed >= 2
    run(log, inputs, out, workers=workers)
    run(log, inputs, tmp_path / "plain", workers=1)
    plain = tree(tmp_path / "plain")
    found = tree(out)
    assert {name for name in found if not name.endswith(".tmp")} == set(plain)
    assert all(found[name] == data for name, data in plain.items())


def process_of(pid: int):
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def children(process) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_no_process_behind(tmp_path, log, number):
    inputs = make_tables(tmp_path / "in", 6)
    process = start(log, inputs, tmp_path / "out", 2, pause=60)
    assert wait_for(lambda: len(list(log.iterdir())) == 2)
    family = children(process)
    assert len(family) == 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert (output, errors) == (b"", b"")
    assert not psutil.wait_procs(family, timeout=10)[1]
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_a_worker_that_is_killed_from_outside(tmp_path, log):
    inputs = make_tables(tmp_path / "in", 4)
    step = Copy(str(log), {"01": "wait to be killed"})

    def kill() -> None:
        assert wait_for(lambda: (log / "01").exists() and (log / "01").read_text().endswith("\n"))
        os.kill(int((log / "01").read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = run(log, inputs, tmp_path / "out", step=step, workers=2)
    killer.join()
    assert (result.failed, result.total.rows_out) == ((), 80)
    assert tries(log)["01"] == 2


# --- several machines, several processes


def test_shares_complete_each_other(tmp_path, log):
    inputs = make_tables(tmp_path / "in", 12)
    (inputs / "bad.parquet").write_text("no table")
    run(log, inputs, tmp_path / "plain")
    for path in log.iterdir():
        path.unlink()
    out = tmp_path / "out"
    results = [run(log, inputs, out, shard=f"{number}/3") for number in (1, 2, 3)]
    assert set(tries(log).values()) == {1}
    assert [result.is_complete for result in results] == [False, False, True]
    assert results[-1].failed == ("bad",)
    assert tree(out) == tree(tmp_path / "plain")


def test_what_is_not_finished_is_no_input(tmp_path, log):
    inputs, out = make_tables(tmp_path / "in", 12), tmp_path / "out"
    result = run(log, inputs, out, shard="1/3")
    with pytest.raises(
        UsageError, match=f"out lacks {result.missing} parts: first give the command"
    ):
        find_parts([out])
    (out / REPORT).unlink()  # as where it was killed
    with pytest.raises(UsageError, match="out was not written to its end"):
        find_parts([out])
    run(log, inputs, out)
    assert len(find_parts([out])) == 12


def test_the_last_of_shares_at_once_reports_for_all(tmp_path, log):
    inputs = make_tables(tmp_path / "in", 8)
    run(log, inputs, tmp_path / "plain")
    out = tmp_path / "out"
    results: list = []
    machines = [
        threading.Thread(
            target=lambda n=number: results.append(
                run(log, inputs, out, step=Copy(str(log), pause=0.05), shard=f"{n}/3")
            )
        )
        for number in (1, 2, 3)
    ]
    for machine in machines:
        machine.start()
    for machine in machines:
        machine.join()
    assert results[-1].is_complete or any(result.is_complete for result in results)
    assert tree(out) == tree(tmp_path / "plain")


def test_two_processes_at_once_do_no_harm(tmp_path, log):
    inputs = make_tables(tmp_path / "in", 10)
    run(log, inputs, tmp_path / "plain")
    out = tmp_path / "out"
    both = [start(log, inputs, out, workers, pause=0.01) for workers in (1, 2)]
    for process in both:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, b"")
    assert tree(out) == tree(tmp_path / "plain")
