"""Datasets: what is in them, what stays as it was, and what is told."""

from __future__ import annotations

import csv
import http.server
import io
import json
import os
import shutil
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from annotary.datasets import Description, formats
from annotary.datasets._journal import Entry
from annotary.errors import OutputError, UnknownName, UsageError
from annotary.sources.folder import IMAGE_SUFFIXES
from tests.datasets.conftest import files_in, make_dataset, parts_of
from tests.small_encoder import COLOURS, SmallEncoder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_as_torchvision(folder: Path) -> tuple[dict[str, int], list[tuple[str, int]]]:
    """Classes and samples by the rules of `torchvision.datasets.ImageFolder` with `allow_empty=True`."""
    known = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    index = {name: i for i, name in enumerate(classes)}
    samples = [
        (str(Path(root, name)), index[label])
        for label in classes
        for root, _, names in sorted(os.walk(folder / label, followlinks=True))
        for name in sorted(names)
        if name.lower().endswith(known)
    ]
    return index, samples


def test_folders_hold_every_image_once_in_exact_shares(colours_in, tmp_path):
    photos = colours_in(red=20, green=10, blue=30)
    found = make_dataset(photos, tmp_path / "out", split="train=0.8,val=0.1,test=0.1")
    assert found["counts"] == {
        "red": {"train": 16, "val": 2, "test": 2},
        "green": {"train": 8, "val": 1, "test": 1},
        "blue": {"train": 24, "val": 3, "test": 3},
    }
    assert found["images"] == 60
    assert found["unsure"] == 0
    assert found["classes"] == ["red", "green", "blue"]
    assert found["model"] == "small@1.0"
    assert found["complete"]
    parts = parts_of(tmp_path / "out")
    assert sorted(parts) == sorted(path.name for path in photos.iterdir())
    for folder, names in files_in(tmp_path / "out").items():
        part, label = folder.split("/")
        assert len(names) == found["counts"][label][part]
        for name in names:
            assert name.startswith(label)
            assert (tmp_path / "out" / folder / name).read_bytes() == (photos / name).read_bytes()
    left = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert left == {"annotary.run.json", "dataset.json", "labels.csv", "labels.jsonl"}
    assert not (tmp_path / "out" / ".images").exists()


def test_originals_are_not_touched(colours_in, tmp_path):
    photos = colours_in(red=6, blue=6)
    for path in photos.iterdir():
        os.utime(path, ns=(1_500_000_000_000_000_001, 1_500_000_000_000_000_002))

    def state() -> dict[str, tuple[bytes, int, int]]:
        return {
            path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
            for path in sorted(photos.iterdir())
        }

    before = state()
    for placing in ("copy", "hardlink", "symlink"):
        make_dataset(photos, tmp_path / placing, placing=placing)
        assert state() == before
        shutil.rmtree(tmp_path / placing)
        assert state() == before


def test_the_same_seed_gives_the_same_split_and_another_one_another(colours_in, tmp_path):
    photos = colours_in(red=30)
    splits = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_dataset(photos, tmp_path / name, seed=seed)
        splits.append(parts_of(tmp_path / name))
    assert splits[0] == splits[1] != splits[2]


