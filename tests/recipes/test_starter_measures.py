"""What the recipe measures with: descriptions in many languages, and places on a map."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]


def module(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        return importlib.import_module(f"recipes.starter.{name}")


def write_stamp(folder: Path, name: str, english: str, **changes: str) -> None:
    languages = module("languages").LANGUAGES
    own = {language: f"{english} {language}。" for language in languages} | changes
    lines = [english, *(f"{language}.utf8={text}" for language, text in own.items() if text)]
    (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")


def test_stamps_without_a_language_and_signs_are_left_out(tmp_path):
    write_stamp(tmp_path, "a", "A brown bear.")
    write_stamp(tmp_path, "b", "A brown bear.")  # again
    write_stamp(tmp_path, "c", "A crab.", ko="")
    write_stamp(tmp_path, "d", "The letter d.")
    write_stamp(tmp_path, "e", "An eel.")
    (tmp_path / "e.png").write_bytes(b"")
    stamps = module("languages").read(tmp_path)
    assert stamps.pictures == [None, tmp_path / "e.png"]
    assert stamps.texts["en"] == ["A brown bear", "An eel"]
    assert stamps.texts["ja"] == ["A brown bear. ja", "An eel. ja"]


def test_found_is_among_the_first_ten():
    cosines = np.zeros((20, 20), np.float32)
    np.fill_diagonal(cosines, 0.5)
    cosines[0, 1:11] = 0.6  # ten are nearer
    cosines[1, 2:11] = 0.6  # nine are
    assert module("languages")._found(cosines) == 0.95


def test_boxes_overlap_by_what_they_share():
    overlap = module("pointing").overlap
    assert overlap((0, 0, 1, 1), (0, 0, 1, 1)) == pytest.approx(1)
    assert overlap((0, 0, 0.5, 1), (0, 0, 1, 1)) == pytest.approx(0.5)
    assert overlap((0, 0, 0.4, 1), (0.5, 0, 1, 1)) == 0


def test_the_highest_place_and_what_is_half_as_high():
    heat = np.zeros((4, 8), np.float32)
    heat[1, 2], heat[2, 3], heat[3, 7] = 1.0, 0.6, 0.4
    point, box = module("pointing").place(heat)
    assert point == (2.5 / 8, 1.5 / 4)
    assert box == (2 / 8, 1 / 4, 4 / 8, 3 / 4)
