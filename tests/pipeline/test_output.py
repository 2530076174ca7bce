"""The output of a run: who owns it, what is done, which failures are listed, and that nothing of a person is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from annotary.errors import OutputError
from annotary.pipeline.output import FailureList, FileOutput
from annotary.pipeline.state import RunState
from annotary.records import Annotation, Failure, Item, from_line, to_line
from annotary.sinks import SinkOptions, open_sink

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
    for mine in ("mine\n", '{"my": 1}', '{"image": "a"}\n', "x", "[" * 100_000):
        Path("failures.jsonl").write_text(mine)
        run(None, {"a.jpg": True, "b.jpg": False}, "txt", retry_failed=True)
        assert Path("failures.jsonl").read_text() == mine
        assert listed(Path("sidecars.failures.jsonl")) == ["b.jpg"]
        Path("sidecars.failures.jsonl").write_text(mine)
        with pytest.raises(OutputError, match="is no list of failures of annotary; move it away"):
            run(None, {"a.jpg": True}, "txt")
        assert Path("sidecars.failures.jsonl").read_text() == mine
        Path("sidecars.failures.jsonl").unlink()


def test_a_persons_notes_are_not_thrown_away_with_old_results(tmp_path):
    output = tmp_path / "out.jsonl"
    run(output, {"a": True})
    notes = tmp_path / "failures.jsonl"
    notes.write_text("my own notes\n")
    run(output, {"a": False}, on_existing="overwrite")
    assert notes.read_text() == "my own notes\n"
    assert listed(tmp_path / "out.jsonl.failures.jsonl") == ["a"]


def test_the_list_of_an_output_that_was_moved_away_stays(tmp_path):
    output = tmp_path / "out.jsonl"
    run(output, {"a": False, "b": True})
    output.rename(tmp_path / "kept.jsonl")
    run(output, {"c": False})
    assert listed(tmp_path / "failures.jsonl") == ["a"]
    assert listed(tmp_path / "out.jsonl.failures.jsonl") == ["c"]


def test_overwriting_throws_old_failures_away(tmp_path):
    output = tmp_path / "out.jsonl"
    run(output, {"a": False, "b": False})
    run(output, {"a": True}, on_existing="overwrite")
    assert not (tmp_path / "failures.jsonl").exists()


def test_a_reason_that_changes_is_renewed(tmp_path):
    path = tmp_path / "failures.jsonl"
    for reason in ("404 Not Found", "truncated"):
        failures = FailureList(path, renews=True)
        failures.add(Failure("a", "UnreadableImage", reason))
        failures.close()
    assert [from_line(line).message for line in path.read_bytes().splitlines()] == ["truncated"]


def test_an_image_that_is_in_the_output_leaves_the_list(tmp_path):
    """As after a retry that was killed before it could mend the list."""
    output = tmp_path / "out.jsonl"
    run(output, {"a": True, "b": False})
    failure = Failure("a", "UnreadableImage", "before")
    with (tmp_path / "failures.jsonl").open("a") as file:
        file.write(to_line(failure) + "\n")
    run(output, {"a": True})
    assert listed(tmp_path / "failures.jsonl") == ["b"]


def test_a_last_line_without_its_end_counts(tmp_path):
    path = tmp_path / "failures.jsonl"
    path.write_text(to_line(Failure("a", "E", "edited by hand")))
    failures = FailureList(path)
    assert "a" in failures
    failures.add(Failure("b", "E", "why"))
    assert listed(path) == ["a", "b"]


def test_sidecars_and_outputs_have_lists_of_their_own(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    run(Path("out.jsonl"), {"a.jpg": True})
    run(None, {"b.jpg": False}, "txt")
    assert listed(Path("sidecars.failures.jsonl")) == ["b.jpg"]
    assert run(Path("out.jsonl"), {"b.jpg": True}) == {"b.jpg": "new"}


def test_a_folder_that_was_being_overwritten(tmp_path):
    folder = tmp_path / "tags"
    run(folder, {"a.jpg": True, "b.jpg": True}, "txt")
    anew = {"on_existing": "overwrite"}
    run(folder, {"a.jpg": True}, "txt", complete=False, **anew)
    with pytest.raises(OutputError, match="holds old results between new ones"):
        run(folder, {"a.jpg": True, "b.jpg": True}, "txt")
    run(folder, {"a.jpg": True, "b.jpg": True}, "txt", **anew)
    assert run(folder, {"a.jpg": True}, "txt") == {"a.jpg": "done"}


def test_overwriting_after_a_plain_run_that_was_stopped_starts_anew(tmp_path):
    output = tmp_path / "out.jsonl"
    run(output, {"a": True}, complete=False)
    assert run(output, {"a": True}, on_existing="overwrite") == {"a": "new"}


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    run(tmp_path / "link.jsonl", {"a": True})
    run(tmp_path / "link.jsonl", {"b": True}, on_existing="overwrite")
    assert (tmp_path / "link.jsonl").is_symlink()
    assert [
        from_line(line).image for line in (tmp_path / "real.jsonl").read_bytes().splitlines()
    ] == ["b"]


def test_an_output_that_cannot_be_opened_is_released(tmp_path):
    output = tmp_path / "out.jsonl"
    run(output, {"a": True, "b": True})
    damaged = b"damaged\n" + output.read_bytes()
    output.write_bytes(damaged)
    for _ in range(2):
        with pytest.raises(OutputError, match="line 1 is no record"):
            run(output, {"a": True})
    assert output.read_bytes() == damaged


class Broken:
    """A sink that cannot be ended."""

    def holds(self, item) -> bool:
        return False

    def close(self, *, complete: bool) -> None:
        raise OutputError("the disk is full")


@pytest.mark.parametrize("complete", [True, False])
def test_an_end_that_cannot_be_written(tmp_path, complete):
    output = tmp_path / "out.jsonl"
    out = FileOutput("jsonl", output, SinkOptions(), SETTINGS, retry_failed=False)
    out._sink = Broken()
    if complete:
        with pytest.raises(OutputError, match="the disk is full"):
            out.close(complete=True)
    else:
        out.close(complete=False)  # another error is on its way, and is the one to tell
    assert json.loads((tmp_path / "out.jsonl.run.json").read_text())["complete"] is False
    state(output, {**SETTINGS, "format": "jsonl"}).release(complete=False)


def test_half_a_write_is_taken_back(tmp_path, monkeypatch):
    """A disk that is full in the middle of a record."""
    output = tmp_path / "out.jsonl"
    sink = open_sink("jsonl", output, SinkOptions())
    sink.write(Item("a", path=Path("a")), Annotation("a", 1, 1))
    whole = output.read_bytes()
    real = os.write

    def half(descriptor, data):
        if len(data) > 10:
            return real(descriptor, bytes(data)[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OutputError, match="No space left"):
        sink.write(Item("b", path=Path("b")), Annotation("b" * 500, 1, 1))
    monkeypatch.undo()
    assert output.read_bytes() == whole
    sink.close(complete=True)


@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_a_long_tail_is_cut_off_whole(tmp_path, form):
    output = tmp_path / f"out.{form}"
    run(output, {"a": True, "b" * 5000: True}, form)
    output.write_bytes(output.read_bytes()[:2000])
    run(output, {"a": True}, form)
    assert b"bbb" not in output.read_bytes()


def test_a_list_that_a_crash_cut_off(tmp_path):
    path = tmp_path / "failures.jsonl"
    failures = FailureList(path)
    assert not path.exists()
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
        assert path.read_bytes().rstrip(b"\n") == whole.rstrip(b"\n")


def test_a_list_is_not_read_again_for_every_failure(tmp_path, monkeypatch):
    path = tmp_path / "failures.jsonl"
    path.write_text(to_line(Failure("a", "E", "m")) + "\n")
    failures = FailureList(path)

    def refuse(_: Path) -> bytes:
        raise AssertionError("the whole list is read")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        for name in ("b", "c"):
            failures.add(Failure(name, "E", "m"))
    failures.close()
    assert listed(path) == ["a", "b", "c"]


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


@pytest.mark.parametrize("on_existing", ["skip", "append", "overwrite"])
def test_a_list_that_is_read_is_no_sidecar(on_existing):
    Path("list.jpg").touch()
    Path("list.txt").write_text("list.jpg\n")
    options = SinkOptions(on_existing=on_existing)
    out = FileOutput("txt", None, options, {}, retry_failed=False, inputs=["list.txt"])
    item = Item.from_path("list.jpg")
    assert out.standing(item) == "new"
    written = out.write(item, Annotation("list.jpg", 1, 1))
    out.close(complete=True)
    assert isinstance(written, Failure)
    assert written.error == "SidecarError"
    assert Path("list.txt").read_text() == "list.jpg\n"
    assert listed() == ["list.jpg"]
