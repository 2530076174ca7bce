"""Logs of a training run: tables that are cut where a run goes on, lines for people, and what is only had if asked."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from annotary.errors import OutputError, UsageError
from annotary.training._recipe_tables import LogsRecipe
from annotary.training.logs import (
    STEP_COLUMNS,
    VALIDATION_COLUMNS,
    Bar,
    Lines,
    Logs,
    Tables,
    open_logs,
)


def step(samples: int) -> dict[str, float | int]:
    return {**dict.fromkeys(STEP_COLUMNS, 0.5), "samples": samples, "step": samples // 8}


def validation(samples: int) -> dict[str, float | int]:
    return {**dict.fromkeys(VALIDATION_COLUMNS, 0.25), "samples": samples, "images": 1000}


def opened(folder: Path, samples: int = 0, **asked: object) -> Logs:
    recipe = LogsRecipe(**asked)  # type: ignore[arg-type]
    return open_logs(folder, recipe, settings={}, samples=samples, total=100, quiet=True)


def column(path: Path, name: str) -> list[str]:
    head, *rows = (line.split(",") for line in path.read_text(encoding="utf-8").splitlines())
    return [row[head.index(name)] for row in rows]


def test_rows_after_the_place_where_a_run_goes_on_are_cut(tmp_path):
    with opened(tmp_path) as logs:
        for samples in (8, 16, 24, 32):
            logs.step(step(samples))
        logs.validation(validation(32))
    with (tmp_path / "steps.csv").open("a", encoding="utf-8") as file:
        file.write("1,5,40,0.")  # killed while it wrote
    whole = (tmp_path / "steps.csv").read_text(encoding="utf-8")
    with opened(tmp_path, samples=24) as logs:
        assert column(tmp_path / "steps.csv", "samples") == ["8", "16", "24"]
        assert column(tmp_path / "validation.csv", "samples") == []
        logs.step(step(32))
    assert (tmp_path / "steps.csv").read_text(encoding="utf-8") == whole.removesuffix("1,5,40,0.")
    with opened(tmp_path):
        assert column(tmp_path / "steps.csv", "samples") == []


def test_a_table_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "steps.csv").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*steps\.csv"):
        Tables(tmp_path, 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_disk_that_fills_up_is_told_with_the_tables_name(tmp_path):
    tables = Tables(tmp_path, 0)
    tables._steps._file.close()
    tables._steps._file = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115
    tables._steps._writer = csv.writer(tables._steps._file)
    with pytest.raises(OutputError, match=r"cannot write .*steps\.csv: No space left"):
        tables.step(step(8))
    tables.close()


def test_lines_are_told_now_and_then_and_at_the_end(capsys):
    lines = Lines(100)
    for samples in (8, 16, 24, 100):
        lines.step({**step(samples), "loss": 3.25, "samples_per_second": 12.0, "waiting": 0.0})
    lines.validation(validation(100))
    told = capsys.readouterr().err.splitlines()
    assert told[:2] == [
        "8 of 100 samples, loss 3.25, 12.0/s",
        "100 of 100 samples, loss 3.25, 12.0/s",
    ]
    assert told[2].startswith(
        "validation after 100 samples: loss 0.25, mAP 0.2500, macro F1 0.2500"
    )
    lines.step({**step(100), "waiting": 0.5})
    assert capsys.readouterr().err.endswith("50% waiting for images\n")


def test_a_bar_shows_what_is_told_above_it(capsys):
    bar = Bar(8, 100)
    bar.step({**step(16), "loss": 3.25})
    bar.note("going on from [here]")
    bar.validation(validation(16))
    bar.close()
    told = capsys.readouterr().err
    assert "going on from [here]" in told
    assert "validation after 16 samples" in told


def test_what_is_asked_for_and_not_installed_is_told(tmp_path):
    if importlib.util.find_spec("wandb") is None:
        with pytest.raises(UsageError, match="pip install wandb"):
            opened(tmp_path, wandb="project")
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(UsageError, match="pip install tensorboard"):
            opened(tmp_path, tensorboard=True)


def test_weights_and_biases_that_cannot_be_had_are_one_line(tmp_path, monkeypatch):
    def init(**_given: object) -> None:
        raise RuntimeError("No API key configured.\nUse `wandb login`")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(UsageError, match=r"cannot be had: No API key configured\.; or say"):
        opened(tmp_path, wandb="project")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_every_number(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with opened(tmp_path, tensorboard=True) as logs:
        logs.step({**step(8), "loss": 3.5})
        logs.validation(validation(8))
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    (event,) = read.Scalars("train/loss")
    assert (event.step, event.value) == (8, 3.5)
    assert [one.value for one in read.Scalars("validation/map")] == [0.25]