def test_added_images_move_none(colours_in, tmp_path):
    out = tmp_path / "out"
    photos = colours_in(red=20, blue=10)
    make_dataset(photos, out)
    before = parts_of(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    colours_in(red=60, green=10, blue=40, start=20)
    model = SmallEncoder()
    found = make_dataset(photos, out, model=model)
    assert model.images == 60 + 10 + 40
    assert found["labelled"].done_before == 30
    assert before.items() <= parts_of(out).items()
    assert times.items() <= {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}.items()
    assert found["images"] == 30 + 110
    rows = rows_of(out / "labels.csv")
    assert {Path(row["file"]).name: row["part"] for row in rows} == parts_of(out)
    assert all((out / row["file"]).is_file() for row in rows)
    # A label that is new gets exact shares; those that were there go on with the cuts they have.
    assert found["counts"]["green"] == {"train": 8, "val": 1, "test": 1}


def test_equal_images_are_in_the_same_part(colours_in, tmp_path):
    photos = colours_in(red=20)
    for i, path in enumerate(sorted(photos.iterdir())):
        copy = photos / "again" / f"{i}" / f"copy-{path.name}"
        copy.parent.mkdir(parents=True)
        shutil.copyfile(path, copy)
    found = make_dataset(photos, tmp_path / "out", split="train=0.5,test=0.5")
    parts = parts_of(tmp_path / "out")
    assert len(parts) == 40
    for name in list(parts):
        if not name.startswith("copy-"):
            assert parts[name] == parts[f"copy-{name}"]
    assert found["counts"]["red"] == {"train": 20, "test": 20}


def test_equal_images_with_different_labels_are_in_the_same_part(colours_in, tmp_path):
    """As with labels from a table; then the cuts of the label that came first decide for both."""
    photos = colours_in(red=12)
    for path in sorted(photos.iterdir()):
        shutil.copyfile(path, photos / f"z-{path.name}")

    class Moody(SmallEncoder):
        def embed_images(self, batch):
            vectors = super().embed_images(batch)
            self.calls.append(())
            is_later = self.images > 12  # the second time, it sees blue
            return (
                super().embed_texts(["blue"]).vectors.repeat(len(batch), 0) if is_later else vectors
            )

    make_dataset(photos, tmp_path / "out", model=Moody(batch_size=1), split="train=0.5,test=0.5")
    rows = {Path(row["original"]).name: row for row in rows_of(tmp_path / "out" / "labels.csv")}
    assert {row["label"] for row in rows.values()} == {"red", "blue"}
    for path in photos.glob("red-*"):
        assert rows[path.name]["part"] == rows[f"z-{path.name}"]["part"]


@pytest.mark.parametrize("unsure", ["keep", "leave-out"])
def test_unsure_images_are_counted_and_listed(colours_in, tmp_path, unsure):
    photos = colours_in(red=10)
    Image.new("RGB", (30, 20), (120, 118, 125)).save(photos / "grey.png")
    found = make_dataset(photos, tmp_path / "out", threshold=0.99, unsure=unsure)
    assert found["unsure"] == 1
    assert found["images"] == 10
    assert found["thresholds"] == dict.fromkeys(("red", "green", "blue"), 0.99)
    (row,) = (row for row in rows_of(tmp_path / "out" / "labels.csv") if row["part"] == "unsure")
    assert Path(row["original"]).name == "grey.png"
    assert 0.0 < float(row["score"]) < 0.99
    kept = list((tmp_path / "out").rglob("grey.png"))
    if unsure == "keep":
        assert kept == [tmp_path / "out" / row["file"]]
        assert row["file"] == f"unsure/{row['label']}/grey.png"
    else:
        assert kept == []
        assert row["file"] == ""


def test_the_best_label_that_reaches_its_own_threshold_counts(colours_in, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (20, 20), (120, 100, 30)).save(photos / "brown.png")
    labels = {
        "red": {"prompts": ["a photo of a red."], "threshold": 0.97},
        "green": {"prompts": ["a photo of a green."], "threshold": 0.01},
    }
    found = make_dataset(photos, tmp_path / "out", labels=labels, threshold=0.5)
    assert found["thresholds"] == {"red": 0.97, "green": 0.01}
    assert sum(found["counts"]["green"].values()) == 1
    line = json.loads((tmp_path / "out" / "labels.jsonl").read_text())
    assert [label["name"] for label in line["labels"]] == ["red", "green"]  # it is the second best


def test_a_label_for_none_is_a_class_like_others(colours_in, tmp_path):
    photos = colours_in(red=4, white=4)
    found = make_dataset(
        photos, tmp_path / "out", labels={"red": "red"}, none_label="something else"
    )
    assert found["classes"] == ["red", "something else"]
    assert sum(found["counts"]["red"].values()) == 4
    assert sum(found["counts"]["something else"].values()) == 4


def test_several_prompts_make_one_class(colours_in, tmp_path):
    photos = colours_in(red=5, green=5, blue=5)
    labels = {"a red wall": "warm", "something red": "warm", "blue": "cold", "green": "cold"}
    found = make_dataset(photos, tmp_path / "out", labels=labels)
    assert found["classes"] == ["warm", "cold"]
    assert sum(found["counts"]["warm"].values()) == 5
    assert sum(found["counts"]["cold"].values()) == 10
    assert found["prompts"]["warm"] == ["a red wall", "something red"]


def test_names_are_safe_and_kept_apart(colours_in, tmp_path):
    photos = colours_in("photos/one", red=2)
    colours_in("photos/two", red=2, start=30)  # other pictures...
    for path in (tmp_path / "photos" / "two").iterdir():
        path.rename(path.with_name(path.name.replace("03", "00").upper()))  # ...of equal names
    odd = "a:b*c?..png"
    Image.new("RGB", (9, 9), COLOURS["blue"]).save(tmp_path / "photos" / odd)
    labels = {"red": "../red/x", "green": "CON", "blue": "Blue.", "yellow": "blue"}
    found = make_dataset(tmp_path / "photos", tmp_path / "out", labels=labels, split="all=1")
    files = files_in(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "out"}
    (red,) = (names for folder, names in files.items() if folder.endswith("red_x"))
    assert len(red) == len({name.casefold() for name in red}) == 4
    assert "red-000.png" in red
    folders = found["folders"]
    assert "/" not in folders["../red/x"]
    assert not folders["../red/x"].startswith(".")
    assert folders["CON"].upper() != "CON"
    (blue,) = (names for folder, names in files.items() if "blue" in folder.casefold())
    assert blue == ["a_b_c_.png"]
    names = [folders.get(label, label).casefold() for label in found["classes"]]
    assert len(set(names)) == 4
    assert sorted(photos.iterdir())[0].name == "red-000.png"


def test_every_suffix_and_every_depth_is_taken_and_nothing_is_converted(colours_in, tmp_path):
    deep = colours_in("photos/a/b/c", red=1)
    for suffix in (".jpg", ".JPEG", ".webp", ".bmp", ".tif", ".gif"):
        assert suffix.lower() in IMAGE_SUFFIXES
        Image.new("RGB", (20, 10), COLOURS["red"]).save(deep / f"x{suffix}")
    make_dataset(tmp_path / "photos", tmp_path / "out", split="all=1")
    placed = {path.name: path.read_bytes() for path in (tmp_path / "out" / "all").rglob("x*")}
    assert placed == {path.name: path.read_bytes() for path in deep.glob("x*")}
    assert len(placed) == 6


def test_images_of_archives_and_addresses_are_placed(colours_in, tmp_path):
    photos = colours_in("files", red=4, blue=4)
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for path in sorted(photos.glob("red*")):
            archive.add(path, f"{path.stem}.png")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        served = 0

        def do_GET(self):
            type(self).served += 1
            data = (photos / self.path.lstrip("/").partition("?")[0]).with_suffix(".png")
            content = data.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        base = f"http://127.0.0.1:{server.server_port}"
        addresses = [f"{base}/{path.stem}?size=3" for path in sorted(photos.glob("blue*"))]
        inputs = [tmp_path / "shard.tar", *addresses]
        found = make_dataset(inputs, tmp_path / "out", split="train=0.5,test=0.5")
        again = make_dataset(inputs, tmp_path / "out", split="train=0.5,test=0.5")
    finally:
        server.shutdown()
        server.server_close()
    assert found["images"] == again["images"] == 8
    assert Quiet.served == 4  # each is fetched once, for both halves of the work and all runs
    placed = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*.png")}
    assert placed == {path.name: path.read_bytes() for path in photos.iterdir()}
    assert not (tmp_path / "out" / ".images").exists()
    originals = {row["original"] for row in rows_of(tmp_path / "out" / "labels.csv")}
    assert set(addresses) <= originals


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_tables_say_where_images_are(colours_in, tmp_path, form):
    photos = colours_in(red=10, blue=10)
    Image.new("RGB", (30, 20), (120, 118, 125)).save(photos / "grey.png")
    out = tmp_path / "deep" / "out"
    found = make_dataset(photos, out, form, threshold=0.99)
    tables = {path.stem: path for path in out.glob(f"*.{form}") if path.stem != "labels"}
    assert set(tables) == {"train", "val", "test", "unsure"}
    count = 0
    for part, path in tables.items():
        if form == "csv":
            rows = rows_of(path)
        elif form == "jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
        else:
            from pyarrow import parquet

            rows = parquet.read_table(path).to_pylist()
        for row in rows:
            assert list(row) == [
                *("image", "label", "score", "original", "width", "height", "sha256")
            ]
            image = out / row["image"]
            assert not Path(row["image"]).is_absolute()
            assert image.resolve().parent == photos.resolve()
            with Image.open(image) as opened:
                assert opened.size == (int(row["width"]), int(row["height"]))
            if part != "unsure":
                assert image.name.startswith(row["label"])
        count += len(rows)
        if part != "unsure":
            assert len(rows) == sum(given[part] for given in found["counts"].values())
    assert count == 21
    assert not list(out.rglob("*.png"))


def test_tables_are_sources_of_further_runs(colours_in, tmp_path, monkeypatch):
    from annotary.sources import SourceOptions, open_sources

    photos = colours_in(red=10)
    make_dataset(photos, tmp_path / "out", "csv")
    items = list(open_sources([str(tmp_path / "out" / "train.csv")], SourceOptions()))
    assert len(items) == 8
    assert all(item.path.is_file() for item in items)


def test_readers_of_folders_number_labels_alike_in_every_part(colours_in, tmp_path):
    photos = colours_in(red=3, green=1, blue=12)
    found = make_dataset(photos, tmp_path / "out", labels=("red", "green", "blue", "yellow"))
    indices = {}
    for part in ("train", "val", "test"):
        index, samples = read_as_torchvision(tmp_path / "out" / part)
        indices[part] = index
        assert len(samples) == sum(given[part] for given in found["counts"].values())
        for path, label in samples:
            assert list(index)[label] == Path(path).name.partition("-")[0]
    # green has one image; yellow has none, and no folder that readers would stumble over.
    assert (
        indices["train"] == indices["val"] == indices["test"] == {"blue": 0, "green": 1, "red": 2}
    )
    assert found["counts"]["red"] == {"train": 1, "val": 1, "test": 1}


def test_scikit_learn_reads_it(colours_in, tmp_path):
    sklearn = pytest.importorskip("sklearn.datasets")
    make_dataset(colours_in(red=10, green=10), tmp_path / "out")
    found = sklearn.load_files(str(tmp_path / "out" / "train"))
    assert found.target_names == ["green", "red"]
    assert len(found.data) == 16
    for path, label in zip(found.filenames, found.target, strict=True):
        assert Path(path).name.startswith(found.target_names[label])


@pytest.mark.parametrize("form", ["folders", "imagefolder"])
def test_hugging_face_datasets_reads_it(colours_in, tmp_path, monkeypatch, form):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    photos = colours_in(red=10, green=10)
    labels = {"red": "test tube", "green": "green"} if form == "imagefolder" else ("red", "green")
    Image.new("RGB", (30, 20), (120, 100, 30)).save(photos / "brown.png")  # it is in no split
    found = make_dataset(photos, tmp_path / "out", form, labels=labels, threshold=0.99)
    assert found["unsure"] == 1
    options = {"cache_dir": str(tmp_path / "cache")}
    if form == "imagefolder":
        loaded = datasets.load_dataset(str(tmp_path / "out"), **options)
    else:
        loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), **options)
    assert {name: len(part) for name, part in loaded.items()} == {
        "train": 16,
        "validation": 2,
        "test": 2,
    }
    for split, part in loaded.items():
        for row in part:
            label = row["label"]
            if form == "folders":
                label = part.features["label"].int2str(label)
            else:
                assert 0.0 < row["score"] <= 1.0
                assert (tmp_path / "out" / row["original"]).is_file()
            colour = "red" if label in ("red", "test tube") else "green"
            assert row["image"].convert("RGB").getpixel((0, 0)) == COLOURS[colour]
        name = {"validation": "val"}.get(split, split)
        assert len(part) == sum(given[name] for given in found["counts"].values())


