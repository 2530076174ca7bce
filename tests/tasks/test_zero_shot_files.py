"""The files that zero-shot classification reads: calibrations and thresholds of labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from annotary.errors import UsageError
from annotary.tasks.calibration import Calibration, read_calibration
from annotary.tasks.zero_shot import read_thresholds

# Calibrations


def test_a_calibration_is_the_same_through_its_file():
    learned = Calibration(
        "small@1.0",
        multi_label=True,
        temperature=1.5,
        bias=-0.25,
        thresholds={"cat": 0.5},
        measured={"images": 10},
    )
    path = Path("calibration.json")
    path.write_text("\ufeff" + json.dumps(learned.to_json()), encoding="utf-8")
    assert read_calibration(path) == learned


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "5",
        "{}",
        '{"model": ""}',
        '{"model": 5}',
        '{"model": "a", "other": 1}',
        '{"model": "a", "temperature": 0}',
        '{"model": "a", "temperature": -1}',
        '{"model": "a", "temperature": "1"}',
        '{"model": "a", "temperature": NaN}',
        '{"model": "a", "temperature": true}',
        '{"model": "a", "temperature": 1' + "0" * 400 + "}",
        '{"model": "a", "temperature": 1' + "0" * 5000 + "}",
        '{"model": "a", "bias": Infinity}',
        '{"model": "a", "bias": null}',
        '{"model": "a", "multi_label": "yes"}',
        '{"model": "a", "thresholds": []}',
        '{"model": "a", "thresholds": {"cat": 2}}',
        '{"model": "a", "thresholds": {"cat": null}}',
        '{"model": "a", "thresholds": {"cat": NaN}}',
        '{"model": "a", "measured": 5}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_a_file_that_is_no_calibration_is_told(content: str):
    path = Path("calibration.json")
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=r"^calibration\.json is no calibration: ."):
        read_calibration(path)
    with pytest.raises(UsageError, match=r"^missing\.json: No such file"):
        read_calibration(Path("missing.json"))


# Thresholds in a file


@pytest.mark.parametrize(
    "content",
    [
        "cat,0.5\nbig red bus,1\n",
        "label,threshold\ncat,0.5\nbig red bus,1",
        "\ufefflabel, threshold\r\n\r\n cat , 0.5\r\nbig red bus, 1.0\r\n",
        '"cat","0.5"\n"big red bus",1e0\n',
    ],
)
def test_thresholds_of_a_file(content: str):
    path = Path("thresholds.csv")
    path.write_bytes(content.encode())
    assert read_thresholds(path) == {"cat": 0.5, "big red bus": 1.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat\n", "row 1 has 1 cells"),
        ("cat,0.5,dog\n", "row 1 has 3 cells"),
        ("cat,high\n", "could not convert"),
        ("cat,2\n", "must be in 0..1, but got 2"),
        ("cat,nan\n", "must be in 0..1, but got nan"),
        ("cat,0.5\ncat,0.6\n", "'cat' is there twice"),
        ("\udcff,0.5\n", "utf-8"),
    ],
)
def test_a_file_that_has_no_thresholds_is_told(content: str, message: str):
    path = Path("thresholds.csv")
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(
        UsageError, match=f"thresholds.csv: a row must be label,threshold: .*{message}"
    ):
        read_thresholds(path)


def test_a_file_of_thresholds_that_is_missing_is_told():
    with pytest.raises(UsageError, match=r"missing\.csv: No such file"):
        read_thresholds(Path("missing.csv"))
