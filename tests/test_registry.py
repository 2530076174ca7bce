"""The folder is the registry, and plugins use the same door."""

from __future__ import annotations

import subprocess
import sys

import pytest

from annotary import registry
from annotary.errors import UnknownName
from tests.conftest import child_environment


def test_names_are_the_files():
    assert set(registry.names("sinks")) >= {"csv", "json", "jsonl", "txt"}
    assert set(registry.names("sources")) >= {"files", "folder", "lists", "stdin", "urls"}
    assert "onnx-tagger" in registry.names("models")


def test_load_imports_one_module():
    assert registry.load("sinks", "jsonl").__name__ == "annotary.sinks.jsonl"
    assert registry.load("models", "onnx-tagger").__name__ == "annotary.models.onnx_tagger"


def test_unknown_names_list_the_known():
    with pytest.raises(
        UnknownName, match=r"unknown format 'yml'; known: .*csv, .*hydrus, .*json, .*jsonl, .*txt, "
    ):
        registry.load("sinks", "yml")


PLUGIN = """
from annotary.sinks.jsonl import open as open_lines
SUFFIXES = (".lines",)
def open(output, options):
    return open_lines(output, options)
"""


@pytest.fixture
def plugin_environment(tmp_path):
    """An environment in which a plugin is installed, as its distribution's files."""

    def make(name: str) -> dict[str, str]:
        folder = tmp_path / "site"
        info = folder / "lines_plugin-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / "lines_plugin.py").write_text(PLUGIN)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lines-plugin\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[annotary.sinks]\n{name} = lines_plugin\n")
        environment = child_environment()
        return {**environment, "PYTHONPATH": f"{environment['PYTHONPATH']}:{folder}"}

    return make


def run(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_plugin_joins_the_room(plugin_environment):
    code = (
        "from pathlib import Path; from annotary import registry, sinks; "
        "print('lines' in registry.names('sinks'), sinks.format_of(Path('a.lines')))"
    )
    assert run(code, plugin_environment("lines")).stdout == "True lines\n"


def test_a_plugin_cannot_take_a_name_of_ours(plugin_environment):
    result = run(
        "from annotary import registry; registry.load('sinks', 'jsonl')",
        plugin_environment("jsonl"),
    )
    assert "wants the name 'jsonl' in sinks, which is taken" in result.stderr