def test_hard_links_share_the_file_and_symbolic_links_are_relative(colours_in, tmp_path):
    photos = colours_in(red=4)
    make_dataset(photos, tmp_path / "hard", placing="hardlink")
    make_dataset(photos, tmp_path / "sym", placing="symlink")
    for path in (tmp_path / "hard").rglob("*.png"):
        assert path.stat().st_ino == (photos / path.name).stat().st_ino
        assert not path.is_symlink()
    for path in (tmp_path / "sym").rglob("*.png"):
        assert path.is_symlink()
        assert not path.readlink().is_absolute()
        assert path.resolve() == (photos / path.name).resolve()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(tmp_path / "sym", moved)
    shutil.move(photos, moved)
    assert all(path.read_bytes() for path in (moved / "sym").rglob("*.png"))


def test_an_image_that_cannot_be_read_is_listed_and_tried_again_when_asked(colours_in, tmp_path):
    photos = colours_in(red=5)
    broken, whole = photos / "red-002.png", (photos / "red-002.png").read_bytes()
    broken.write_bytes(b"no image")
    found = make_dataset(photos, tmp_path / "out")
    assert found["images"] == 4
    assert found["labelled"].failed == 1
    failures = tmp_path / "out" / "failures.jsonl"
    (line,) = failures.read_text().splitlines()
    assert json.loads(line)["image"] == "../photos/red-002.png"
    broken.write_bytes(whole)
    assert make_dataset(photos, tmp_path / "out")["labelled"].failed_before == 1
    found = make_dataset(photos, tmp_path / "out", retry_failed=True)
    assert found["images"] == 5
    assert not failures.exists()


