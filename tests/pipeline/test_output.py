"""The output of a run: who owns it, what is done, which failures are listed, and that nothing of a person is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from annotary.errors import OutputError
from annotary.pipeline.output import FailureList, FileOutput
from annotary.pipeline.state import RunState
from annotary.records import Annotation, Failure, Item, from_line
from annotary.sinks import SinkOptions

SETTINGS = {"model": "colours@1.0", "threshold": 0.5}


def state(output: Path, settings=SETTINGS, *, overwrite=False, is_folder=False) -> RunState:
    return RunState(output, settings, is_folder=is_folder, overwrite=overwrite)


def run(output: Path | None, images: dict[str, bool], form="jsonl", *, complete=True, **options):
    """Go through images by name; false are failures. Gives what was found done or failed before."""
    retry = options.pop("retry_failed", False)
    out = FileOutput(form, output, SinkOptions(**options), SETTINGS, retry_failed=retry)
    standings = {}
    for name, is_good in images.items():
        item = Item(name, path=Path(name), relative=Path(name).name)
        standings[name] = out.standing(item)
        if standings[name] == "new":
            failure = Failure(name, "UnreadableImage", "the file is empty")
            out.write(item, Annotation(name, 1, 1) if is_good else failure)
    out.close(complete=complete)
    return standings


def listed(path: Path = Path("failures.jsonl")) -> list[str]:
    return [from_line(line).image for line in path.read_bytes().splitlines()]


def test_a_run_is_continued_by_equal_settings_only(tmp_path):
    output = tmp_path / "out.jsonl"
    assert run(output, {"a": True, "b": False}) == {"a": "new", "b": "new"}
    assert run(output, {"a": True, "b": True, "c": True}) == {
        "a": "done",
        "b": "failed",
        "c": "new",
    }
    with pytest.raises(OutputError, match=r"threshold was 0\.5, now 0\.9; top was not said, now 3"):
        state(output, {"model": "colours@1.0", "threshold": 0.9, "top": 3})


def test_what_annotary_did_not_write_is_never_touched(tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_text("precious\n")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="was not written by annotary"):
            state(output, overwrite=overwrite)
    assert output.read_text() == "precious\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_results_without_their_settings_are_not_touched_either(tmp_path):
    output = tmp_path / "out.jsonl"
    run(output, {"a": True})
    before = output.read_bytes()
    (tmp_path / "out.jsonl.run.json").unlink()
    with pytest.raises(OutputError, match="is gone; move it away"):
        state(output, overwrite=True)
    assert output.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 50, b"[]", b'{"settings": {}}'])
def test_damaged_settings_lose_nothing_and_are_no_dead_end(tmp_path, content):
    output = tmp_path / "out.jsonl"
    run(output, {"a": True})
    (tmp_path / "out.jsonl.run.json").write_bytes(content)
    with pytest.raises(OutputError, match="move it away"):
        state(output)
    output.rename(tmp_path / "old.jsonl")
    assert run(output, {"a": True}) == {"a": "new"}


def test_settings_behind_which_longer_ones_stand_are_read(tmp_path):
    output = tmp_path / "out.jsonl"
    run(output, {"a": True})
    with (tmp_path / "out.jsonl.run.json").open("a") as file:
        file.write('"rest of something longer"}')
    assert run(output, {"a": True}) == {"a": "done"}


@pytest.mark.parametrize(
    "name", ["../photo.jpg", "", "photo.jpg", "a/failures.jsonl", "\0failures.jsonl"]
)
def test_a_forged_list_of_failures_is_not_deleted(tmp_path, name):
    output = tmp_path / "folder" / "out.jsonl"
    run(output, {"a": True})
    (tmp_path / "photo.jpg").write_text("precious")
    forged = {"settings": {**SETTINGS, "format": "jsonl"}, "failures": name, "complete": True}
    (tmp_path / "folder" / "out.jsonl.run.json").write_text(json.dumps(forged))
    with pytest.raises(OutputError, match="move it away"):
        state(output, overwrite=True)
    assert (tmp_path / "photo.jpg").read_text() == "precious"


def test_an_overwriting_run_that_was_stopped_is_continued(tmp_path):
    output = tmp_path / "out.jsonl"
    run(output, {"a": True, "b": True})
    anew = {"on_existing": "overwrite"}
    assert run(output, {"a": True}, complete=False, **anew) == {"a": "new"}
    assert run(output, {"a": True, "b": True}, **anew) == {"a": "done", "b": "new"}
    assert run(output, {"a": True, "b": True}, **anew) == {"a": "new", "b": "new"}
    assert len(output.read_text().splitlines()) == 2


def test_two_claims_of_one_output(tmp_path):
    first = state(tmp_path / "out.jsonl")
    with pytest.raises(OutputError, match="another process is writing"):
        state(tmp_path / "out.jsonl")
    first.release(complete=False)
    state(tmp_path / "out.jsonl").release(complete=True)


def test_an_output_that_is_called_failures(tmp_path):
    output = tmp_path / "failures.jsonl"
    run(output, {"a": True, "b": False})
    assert listed(output) == ["a"]
    assert listed(tmp_path / "failures.jsonl.failures.jsonl") == ["b"]


def test_outputs_in_one_folder_have_lists_of_their_own(tmp_path):
    run(tmp_path / "a.jsonl", {"x": True})
    run(tmp_path / "b.jsonl", {"x": False})
    run(tmp_path / "a.jsonl", {"y": False})
    (tmp_path / "c.jsonl.run.json").mkdir()
    run(tmp_path / "d.jsonl", {"z": False})
    assert listed(tmp_path / "failures.jsonl") == ["y"]
    assert listed(tmp_path / "b.jsonl.failures.jsonl") == ["x"]
    assert listed(tmp_path / "d.jsonl.failures.jsonl") == ["z"]


# --- failures


def test_no_list_until_an_image_fails(tmp_path):
    run(tmp_path / "out.jsonl", {"a": True})
    assert not (tmp_path / "failures.jsonl").exists()


def test_images_that_succeed_at_last_leave_the_list(tmp_path):
    output = tmp_path / "out.jsonl"
    run(output, {"a": False, "b": False, "c": False})
    retry = {"retry_failed": True}
    assert set(run(output, {"a": True, "b": False}, **retry).values()) == {"new"}
    assert listed(tmp_path / "failures.jsonl") == ["b", "c"]
    run(output, {"b": True, "c": True}, **retry)
    assert not (tmp_path / "failures.jsonl").exists()


def test_a_retry_that_is_stopped_loses_no_failure(tmp_path):
    output = tmp_path / "out.jsonl"
    run(output, {"a": False, "b": False})
    run(output, {"a": True}, complete=False, retry_failed=True)
    assert listed(tmp_path / "failures.jsonl") == ["b"]


def test_sidecars_beside_images_list_failures_in_the_current_folder(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    run(None, {"a.jpg": False, "b.jpg": False}, "txt")
    assert listed() == ["a.jpg", "b.jpg"]
    run(None, {"a.jpg": True, "b.jpg": False}, "txt")
    assert listed() == ["b.jpg"]


def test_a_file_of_a_person_that_is_called_failures_is_kept(tmp_path):
    Path("failures.jsonl").write_text("mine\n")
    with pytest.raises(OutputError, match="is no list of failures of annotary; move it away"):
        run(None, {"a.jpg": True}, "txt", retry_failed=True)
    assert Path("failures.jsonl").read_text() == "mine\n"


def test_a_list_that_a_crash_cut_off(tmp_path):
    path = tmp_path / "failures.jsonl"
    failures = FailureList(path)
    for name in ("a", "b"):
        failures.add(Failure(name, "UnreadableImage", "why"))
        failures.add(Failure(name, "UnreadableImage", "again"))
    failures.close()
    whole = path.read_bytes()
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        again = FailureList(path)
        again.add(Failure("a", "UnreadableImage", "why"))
        again.add(Failure("b", "UnreadableImage", "why"))
        again.close()
        assert path.read_bytes() == whole


def test_a_list_in_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    failures = FailureList(tmp_path / "failures.jsonl")
    failures.path = tmp_path / "file" / "failures.jsonl"
    with pytest.raises(OutputError, match="cannot write"):
        failures.add(Failure("a", "E", "m"))


# --- sidecars


def test_an_image_whose_sidecar_another_has_is_never_taken_for_done(tmp_path):
    """Also when the run is stopped between the two, and when they come in two runs."""
    folder = tmp_path / "tags"
    run(folder, {"in/a.jpg": True}, "txt", complete=False)
    again = run(folder, {"in/a.jpg": True, "in/a.png": True}, "txt")
    assert again == {"in/a.jpg": "done", "in/a.png": "new"}
    assert listed(folder / "failures.jsonl") == ["in/a.png"]
    once_more = run(folder, {"in/a.jpg": True, "in/a.png": True}, "txt")
    assert once_more == {"in/a.jpg": "done", "in/a.png": "failed"}


def test_a_list_can_be_read_while_it_is_mended(tmp_path):
    output = tmp_path / "out.jsonl"
    run(output, {"a": False})
    out = FileOutput("jsonl", output, SinkOptions(), SETTINGS, retry_failed=True)
    assert listed(tmp_path / "failures.jsonl") == ["a"]
    out.close(complete=True)
    assert (tmp_path / "failures.jsonl").exists()
