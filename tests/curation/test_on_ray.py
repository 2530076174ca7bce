"""Steps as jobs of Ray, on a cluster of this machine: the same result to the byte, also when workers are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from annotary.curation import _on_ray
from annotary.curation.steps import StepOptions, run_step
from annotary.curation.tables import find_parts
from annotary.errors import AnnotaryError, MissingExtra, UsageError
from tests.conftest import child_environment
from tests.curation.steps_to_test import Copy, make_tables, tree

pytest.importorskip("pyarrow")
pytest.importorskip("ray.data")

pytestmark = pytest.mark.xdist_group("ray")

ROOT = str(Path(__file__).parents[2])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of two processors, to which this process is connected."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv("RAY_ADDRESS", "local")
        patch.setenv("RAY_AUTH_MODE", "")
        patch.delenv("RAY_AUTH_MODE")  # Ray sets it, and it is taken away at the end
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        ray = _on_ray._imported()
        with _on_ray._quiet(ray):
            stack.enter_context(_on_ray._connected(ray, 2))
        yield ray
    assert not ray.is_initialized()


@pytest.fixture
def log(tmp_path) -> Path:
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


def run(log, inputs, output, *, step=None, on_part=None, **options):
    step = step or Copy(str(log))
    return run_step(step, find_parts([inputs]), output, StepOptions(**options), on_part=on_part)


def tries(log: Path) -> dict[str, int]:
    return {path.name: len(path.read_text().splitlines()) for path in sorted(log.iterdir())}


def wait_for(condition, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(found)


def test_a_worker_that_is_killed_makes_no_difference(cluster, tmp_path, log, capfd):
    inputs = make_tables(tmp_path / "in", 8)
    (inputs / "bad.parquet").write_text("no table")
    plain = run(log, inputs, tmp_path / "plain", workers=1)
    for path in log.iterdir():
        path.unlink()
    told: list[int] = []
    addresses: set[str] = set()

    def look(done: int, tally: object) -> None:
        told.append(done)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                addresses.update(one.raddr.ip for one in process.net_connections() if one.raddr)

    def kill() -> None:
        assert wait_for(lambda: (log / "03").exists() and (log / "03").read_text().endswith("\n"))
        os.kill(int((log / "03").read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    step = Copy(str(log), {"03": "wait to be killed"})
    result = run(log, inputs, tmp_path / "ray", step=step, executor="ray", on_part=look)
    killer.join()
    assert tree(tmp_path / "ray") == tree(tmp_path / "plain")
    assert (result.total, result.failed) == (plain.total, plain.failed)
    assert told == list(range(1, 10))
    assert tries(log)["03"] == 2
    assert str(os.getpid()) not in (log / "00").read_text()
    ours = {one.address for those in psutil.net_if_addrs().values() for one in those}
    assert {address.removeprefix("::ffff:") for address in addresses} <= ours  # none is outside
    assert capfd.readouterr() == ("", "")
    assert cluster.is_initialized()  # it is ours, and stays


def test_a_part_that_ends_every_worker_is_listed(cluster, tmp_path, log):
    inputs = make_tables(tmp_path / "in", 3)
    step = Copy(str(log), {"01": "kill", "02": "usage"})
    result = run(log, inputs, tmp_path / "out", step=step, executor="ray", workers=1)
    assert result.failed == ("01", "02")
    assert result.total.failures[-2].message.startswith("3 processes that worked on it were ended")
    assert tries(log) == {"00": 1, "01": 3, "02": 1}
    assert not list((tmp_path / "out" / "_state").glob("tries*"))
    # With workers of this machine it goes on where it was.
    result = run(log, inputs, tmp_path / "out", workers=1)
    assert (result.failed, result.done_before, result.total.rows_out) == ((), 1, 60)


@pytest.mark.parametrize(
    ("what", "kind", "told"),
    [("output", AnnotaryError, "the disk is full"), ("bug", ZeroDivisionError, "a bug")],
)
def test_what_ends_the_step(cluster, tmp_path, log, what, kind, told):
    inputs = make_tables(tmp_path / "in", 4)
    with pytest.raises(kind, match=told):
        run(log, inputs, tmp_path / "out", step=Copy(str(log), {"01": what}), executor="ray")
    result = run(log, inputs, tmp_path / "out", executor="ray")
    assert (result.failed, result.total.rows_out) == ((), 80)


PROGRAM = """
import sys
from pathlib import Path
from types import SimpleNamespace
from annotary.curation.steps import StepOptions, run_step
from annotary.curation.tables import find_parts
from tests.curation.steps_to_test import Copy
result = run_step(Copy("log"), find_parts(["in"]), Path("out"), StepOptions(workers=2, executor="ray"))
assert result.total.rows_out == 60, result
assert not sys.modules["ray"].is_initialized()
"""


def test_a_cluster_of_its_own_comes_and_goes(tmp_path, log):
    """Also with paths that start in the current folder, and where names of temporary files are long."""
    make_tables(tmp_path / "in", 3)
    place = tmp_path / ("long" * 20)
    place.mkdir()
    before = {path.name for path in Path("/tmp").glob("ray-*")}
    environment = {**child_environment(), "RAY_ADDRESS": "local", "TMPDIR": str(place)}
    environment["PYTHONPATH"] += os.pathsep + ROOT
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], env=environment, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert tries(log) == {"00": 1, "01": 1, "02": 1}
    assert {path.name for path in Path("/tmp").glob("ray-*")} <= before


def test_a_cluster_that_is_not_there(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    told = pytest.raises(UsageError, match=r"can be reached at RAY_ADDRESS '127.0.0.1:9': nobody")
    with told, _on_ray._connected(_Unreachable(), None):
        pass


class _Unreachable:
    """A Ray that finds no cluster."""

    _private = SimpleNamespace(worker=None)

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: object) -> None:
        raise ConnectionError("nobody answers")

    def shutdown(self) -> None:
        """There is nothing to end."""


def test_without_ray_the_command_is_told(tmp_path, log, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"Running on Ray needs .* 'annotary\[ray\]'"):
        run(log, make_tables(tmp_path / "in", 2), tmp_path / "out", executor="ray")