def test_an_original_that_changes_meanwhile_is_no_part_of_it(colours_in, tmp_path, monkeypatch):
    from annotary.datasets import Building

    photos = colours_in(red=5)
    changed, gone = photos / "red-001.png", photos / "red-002.png"
    whole = {path: path.read_bytes() for path in (changed, gone)}
    start = Building.__iter__

    def meddle(self):
        Image.new("RGB", (3, 3)).save(changed)
        gone.unlink()
        return start(self)

    with monkeypatch.context() as patched:
        patched.setattr(Building, "__iter__", meddle)
        found = make_dataset(photos, tmp_path / "out")
    assert found["images"] == 3
    assert found["built"].failed == 2
    told = (tmp_path / "out" / "failures.jsonl").read_text()
    assert "it has changed since it was labelled" in told
    assert "it was there to be labelled, and now: No such file" in told
    again = make_dataset(photos, tmp_path / "out")
    assert (again["images"], again["built"].failed_before) == (3, 2)
    for path, data in whole.items():
        path.write_bytes(data)
    mended = make_dataset(photos, tmp_path / "out", retry_failed=True)
    assert mended["images"] == 5
    assert not (tmp_path / "out" / "failures.jsonl").exists()


def test_corrections_by_hand_stay(colours_in, tmp_path):
    photos = colours_in(red=10)
    make_dataset(photos, tmp_path / "out")
    one, other, *_ = sorted((tmp_path / "out" / "train" / "red").iterdir())
    right = tmp_path / "out" / "train" / "wall" / one.name
    right.parent.mkdir()
    one.rename(right)
    other.unlink()
    colours_in(red=2, start=40)
    found = make_dataset(photos, tmp_path / "out")
    assert found["images"] == 12
    assert not one.exists()
    assert not other.exists()
    assert right.is_file()


