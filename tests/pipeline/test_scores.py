"""Saved scores: whole at every moment, continued, and enough to choose tags again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.cards import Vocabulary
from annotary.errors import OutputError, UsageError
from annotary.pipeline import SavedScores, ScoreWriter
from annotary.records import Annotation, Item

VOCABULARY = Vocabulary(
    ("dog", "cat, big", 'a "b"'), ("animal", "", "x"), {"balanced": (0.5, 0.25, 1.0)}
)
SETTINGS = {"model": "told@1", "weights": "abc"}


def writer(folder: Path, overwrite: bool = False, **settings) -> ScoreWriter:
    return ScoreWriter(folder, "told@1", VOCABULARY, {**SETTINGS, **settings}, overwrite=overwrite)


def row(index: int) -> np.ndarray:
    return np.random.default_rng(index).random(3).astype(np.float16)


def fill(folder: Path, indices, close: bool = True, **settings) -> ScoreWriter:
    scores = writer(folder, **settings)
    for index in indices:
        name = f"photos/ä {index}.jpg"
        if not scores.holds(name):
            item = Item.from_path(name, f"{index}.jpg")
            scores.write(item, Annotation(name, 4, 3 + index), row(index))
    if close:
        scores.close(complete=True)
    return scores


def test_what_is_written_is_read_back(tmp_path):
    fill(tmp_path / "s", range(600))
    saved = SavedScores(tmp_path / "s")
    assert saved.vocabulary == VOCABULARY
    assert (saved.source, saved.settings) == ("told@1", SETTINGS)
    found = list(saved)
    assert len(found) == 600
    for index, (item, annotation, scores) in enumerate(found):
        assert item.image == annotation.image == f"photos/ä {index}.jpg"
        assert item.relative == f"{index}.jpg"
        assert (annotation.width, annotation.height) == (4, 3 + index)
        assert scores.dtype == np.float32
        assert (scores == row(index).astype(np.float32)).all()


def test_numpy_reads_the_table(tmp_path):
    fill(tmp_path / "s", range(5))
    table = np.load(tmp_path / "s" / "scores.npy", mmap_mode="r")
    assert table.dtype == np.float16
    assert (np.asarray(table) == [row(i) for i in range(5)]).all()


def test_an_image_is_kept_once(tmp_path):
    fill(tmp_path / "s", [1, 1, 2])
    fill(tmp_path / "s", [2, 3])
    assert [a.height - 3 for _, a, _ in SavedScores(tmp_path / "s")] == [1, 2, 3]


@given(st.integers(0, 400), st.integers(0, 400))
def test_files_that_were_cut_anywhere_are_continued(tmp_path_factory, rows_cut, names_cut):
    folder = tmp_path_factory.mktemp("scores") / "s"
    fill(folder, range(5))
    for name, cut in (("scores.npy", rows_cut), ("images.jsonl", names_cut)):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: max(0, len(data) - cut)])
    fill(folder, range(7))
    found = list(SavedScores(folder))
    assert [a.height - 3 for _, a, _ in found] == list(range(7))
    assert all((s == row(i).astype(np.float32)).all() for i, (_, _, s) in enumerate(found))
    assert len(np.load(folder / "scores.npy")) == 7


def test_scores_of_a_run_that_was_killed_are_there(tmp_path):
    killed = fill(tmp_path / "s", range(3), close=False)
    assert [a.height - 3 for _, a, _ in SavedScores(tmp_path / "s")] == [0, 1, 2]
    with pytest.raises(OutputError, match="another process is writing"):
        writer(tmp_path / "s")
    killed.close(complete=False)
    fill(tmp_path / "s", range(4))
    assert len(list(SavedScores(tmp_path / "s"))) == 4


def test_other_settings_are_refused_and_can_be_overwritten(tmp_path):
    fill(tmp_path / "s", range(3))
    with pytest.raises(
        OutputError, match=r"results of other settings .*the files of the model differ"
    ):
        writer(tmp_path / "s", weights="d")
    assert len(list(SavedScores(tmp_path / "s"))) == 3
    fill(tmp_path / "s", [7], overwrite=True, weights="d")
    assert [a.height - 3 for _, a, _ in SavedScores(tmp_path / "s")] == [7]
    assert SavedScores(tmp_path / "s").settings["weights"] == "d"


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "images.jsonl").write_text("mine\n")
    with pytest.raises(OutputError, match=r"holds something else \(images.jsonl\)"):
        writer(folder, overwrite=True)
    assert (folder / "images.jsonl").read_text() == "mine\n"
    assert [path.name for path in folder.iterdir()] == ["images.jsonl"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        writer(tmp_path / "file")


def test_what_holds_no_scores_is_told(tmp_path):
    with pytest.raises(UsageError, match="holds no saved scores; annotary tag --save-scores"):
        SavedScores(tmp_path)
    fill(tmp_path / "s", range(2))
    about = json.loads((tmp_path / "s" / "scores.json").read_text())
    (tmp_path / "s" / "scores.json").write_text(json.dumps({**about, "tags": 4}))
    with pytest.raises(UsageError, match="4 columns are not its tags"):
        SavedScores(tmp_path / "s")


def test_scores_of_other_models_are_refused_also_without_the_settings_file(tmp_path):
    fill(tmp_path / "s", range(3))
    (tmp_path / "s" / "annotary.run.json").unlink()
    with pytest.raises(OutputError, match="other models or settings"):
        writer(tmp_path / "s", weights="d")
    fill(tmp_path / "s", range(4))
    assert len(list(SavedScores(tmp_path / "s"))) == 4


def test_a_folder_that_looks_alike_is_left_alone(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    mine = {
        "scores.json": '{"mine": 1}',
        "tags.csv": "my,tags",
        "images.jsonl": "x\n",
        "scores.npy": "y",
    }
    for name, text in mine.items():
        (folder / name).write_text(text)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="holds something else"):
            writer(folder, overwrite=overwrite)
    about = {"source": "told@1", "tags": 3, "settings": SETTINGS}
    (folder / "scores.json").write_text(json.dumps(about))
    with pytest.raises(OutputError, match="holds something else"):
        writer(folder)
    left = {path.name: path.read_text() for path in folder.iterdir()}
    assert left == {**mine, "scores.json": json.dumps(about)}


def test_missing_rows_are_told(tmp_path):
    fill(tmp_path / "s", range(5))
    with (tmp_path / "s" / "scores.npy").open("r+b") as file:
        file.truncate(128 + 3 * 6)
    with pytest.raises(UsageError, match="fewer rows than images"):
        list(SavedScores(tmp_path / "s"))
