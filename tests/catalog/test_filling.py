"""Filling a catalogue: what is done once is not done again, and nothing is lost."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotary.catalog import Catalog, Filled, fill
from annotary.errors import MissingExtra, NothingToDo, OutputError, UsageError
from annotary.records import (
    Annotation,
    Answer,
    Box,
    Caption,
    Decision,
    Item,
    Label,
    Match,
    Reason,
    Tag,
)
from annotary.sources import Reader, SourceOptions, open_sources
from annotary.tasks.embedding import Embed
from tests.conftest import child_environment, colour_of
from tests.small_encoder import DIMENSIONS, SmallEncoder

pytest.importorskip("lancedb")

ROOT = Path(__file__).parent.parent.parent


class Labelled:
    """A task that says a fixed label, or several parts, of every image; it counts them."""

    part = "labels"
    source = "fixed@1.0"
    streams = 1
    batch_size = 4

    def __init__(self, label="thing", *, decides=False):
        self.inputs = (SmallEncoder().card.preprocess,)
        self.label = label
        self.images = 0
        self._decides = decides

    def annotate(self, pictures, *batches):
        self.images += len(pictures)
        found = {"labels": (Label(self.label, 0.75), Label("naïve — 😀", 0.25))}
        if self._decides:
            found["decision"] = Decision("review", (Reason(self.label, 0.75, 0.5, "review"),))
        return [found] * len(pictures)


def filled(path, arguments, tasks, **options) -> Filled:
    """Fill once; the counts."""
    arguments = [str(argument) for argument in arguments]
    settings = options.pop("settings", {"embedding": {"weights": "1"}})
    with (
        Reader(SourceOptions(timeout=2, retries=0), backoff=0.01) as reader,
        fill(
            path,
            open_sources(arguments, SourceOptions()),
            tasks,
            settings,
            reader,
            roots=arguments,
            **options,
        ) as filling,
    ):
        for _ in filling:
            pass
    return filling.outcome


def repaint(path: Path, seed: int) -> None:
    Image.new("RGB", (24, 18), colour_of(seed)).save(path)


@pytest.fixture
def encoder():
    return SmallEncoder()


def test_a_second_run_embeds_nothing(tmp_path, photos, encoder):
    folder, path = photos(9), tmp_path / "c"
    assert filled(path, [folder], [Embed(encoder)]) == Filled(new=9)
    assert encoder.images == 9
    assert filled(path, [folder], [Embed(encoder)]) == Filled(unchanged=9)
    assert encoder.images == 9
    catalog = Catalog.open(path)
    assert (len(catalog), catalog.dimensions, catalog.model) == (9, DIMENSIONS, "small@1.0")


def test_rows_hold_what_is_known_of_files(tmp_path, photos, encoder):
    folder = photos(1)
    Image.effect_mandelbrot((64, 48), (-3, -2.5, 2, 2.5), 100).save(folder / "00000.png")
    filled(tmp_path / "c", [folder], [Embed(encoder)])
    (row,) = (
        Catalog.open(tmp_path / "c").fetch([0], Catalog.open(tmp_path / "c").columns).to_pylist()
    )
    file = folder / "00000.png"
    assert row["image"] == row["path"] == str(file)
    assert (row["bytes"], row["modified_ns"]) == (file.stat().st_size, file.stat().st_mtime_ns)
    assert row["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (row["width"], row["height"]) == (64, 48)
    assert 0 <= row["phash"] < 2**64
    assert json.loads(row["sources"]) == {"embedding": "small@1.0"}
    assert row["deleted"] is None
    assert row["added"] == row["changed"]
    assert np.linalg.norm(row["embedding"]) == pytest.approx(1, abs=1e-6)


def test_only_what_changed_is_embedded_again(tmp_path, photos, encoder):
    folder, path = photos(8), tmp_path / "c"
    filled(path, [folder], [Embed(encoder)])
    repaint(folder / "00002.png", 100)
    os.utime(folder / "00003.png")  # touched, but the same
    assert filled(path, [folder], [Embed(encoder)]) == Filled(changed=1, unchanged=7)
    assert encoder.images == 9
    assert filled(path, [folder], [Embed(encoder)]) == Filled(unchanged=8)
    row = Catalog.open(path).fetch([2], ["sha256", "added", "changed"]).to_pylist()[0]
    assert row["changed"] > row["added"]


def test_files_that_moved_keep_their_rows(tmp_path, photos, encoder):
    folder, path = photos(6), tmp_path / "c"
    filled(path, [folder], [Embed(encoder)])
    (folder / "inner").mkdir()
    (folder / "00004.png").rename(folder / "inner" / "x.png")
    (folder / "00005.png").rename(tmp_path / "elsewhere.png")
    assert filled(path, [folder], [Embed(encoder)]) == Filled(moved=1, gone=1, unchanged=4)
    assert filled(path, [tmp_path / "elsewhere.png"], [Embed(encoder)]) == Filled(moved=1)
    assert encoder.images == 6
    rows = Catalog.open(path).fetch([4, 5], ["path", "image"]).to_pylist()
    assert [row["path"] for row in rows] == [
        str(folder / "inner" / "x.png"),
        str(tmp_path / "elsewhere.png"),
    ]
    assert len(Catalog.open(path)) == 6


def test_a_folder_that_was_renamed_is_not_embedded_again(tmp_path, photos, encoder, monkeypatch):
    from annotary.catalog import _deciding

    monkeypatch.setattr(_deciding, "_ASKED_AT_MOST", 10)
    folder, path = photos(30), tmp_path / "c"
    filled(path, [folder], [Embed(encoder)])
    folder.rename(tmp_path / "renamed")
    assert filled(path, [tmp_path / "renamed"], [Embed(encoder)]) == Filled(moved=30)
    assert filled(path, [tmp_path / "renamed"], [Embed(encoder)]) == Filled(unchanged=30)
    assert encoder.images == 30


def test_copies_are_rows_of_their_own_but_not_embedded(tmp_path, photos, encoder):
    folder, path = photos(3), tmp_path / "c"
    filled(path, [folder], [Embed(encoder)])
    shutil.copy(folder / "00001.png", folder / "copy.png")
    shutil.copy(folder / "00001.png", folder / "00002.png")  # known content in a known place
    assert filled(path, [folder], [Embed(encoder)]) == Filled(new=1, changed=1, unchanged=2)
    assert encoder.images == 3
    catalog = Catalog.open(path)
    rows = catalog.fetch([1, 2, 3], ["embedding", "sha256", "path"]).to_pylist()
    assert len({row["sha256"] for row in rows}) == 1
    assert len({row["path"] for row in rows}) == 3
    assert rows[0]["embedding"] == rows[1]["embedding"] == rows[2]["embedding"]


def test_two_files_that_change_places(tmp_path, photos, encoder):
    folder, path = photos(2), tmp_path / "c"
    filled(path, [folder], [Embed(encoder)])
    before = Catalog.open(path).fetch([0, 1], ["sha256"])["sha256"].to_pylist()
    (folder / "00000.png").rename(tmp_path / "x")
    (folder / "00001.png").rename(folder / "00000.png")
    (tmp_path / "x").rename(folder / "00001.png")
    for number in (0, 1):
        os.utime(folder / f"{number:05}.png")
    assert filled(path, [folder], [Embed(encoder)]).changed == 2
    rows = Catalog.open(path).fetch([0, 1], ["sha256", "path"]).to_pylist()
    assert [row["sha256"] for row in rows] == before[::-1]
    for row in rows:
        digest = hashlib.sha256(Path(row["path"]).read_bytes()).hexdigest()
        assert row["sha256"] == digest


def test_what_is_gone_is_marked_and_comes_back(tmp_path, photos, encoder):
    folder, path = photos(5), tmp_path / "c"
    other = photos(2, "other")
    filled(path, [folder, other], [Embed(encoder)])
    shutil.move(folder / "00001.png", tmp_path / "kept.png")
    shutil.rmtree(other)
    assert filled(path, [folder], [Embed(encoder)]) == Filled(gone=1, unchanged=4)
    catalog = Catalog.open(path)
    assert len(catalog) == 6  # nobody asked for `other`
    assert catalog.count(with_deleted=True) == 7
    assert 1 not in {one for batch in catalog.rows(["id"]) for one in batch["id"].to_pylist()}
    shutil.move(tmp_path / "kept.png", folder / "00001.png")
    assert filled(path, [folder], [Embed(encoder)]) == Filled(back=1, unchanged=4)
    assert encoder.images == 7
    assert len(Catalog.open(path)) == 7


def test_a_folder_that_is_empty_now(tmp_path, photos, encoder):
    folder, path = photos(3), tmp_path / "c"
    filled(path, [folder], [Embed(encoder)])
    for file in folder.iterdir():
        file.unlink()
    assert filled(path, [folder], [Embed(encoder)]) == Filled(gone=3)
    assert len(Catalog.open(path)) == 0
    with pytest.raises(NothingToDo):
        filled(tmp_path / "new", [folder], [Embed(encoder)])


def test_a_file_that_is_left_out_is_not_gone(tmp_path, photos, encoder):
    folder, path = photos(3), tmp_path / "c"
    filled(path, [folder], [Embed(encoder)])
    assert filled(path, [folder / "00000.png"], [Embed(encoder)]) == Filled(unchanged=1)
    assert len(Catalog.open(path)) == 3


def test_failures_are_listed_and_tried_again(tmp_path, photos, encoder):
    folder, path = photos(2), tmp_path / "c"
    (folder / "broken.jpg").write_bytes(b"no picture")
    assert filled(path, [folder], [Embed(encoder)]) == Filled(new=2, failed=1)
    (line,) = (path / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["error"] == "UnreadableImage"
    assert filled(path, [folder], [Embed(encoder)]) == Filled(unchanged=2, failed=1)
    assert len((path / "failures.jsonl").read_text().splitlines()) == 1
    repaint(folder / "broken.jpg", 50)
    assert filled(path, [folder], [Embed(encoder)]) == Filled(new=1, unchanged=2)
    assert not (path / "failures.jsonl").exists()


def test_an_image_that_becomes_unreadable_is_gone(tmp_path, photos, encoder):
    folder, path = photos(2), tmp_path / "c"
    filled(path, [folder], [Embed(encoder)])
    good = (folder / "00000.png").read_bytes()
    (folder / "00000.png").write_bytes(b"damaged")
    assert filled(path, [folder], [Embed(encoder)]) == Filled(unchanged=1, failed=1)
    assert len(Catalog.open(path)) == 1
    (folder / "00000.png").write_bytes(good)
    assert filled(path, [folder], [Embed(encoder)]) == Filled(back=1, unchanged=1)
    assert encoder.images == 2


def test_members_of_archives_are_known_by_name_and_content(tmp_path, encoder):
    def tar(colours):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for name, seed in colours.items():
                data = io.BytesIO()
                Image.new("RGB", (20, 20), colour_of(seed)).save(data, "png")
                member = tarfile.TarInfo(name)
                member.size = data.tell()
                data.seek(0)
                archive.addfile(member, data)

    tar({"a.png": 1, "b.png": 2})
    assert filled(tmp_path / "c", [tmp_path / "a.tar"], [Embed(encoder)]) == Filled(new=2)
    assert filled(tmp_path / "c", [tmp_path / "a.tar"], [Embed(encoder)]) == Filled(unchanged=2)
    tar({"a.png": 1, "b.png": 3})
    outcome = filled(tmp_path / "c", [tmp_path / "a.tar"], [Embed(encoder)])
    assert outcome == Filled(unchanged=1, changed=1)
    assert encoder.images == 3
    catalog = Catalog.open(tmp_path / "c")
    assert {row.path for row in catalog.rows_of([0, 1])} == {""}


def test_addresses_are_fetched_once(tmp_path, photos, encoder):
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    folder = photos(2)
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments):
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        start = f"http://127.0.0.1:{server.server_address[1]}"
        addresses = [f"{start}/00000.png", f"{start}/missing.png"]
        path = tmp_path / "c"
        assert filled(path, addresses, [Embed(encoder)]) == Filled(new=1, failed=1)
        count = len(asked)
        outcome = filled(path, addresses, [Embed(encoder)])
        assert outcome == Filled(unchanged=1, failed_before=1)
        assert len(asked) == count
        outcome = filled(path, addresses, [Embed(encoder)], retry_failed=True)
        assert outcome == Filled(unchanged=1, failed=1)
        # For another part it is fetched again, and is something else by now: its old parts are no more.
        repaint(folder / "00000.png", 99)
        assert filled(path, addresses[:1], [Labelled()]) == Filled(changed=1)
        (row,) = Catalog.open(path).rows_of([0])
        assert row.sha256 == hashlib.sha256((folder / "00000.png").read_bytes()).hexdigest()
        assert row.annotation.labels
        assert row.annotation.embedding is None
        server.shutdown()


def test_another_part_is_added_to_the_rows(tmp_path, photos, encoder):
    folder, path = photos(4), tmp_path / "c"
    filled(path, [folder], [Embed(encoder)])
    vectors = Catalog.open(path).fetch(range(4), ["embedding"])["embedding"].to_pylist()
    task = Labelled(decides=True)
    assert filled(path, [folder], [task]) == Filled(completed=4)
    assert encoder.images == 4
    assert filled(path, [folder], [task, Embed(encoder)]) == Filled(unchanged=4)
    catalog = Catalog.open(path)
    assert catalog.fetch(range(4), ["embedding"])["embedding"].to_pylist() == vectors
    record = catalog.records([2])[0]
    assert record.labels == (Label("thing", 0.75), Label("naïve — 😀", 0.25))
    assert record.decision == Decision("review", (Reason("thing", 0.75, 0.5, "review"),))
    assert dict(record.sources) == {"embedding": "small@1.0", "labels": "fixed@1.0"}
    assert catalog.count("label = 'thing' AND decision = 'review'") == 4
    # New content: what was said of the old is no more.
    repaint(folder / "00001.png", 77)
    assert filled(path, [folder], [Embed(encoder)]) == Filled(changed=1, unchanged=3)
    assert Catalog.open(path).records([1])[0].labels == ()
    assert filled(path, [folder], [task]) == Filled(completed=1, unchanged=3)


def test_new_files_without_a_part_that_others_have(tmp_path, photos, encoder):
    folder, path = photos(3), tmp_path / "c"
    filled(path, [folder], [Embed(encoder)])
    photos(5)
    assert filled(path, [folder], [Labelled()]) == Filled(new=2, completed=3)
    catalog = Catalog.open(path)
    assert catalog.count("embedding IS NULL") == 2
    assert catalog.count("label = 'thing'") == 5
    assert filled(path, [folder], [Embed(encoder)]) == Filled(completed=2, unchanged=3)
    assert encoder.images == 5
    assert Catalog.open(path).count("embedding IS NULL OR label IS NULL") == 0


def test_a_file_that_moved_and_lacks_a_part(tmp_path, photos, encoder):
    folder, path = photos(2), tmp_path / "c"
    filled(path, [folder], [Embed(encoder)])
    (folder / "00001.png").rename(folder / "z.png")
    assert filled(path, [folder], [Labelled()]) == Filled(completed=1, moved=1)
    row = Catalog.open(path).rows_of([1])[0]
    assert row.path == str(folder / "z.png")
    assert row.annotation.labels
    assert row.annotation.embedding is not None


def test_another_model_is_refused_in_a_line(tmp_path, photos, encoder):
    folder, path = photos(2), tmp_path / "c"
    filled(path, [folder], [Embed(encoder)])
    with pytest.raises(
        UsageError, match=r"model was 'small@1.0', now 'other@1.0'.*overwrite"
    ) as told:
        filled(path, [folder], [Embed(SmallEncoder(name="other"))])
    assert "\n" not in str(told.value)
    with pytest.raises(UsageError, match="the files of the model differ"):
        filled(path, [folder], [Embed(encoder)], settings={"embedding": {"weights": "2"}})
    again = SmallEncoder(name="other")
    assert filled(path, [folder], [Embed(again)], overwrite=True) == Filled(new=2)
    assert Catalog.open(path).model == "other@1.0"
    assert Catalog.open(path).count(with_deleted=True) == 2


def test_a_part_is_replaced_alone(tmp_path, photos, encoder):
    folder, path = photos(4), tmp_path / "c"
    first, second = Labelled(decides=True), Labelled("other")
    made = {"embedding": {"weights": "1"}, "labels": {"top": 1, "policy": "p"}}
    asked = {"labels": {"top": 2}}
    assert filled(path, [folder], [Embed(encoder), first], settings=made) == Filled(new=4)
    (folder / "00003.png").unlink()
    filled(path, [folder], [Embed(encoder)])
    vectors = Catalog.open(path).fetch(range(4), ["embedding"])["embedding"].to_pylist()
    with pytest.raises(UsageError, match="--replace-part throws away the labels alone"):
        filled(path, [folder], [second], settings=asked)
    assert Catalog.open(path).count("label = 'thing'", with_deleted=True) == 4
    # One image alone: the others have no labels now, rather than some of other settings.
    one = [folder / "00000.png"]
    again = filled(path, one, [second], settings=asked, replace_parts=True)
    assert again == Filled(completed=1)
    catalog = Catalog.open(path)
    assert catalog.count("labels IS NOT NULL OR decision IS NOT NULL", with_deleted=True) == 1
    assert catalog.count("decision IS NULL AND reasons IS NULL", with_deleted=True) == 4
    assert catalog.note.parts["labels"]["top"] == 2
    assert filled(path, [folder], [second], settings=asked) == Filled(completed=2, unchanged=1)
    catalog = Catalog.open(path)
    assert catalog.count("label = 'other'") == 3
    assert catalog.fetch(range(4), ["embedding"])["embedding"].to_pylist() == vectors
    assert dict(catalog.records([3])[0].sources) == {"embedding": "small@1.0"}
    assert encoder.images == 4
    # What has the same settings stays.
    again = filled(path, [folder], [second], settings=asked, replace_parts=True)
    assert again == Filled(unchanged=3)


def test_vectors_are_replaced_alone(tmp_path, photos, encoder, monkeypatch):
    from annotary.catalog import _filling, _nearest

    monkeypatch.setattr(_filling, "INDEX_FROM", 300)
    monkeypatch.setattr(_nearest, "LEAST_FOR_INDEX", 300)
    folder, path = photos(320), tmp_path / "c"
    settings = {"embedding": {"weights": "1"}}
    filled(path, [folder], [Embed(encoder), Labelled()], settings=settings)
    assert Catalog.open(path).has_index
    settings = {"embedding": {"weights": "2"}}
    again = filled(path, [folder], [Embed(encoder)], settings=settings, replace_parts=True)
    assert again == Filled(completed=320)
    catalog = Catalog.open(path)
    assert catalog.has_index
    assert catalog.count("embedding IS NOT NULL AND label = 'thing'") == 320
    (vector,) = next(catalog.vectors(where="id = 7"))[1]
    assert catalog.search(vector, 1)[0][1] == pytest.approx(1.0, abs=1e-5)


def test_a_kill_while_a_part_is_thrown_away(tmp_path, photos, encoder, monkeypatch):
    from annotary.catalog import _clearing

    folder, path = photos(4), tmp_path / "c"
    filled(path, [folder], [Labelled()], settings={"labels": {"top": 1}})
    monkeypatch.setattr(_clearing, "_ROWS_AT_ONCE", 1)
    replace = Catalog.replace

    def killed(self, rows):
        if self.count("label IS NULL") == 2:
            raise KeyboardInterrupt
        replace(self, rows)

    monkeypatch.setattr(Catalog, "replace", killed)
    asked = {"settings": {"labels": {"top": 2}}, "replace_parts": True}
    with pytest.raises(KeyboardInterrupt):
        filled(path, [folder], [Labelled()], **asked)
    monkeypatch.setattr(Catalog, "replace", replace)
    # The catalogue is of the old settings still, and lacks two.
    with pytest.raises(UsageError, match="top was 1, now 2"):
        filled(path, [folder], [Labelled()], settings=asked["settings"])
    assert filled(path, [folder], [Labelled("new")], **asked) == Filled(completed=4)
    assert Catalog.open(path).count("label = 'new'") == 4


def test_a_folder_that_is_no_catalogue_is_left_alone(tmp_path, photos, encoder):
    folder = photos(1)
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"holds other things, such as '00000.png'"):
            filled(folder, [folder], [Embed(encoder)], overwrite=overwrite)
        with pytest.raises(UsageError, match="is a file"):
            filled(folder / "00000.png", [folder], [Embed(encoder)], overwrite=overwrite)
    assert [file.name for file in folder.iterdir()] == ["00000.png"]


def test_names_that_are_not_utf8(tmp_path, encoder):
    folder = tmp_path / "photos"
    folder.mkdir()
    name = os.fsencode(folder) + b"/caf\xe9 \xf0\x9f\x98\x80.png"
    try:
        Image.new("RGB", (9, 9)).save(os.fsdecode(name), "png")
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    assert filled(tmp_path / "c", [folder], [Embed(encoder)]) == Filled(new=1)
    assert filled(tmp_path / "c", [folder], [Embed(encoder)]) == Filled(unchanged=1)
    (row,) = Catalog.open(tmp_path / "c").rows_of([0])
    assert os.fsencode(row.path) == name
    assert os.fsencode(row.annotation.image) == name


def test_an_image_named_twice_is_one_row(tmp_path, photos, encoder):
    folder = photos(2)
    assert filled(tmp_path / "c", [folder, folder], [Embed(encoder)]) == Filled(new=2)
    os.chdir(folder)
    outcome = filled(tmp_path / "c", ["00000.png", "./00001.png"], [Embed(encoder)])
    assert outcome == Filled(unchanged=2)


def test_every_part_of_a_record_comes_back(tmp_path):
    from annotary.catalog import Note
    from annotary.catalog._columns import row_of

    record = Annotation(
        image="a",
        width=3,
        height=4,
        tags=(Tag("dog", 0.93, "general"), Tag("1girl", 0.1)),
        labels=(Label("cat", 1 / 3),),
        captions=(Caption("a dog", None, 0.75), Caption("a cat", 0.5)),
        matches=(Match("a dog", 0.9, -0.25), Match("a cat", 0.1)),
        answers=(Answer("how many?", "two", 0.5),),
        boxes=(Box("dog", 0.88, (0.5, 1.0, 2.25, 4.0)),),
        decision=Decision("allow"),
        sources={"tags": "starter@1.0"},
    )
    catalog = Catalog.create(tmp_path / "c", Note())
    catalog.append([{"id": 7, "path": "", **row_of(record)}])
    assert Catalog.open(tmp_path / "c").records([7, 8]) == [record]


def test_lancedb_is_asked_for_in_a_line(tmp_path, photos, encoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(MissingExtra, match=r"pip install 'annotary\[catalog\]'"):
        filled(tmp_path / "c", [photos(1)], [Embed(encoder)])
    assert not (tmp_path / "c").exists()


def test_a_catalogue_with_indices_is_filled_like_any_other(tmp_path, photos, encoder, monkeypatch):
    from annotary.catalog import _filling, _nearest

    monkeypatch.setattr(_filling, "INDEX_FROM", 300)
    monkeypatch.setattr(_nearest, "LEAST_FOR_INDEX", 300)
    folder, path = photos(320), tmp_path / "c"
    assert filled(path, [folder], [Embed(encoder)]) == Filled(new=320)
    assert Catalog.open(path).has_index
    for number in range(320, 330):
        repaint(folder / f"{number:05}.png", number)
    for number in range(10):
        repaint(folder / f"{number:05}.png", 1000 + number)
        (folder / f"{number + 20:05}.png").unlink()
        (folder / f"{number + 30:05}.png").rename(folder / f"moved-{number}.png")
    outcome = filled(path, [folder], [Embed(encoder)])
    assert outcome == Filled(new=10, changed=10, moved=10, gone=10, unchanged=290)
    assert filled(path, [folder], [Embed(encoder)]) == Filled(unchanged=320)
    catalog = Catalog.open(path)
    assert len(catalog) == 320
    for number in (3, 35, 100, 325):
        ((one, vector),) = [
            (n, v)
            for ids, vs in catalog.vectors()
            for n, v in zip(ids, vs, strict=True)
            if n == number
        ]
        for is_exact in (True, False):
            found = catalog.search(vector, 1, is_exact=is_exact)
            assert found[0] == (number, pytest.approx(1.0, abs=1e-5))
        (row,) = catalog.rows_of([one])
        assert Path(row.path).is_file()
        digest = hashlib.sha256(Path(row.path).read_bytes()).hexdigest()
        assert row.sha256 == digest


# Kills and company

SCRIPT = """
import sys, time
from annotary.catalog import fill, _writing
from annotary.sources import Reader, SourceOptions, open_sources
from annotary.tasks.embedding import Embed
from tests.small_encoder import SmallEncoder

