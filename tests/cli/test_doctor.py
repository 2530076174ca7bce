"""`annotary doctor` says what a run would use, as the run itself decides it."""

from __future__ import annotations

import importlib.util

import pytest
from click.testing import CliRunner

from annotary import weights
from annotary.cli import annotary
from annotary.runtime import RuntimeOptions, decide, offers, open_onnx, processor_features


def told() -> list[str]:
    result = CliRunner().invoke(annotary, ["doctor"])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_it_says_what_the_starter_runs_on():
    (line,) = (
        line for line in told() if line.startswith("networks in ONNX, int8 (starter) run on")
    )
    made = decide(RuntimeOptions(), offers("int8", has_torch=False, is_transformer=False))
    assert line.endswith(f"{made.library}, {made.device}, {made.precision}: {made.reason}")
    session = open_onnx(weights.shipped()["starter"] / "model.onnx", RuntimeOptions())
    assert session.choice.precision == made.precision
    assert session.choice.library.replace(" ", "").lower().startswith(made.library)


def test_it_says_what_the_processor_has():
    (line,) = (line for line in told() if line.startswith("processor: "))
    for feature in processor_features():
        assert feature in line


def test_every_other_way_is_named_with_its_option():
    found = offers("fp32", has_torch=False)
    others = [offer.library for offer in found if offer.precisions]
    lines = told()
    start = next(i for i, line in enumerate(lines) if line.startswith("networks in ONNX, fp32"))
    section = [lines[start]]
    for line in lines[start + 1 :]:
        if not line.startswith("  or "):
            break
        section.append(line)
    assert len(section) == len(others)
    for library in others:
        assert any(f"run on {library}" in s or f"--runtime {library}" in s for s in section)


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_what_is_missing_is_told_with_the_way_to_get_it(name, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "annotary.runtime._decision.find_spec", lambda n: None if n == name else real(n)
    )
    lines = told()
    if name == "torch":
        told_torch = (
            "networks in torch cannot run: torch is not installed: pip install 'annotary[torch]'"
        )
        assert told_torch in lines
    else:
        (line,) = (line for line in lines if line.startswith("networks in ONNX, fp32"))
        assert "run on onnxruntime, cpu, fp32" in line


def test_damaged_models_are_found(monkeypatch, tmp_path):
    import shutil

    shutil.copytree(weights.shipped()["starter"], tmp_path / "starter")
    (tmp_path / "starter" / "tags.csv").write_text("name\nx\n")
    monkeypatch.setattr(weights, "shipped", lambda: {"starter": tmp_path / "starter"})
    result = CliRunner().invoke(annotary, ["doctor"])
    assert result.exit_code != 0
    assert "is damaged" in str(result.exception)