def test_a_file_that_somebody_put_there_is_not_taken_for_an_image(colours_in, tmp_path):
    photos = colours_in(red=4)
    make_dataset(photos, tmp_path / "out", split="all=1")
    other = tmp_path / "out" / "all" / "red" / "red-040.png"
    other.write_bytes(b"my own")
    colours_in(red=1, start=40)
    found = make_dataset(photos, tmp_path / "out", split="all=1")
    assert other.read_bytes() == b"my own"
    assert (found["images"], found["built"].failed) == (4, 1)
    told = json.loads((tmp_path / "out" / "failures.jsonl").read_text())
    assert told["image"] == "../photos/red-040.png"
    assert "another file is where it belongs, all/red/red-040.png" in told["message"]
    other.unlink()
    assert make_dataset(photos, tmp_path / "out", split="all=1", retry_failed=True)["images"] == 5


def test_the_command_may_be_given_in_another_folder(colours_in, tmp_path, monkeypatch):
    colours_in(red=4)
    monkeypatch.chdir(tmp_path)
    make_dataset(["photos"], Path("out"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = make_dataset(["../photos"], Path("../out"))
    assert found["labelled"].done_before == 4
    assert found["images"] == 4


def test_nothing_in_a_dataset_names_this_machine(colours_in, tmp_path):
    photos = colours_in(red=4)
    (photos / "red-001.png").write_bytes(b"")
    for form in formats("classify"):
        out = tmp_path / form
        make_dataset(photos, out, form)
        for path in out.rglob("*"):
            if path.suffix in (".json", ".jsonl", ".csv", ".md"):
                assert str(tmp_path) not in path.read_text(), path


def test_names_that_are_no_text_do_no_harm(colours_in, tmp_path):
    photos = colours_in(red=3)
    data = (photos / "red-000.png").read_bytes()
    try:
        Path(os.fsdecode(os.fsencode(photos) + b"/caf\xe9.png")).write_bytes(data)
    except OSError:
        pytest.skip("this file system takes names that are valid UTF-8 alone")
    (photos / "ein, 'Bild' \"hier\".png").write_bytes(data)
    for form in formats("classify"):
        found = make_dataset(photos, tmp_path / form, form)
        again = make_dataset(photos, tmp_path / form, form)
        assert found["images"] == again["images"] == 5
        assert again["labelled"].done_before == 5
        for path in (tmp_path / form).rglob("*"):
            path.name.encode()


def test_settings_that_change_are_refused(colours_in, tmp_path):
    photos = colours_in(red=3)
    make_dataset(photos, tmp_path / "out")
    before = parts_of(tmp_path / "out")
    for change in ({"seed": 1}, {"threshold": 0.5}, {"labels": ("red",)}, {"placing": "symlink"}):
        with pytest.raises(OutputError, match=r"other settings.*choose another --output$"):
            make_dataset(photos, tmp_path / "out", **change)
    with pytest.raises(OutputError, match="format was 'folders', now 'csv'"):
        make_dataset(photos, tmp_path / "out", "csv")
    assert parts_of(tmp_path / "out") == before


def test_places_that_cannot_be_are_refused(colours_in, tmp_path):
    photos = colours_in(red=3)
    with pytest.raises(UsageError, match=r"is in .*photos, whose images are read"):
        make_dataset(photos, photos / "labelled")
    with pytest.raises(UsageError, match=r"is in .*, which is written"):
        make_dataset(photos, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not empty and is no dataset of annotary"):
        make_dataset(photos, other)
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
    with pytest.raises(OutputError, match="is a file"):
        make_dataset(photos, other / "thesis.txt")
    with pytest.raises(UnknownName, match="unknown format 'yalo'; known: csv, folders"):
        make_dataset(photos, tmp_path / "out", "yalo")
    with pytest.raises(UsageError, match="--format yolo holds boxes, and --task classify gives a"):
        make_dataset(photos, tmp_path / "out", "yolo")
    with pytest.raises(UsageError, match="--backgrounds is for --task detect"):
        make_dataset(photos, tmp_path / "out", backgrounds="leave-out")
    with pytest.raises(UsageError, match="--placing is for formats with images"):
        make_dataset(photos, tmp_path / "out", "csv", placing="symlink")
    assert not (tmp_path / "out").exists()
    assert len(list(photos.iterdir())) == 3


def test_an_image_of_no_format_keeps_its_bytes(tmp_path, colours_in):
    """A PNG that calls itself something else is taken as it is."""
    photos = colours_in(red=2)
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), COLOURS["red"]).save(picture, "PNG")
    (photos / "really-a-png.jpg").write_bytes(picture.getvalue())
    make_dataset([photos, photos / "red-000.png"], tmp_path / "out", split="all=1")
    placed = tmp_path / "out" / "all" / "red"
    assert sorted(path.name for path in placed.iterdir()) == [
        *("really-a-png.jpg", "red-000.png", "red-001.png")
    ]
    assert (placed / "really-a-png.jpg").read_bytes() == picture.getvalue()


def test_a_readme_that_somebody_wrote_stays(colours_in, tmp_path):
    photos = colours_in(red=4)
    make_dataset(photos, tmp_path / "out", "imagefolder", split="train=1")
    readme = tmp_path / "out" / "README.md"
    assert readme.read_text() == (
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        '  - split: train\n    path: "train/**"\n---\n'
    )
    readme.write_text(readme.read_text() + "# My photos\n")
    colours_in(red=1, start=20)
    make_dataset(photos, tmp_path / "out", "imagefolder", split="train=1")
    assert readme.read_text().endswith("# My photos\n")
    assert len((tmp_path / "out" / "train" / "metadata.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize("form", formats("classify"))
def test_a_dataset_of_nothing_is_one(tmp_path, form):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "broken.png").write_bytes(b"")
    found = make_dataset(photos, tmp_path / "out", form)
    assert (found["images"], found["unsure"]) == (0, 0)
    assert found["counts"]["red"] == {"train": 0, "val": 0, "test": 0}
    Image.new("RGB", (9, 9), COLOURS["red"]).save(photos / "whole.png")
    assert make_dataset(photos, tmp_path / "out", form)["images"] == 1


def test_labels_of_another_dataset_are_taken_over(colours_in, tmp_path):
    photos = colours_in(red=10, blue=10)
    model = SmallEncoder()
    make_dataset(photos, tmp_path / "one", "csv", model=model)
    colours_in(red=1, start=30)
    found = make_dataset(
        *(photos, tmp_path / "deep" / "other"),
        model=model,
        labels_of=tmp_path / "one",
        threshold=0.5,
        split="train=0.5,test=0.5",
        seed=3,
    )
    assert model.images == 21  # the one that came later is the only one that is new
    assert found["labelled"].done_before == 20
    assert found["images"] == 21
    fresh = make_dataset(
        *(photos, tmp_path / "fresh"), threshold=0.5, split="train=0.5,test=0.5", seed=3
    )
    assert parts_of(tmp_path / "fresh") == parts_of(tmp_path / "deep" / "other")
    assert fresh["counts"] == found["counts"]
    for path in (tmp_path / "deep" / "other").rglob("*.png"):
        assert path.read_bytes() == (photos / path.name).read_bytes()
    again = make_dataset(
        *(photos, tmp_path / "deep" / "other"),
        threshold=0.5,
        split="train=0.5,test=0.5",
        seed=3,
    )
    assert again["labelled"].done_before == 21


def test_labels_are_taken_over_whatever_thresholds_and_split_there_were(colours_in, tmp_path):
    photos = colours_in(red=4, blue=4)
    model = SmallEncoder()
    make_dataset(photos, tmp_path / "one", model=model, threshold=0.9)
    for threshold in (0.8, None):
        place = tmp_path / f"two {threshold}"
        found = make_dataset(
            *(photos, place, "csv"),
            model=model,
            threshold=threshold,
            split="train=0.5,test=0.5",
            labels_of=tmp_path / "one",
        )
        assert found["labelled"].done_before == found["images"] + found["unsure"] == 8
    assert model.images == 8


def test_labels_of_others_than_the_inputs_are_not_taken_over(colours_in, tmp_path):
    both = [colours_in("here", red=3), colours_in("there", blue=3)]
    make_dataset(both, tmp_path / "one")
    found = make_dataset(both[:1], tmp_path / "two", labels_of=tmp_path / "one")
    assert found["images"] == found["labelled"].done_before == 3
    assert not list((tmp_path / "two").rglob("blue-*"))


def test_labels_of_other_settings_are_refused(colours_in, tmp_path):
    photos = colours_in(red=3)
    make_dataset(photos, tmp_path / "one")
    with pytest.raises(
        UsageError, match=r"was made with other labels or prompts; label without it"
    ):
        make_dataset(photos, tmp_path / "two", labels=("red", "blue"), labels_of=tmp_path / "one")
    with pytest.raises(UsageError, match=r"was made with another model; label without it"):
        make_dataset(
            photos,
            tmp_path / "two",
            model=SmallEncoder(name="other"),
            labels_of=tmp_path / "one",
        )
    for nothing in (photos, tmp_path / "missing"):
        with pytest.raises(UsageError, match="this is no dataset of annotary label"):
            make_dataset(photos, tmp_path / "two", labels_of=nothing)
    assert not (tmp_path / "two").exists()


def test_a_score_that_is_the_threshold_reaches_it():
    found = (("red", 0.5), ("blue", 0.25))
    entry = Entry("a.png", "a.png", "", is_file=True, width=1, height=1, sha256="00", labels=found)
    for thresholds, expected in (
        ({"red": 0.5}, ("red", 0.5, True)),
        ({"red": 0.51}, ("blue", 0.25, True)),
        ({"red": 0.51, "blue": 0.26}, ("red", 0.5, False)),
        ({}, ("red", 0.5, True)),
    ):
        description = Description(("red", "blue"), "m@1", thresholds=thresholds)
        assert description.choose(entry) == expected
    assert Description(("red",), "m@1").choose(replace(entry, labels=())) == ("", 0.0, False)


def test_an_output_is_where_its_links_lead(colours_in, tmp_path):
    photos = colours_in(red=3)
    (tmp_path / "link").symlink_to(photos)
    with pytest.raises(UsageError, match="whose images are read"):
        make_dataset(photos, tmp_path / "link" / "out")
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "near").symlink_to(tmp_path / "far" / "away")
    make_dataset(photos, tmp_path / "near" / "out", "csv", split="all=1")
    for row in rows_of(tmp_path / "near" / "out" / "all.csv"):
        assert (tmp_path / "far" / "away" / "out" / row["image"]).is_file()


def test_a_tail_of_the_journal_is_passed_over(colours_in, tmp_path):
    photos = colours_in(red=3)
    make_dataset(photos, tmp_path / "out")
    with (tmp_path / "out" / "labels.jsonl").open("a") as file:
        file.write('{"image": "../photos/x.png", "na')
    assert make_dataset(photos, tmp_path / "out")["images"] == 3
    colours_in(red=1, start=20)
    assert make_dataset(photos, tmp_path / "out")["images"] == 4


def test_a_file_without_a_suffix_gets_that_of_its_format(tmp_path):
    bare = tmp_path / "scan"
    Image.new("RGB", (9, 9), COLOURS["red"]).save(bare, "PNG")
    make_dataset(bare, tmp_path / "out", split="all=1")
    make_dataset(bare, tmp_path / "table", "csv", split="all=1")
    make_dataset(bare, tmp_path / "other", split="all=1", labels_of=tmp_path / "table")
    for output in ("out", "other"):
        placed = tmp_path / output / "all" / "red" / "scan.png"
        assert placed.read_bytes() == bare.read_bytes()


def test_unsure_images_that_are_left_out_are_in_no_table(colours_in, tmp_path):
    photos = colours_in(red=2)
    Image.new("RGB", (30, 20), (120, 100, 30)).save(photos / "brown.png")
    for unsure in ("keep", "leave-out"):
        out = tmp_path / unsure
        found = make_dataset(photos, out, "csv", threshold=0.99, unsure=unsure)
        assert found["unsure"] == 1
        assert (out / "unsure.csv").exists() == (unsure == "keep")
        assert "unsure" in (out / "labels.csv").read_text()