_writing.ROWS_AT_ONCE = 7
path, folder, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
encoder = SmallEncoder(batch_size=3)
with Reader(SourceOptions()) as reader, fill(
    path, open_sources([folder], SourceOptions()), [Embed(encoder)],
    {"embedding": {"weights": "1"}}, reader, roots=[folder],
) as filling:
    for number, _ in enumerate(filling):
        print(number, flush=True)
        time.sleep(seconds)
print(filling.outcome, encoder.images, flush=True)
"""


def start(path: Path, folder: Path, seconds: float = 0.0) -> subprocess.Popen[str]:
    environment = child_environment()
    environment["PYTHONPATH"] += os.pathsep + str(ROOT)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path), str(folder), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def wait_for(process: subprocess.Popen[str], number: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == str(number):
            return
    raise AssertionError(process.stderr.read() if process.stderr else "")


def test_a_kill_costs_the_last_rows_at_most(tmp_path, photos, encoder):
    folder, path = photos(60), tmp_path / "c"
    process = start(path, folder, 0.005)
    wait_for(process, 40)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    held = len(Catalog.open(path))
    assert 41 - 7 <= held < 60
    outcome = filled(path, [folder], [Embed(encoder)])
    assert outcome == Filled(new=60 - held, unchanged=held)
    assert encoder.images == 60 - held
    catalog = Catalog.open(path)
    paths = [path for batch in catalog.rows(["path"]) for path in batch["path"].to_pylist()]
    assert sorted(paths) == sorted(map(str, folder.iterdir()))


def test_ctrl_c_costs_nothing_that_was_done(tmp_path, photos, encoder):
    folder, path = photos(60), tmp_path / "c"
    process = start(path, folder, 0.005)
    wait_for(process, 40)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert len(Catalog.open(path)) >= 41


def test_a_second_process_is_refused_while_the_first_writes(tmp_path, photos, encoder):
    folder, path = photos(30), tmp_path / "c"
    # So long that the others come while it writes, however slow they are.
    first = start(path, folder, 5.0)
    wait_for(first, 0)
    second = start(path, folder)
    _, told = second.communicate()
    assert second.returncode == 1
    assert f"OutputError: another process is writing {path}; wait for it, or stop it" in told
    with pytest.raises(OutputError, match="another process is writing"):
        filled(path, [folder], [Embed(encoder)])
    assert Catalog.open(path).count() >= 0  # to read is always allowed
    first.kill()
    first.communicate()
    deadline = time.monotonic() + 10
    outcome = filled(path, [folder], [Embed(encoder)])
    assert outcome.new + outcome.unchanged == 30
    assert time.monotonic() < deadline


@pytest.mark.parametrize("moment", ["note", "table"])
def test_a_kill_while_the_catalogue_is_made(tmp_path, photos, encoder, moment, monkeypatch):
    from annotary.catalog import _table

    folder, path = photos(2), tmp_path / "c"

    class Killed(BaseException):
        pass

    def kill(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patched:
        if moment == "note":
            patched.setattr(_table.Note, "write", kill)
        else:
            patched.setattr(_table, "schema_of", kill)
        with pytest.raises(Killed):
            filled(path, [folder], [Embed(encoder)])
    with pytest.raises(UsageError, match="is no catalogue"):
        Catalog.open(path)
    assert filled(path, [folder], [Embed(encoder)]) == Filled(new=2)


def test_a_full_disk_is_told_in_a_line_and_the_next_run_goes_on(
    tmp_path, photos, encoder, monkeypatch
):
    from annotary.catalog import _writing

    folder, path = photos(20), tmp_path / "c"
    monkeypatch.setattr(_writing, "ROWS_AT_ONCE", 5)
    append, calls = Catalog.append, []

    def full(self, rows):
        calls.append(len(rows))
        if len(calls) == 3:
            from annotary.catalog._table import told_errors

            with told_errors(self.path):
                raise RuntimeError("lance error: IO error: No space left on device, /x/y.rs:1:2")
        append(self, rows)

    with monkeypatch.context() as patched:
        patched.setattr(Catalog, "append", full)
        with pytest.raises(OutputError, match=r"No space left on device$"):
            filled(path, [folder], [Embed(encoder)])
    assert len(Catalog.open(path)) >= 10
    outcome = filled(path, [folder], [Embed(encoder)])
    assert outcome.new + outcome.unchanged == 20


def test_a_source_that_fails_keeps_what_was_done(tmp_path, photos, encoder):
    folder, path = photos(5), tmp_path / "c"

    def items():
        for file in sorted(folder.iterdir()):
            yield Item.from_path(file)
        raise UsageError("the list ends in the middle")

    def run():
        with (
            Reader(SourceOptions()) as reader,
            fill(path, items(), [Embed(encoder)], {}, reader) as filling,
        ):
            return list(filling)

    with pytest.raises(UsageError, match="in the middle"):
        run()
    assert len(Catalog.open(path)) == 5
