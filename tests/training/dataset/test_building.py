"""A dataset from end to end: what is in it, why the rest is not, and the same whatever happens on the way."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotary.cli import main
from annotary.errors import NothingToDo, OutputError, UsageError
from annotary.training.dataset.building import BuildOptions, Recipe, build
from annotary.training.dataset.choosing import SplitOptions
from annotary.training.dataset.image_cache import CacheOptions
from annotary.training.dataset.index import TagDataset
from annotary.training.dataset.tag_lists import TagListOptions
from tests.conftest import child_environment
from tests.training.dataset.making import encoded


def picture(seed: int, side: int = 24) -> np.ndarray:
    """A picture whose hash is far from those of other seeds."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def add(folder: Path, name: str, data: bytes, tags: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    if tags is not None:
        (folder / name).with_suffix(".txt").write_text(tags)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Fifty pictures that are fine, and one of each that is not."""
    folder = tmp_path / "photos"
    for number in range(50):
        tags = ["all", f"t{number % 5}", "rare" if number == 7 else "kitty"]
        add(folder, f"{number:02d}.png", encoded(picture(number), "PNG"), ", ".join(tags))
    add(folder, "copy.png", encoded(picture(3), "PNG"), "extra, all")
    add(folder, "larger.jpg", encoded(picture(4, 96), "JPEG", quality=95), "bigger, all")
    add(folder, "clear.png", with_alpha(picture(60)), "all")
    add(folder, "cut.png", encoded(picture(61), "PNG")[:400], "all")
    add(folder, "none.png", encoded(picture(62), "PNG"), None)
    add(folder, "poor.png", encoded(picture(63), "PNG"), "banned")
    return folder


def with_alpha(pixels: np.ndarray) -> bytes:
    image = Image.fromarray(pixels).convert("RGBA")
    image.putpixel((0, 0), (0, 0, 0, 0))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def recipe(photos: Path, tmp_path: Path, **build_options: object) -> Recipe:
    rules = tmp_path / "rules.toml"
    rules.write_text(
        'aliases = { kitty = "cat" }\nimplications = { cat = ["animal"] }\nblacklist = ["bann*"]\n'
    )
    return Recipe(
        (str(photos),),
        tags=TagListOptions(rules=rules, minimum_count=2),
        split=SplitOptions(validation=10, positives=2, duplicate_distance=6),
        cache=CacheOptions(cache_size=16),
        build=BuildOptions(**build_options),  # type: ignore[arg-type]
    )


def content(folder: Path) -> dict[str, str]:
    """Every file of a dataset but its state, by what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "_state" not in path.parts and path.name != "summary.html"
    }


def test_what_is_in_it_and_why_the_rest_is_not(photos, tmp_path):
    folder = tmp_path / "made"
    built = build(recipe(photos, tmp_path), folder)
    assert built.reasons == {
        "same file": 1, "same picture": 1, "transparent": 1, "unreadable": 1, "no tags": 1, "too few tags": 1,
    }  # fmt: skip
    dataset = TagDataset(folder)
    assert (len(dataset.train), len(dataset.validation)) == (40, 10)
    assert dataset.tags == ("all", "animal", "cat", "t0", "t1", "t2", "t3", "t4")
    report = json.loads((folder / "report.json").read_text())
    assert {one["tag"]: one["why"] for one in report["dropped_tags"]} == {
        "rare": "fewer than 2 images", "extra": "fewer than 2 images", "bigger": "fewer than 2 images",
        "banned": "blacklist",
    }  # fmt: skip
    assert report["renamed_tags"] == {"kitty": "cat"}
    of = {one["id"]: one.get("of") for one in report["dropped_images"]}
    assert (of["copy.png"], of["larger.jpg"]) == ("03.png", "04.png")
    ids = [*dataset.train.ids, *dataset.validation.ids]
    assert sorted(ids) == [f"{number:02d}.png" for number in range(50)]
    assert (folder / "validation_ids.txt").read_text().splitlines() == list(dataset.validation.ids)
    for split in (dataset.train, dataset.validation):
        for row, name in enumerate(split.ids):
            number = int(name[:2])
            wanted = {"all", f"t{number % 5}"} | (set() if number == 7 else {"cat", "animal"})
            (found,) = split.targets([row])
            assert {dataset.tags[place] for place in np.flatnonzero(found)} == wanted
            with Image.open(split.path(row)) as reduced:
                assert (reduced.size, reduced.format) == ((16, 16), "WEBP")
            assert split.images[row] == str(photos / name)
    lines = (folder / "tags.csv").read_text().splitlines()
    assert lines[0] == "index,tag,category,train,validation"
    assert lines[1] == "0,all,,40,10"
    assert len(list((folder / "images").rglob("*.webp"))) == 50


def test_the_number_of_workers_changes_nothing(photos, tmp_path):
    for workers in (1, 5):
        build(recipe(photos, tmp_path, workers=workers), tmp_path / str(workers))
    assert content(tmp_path / "1") == content(tmp_path / "5")


def test_a_run_that_was_killed_goes_on(photos, tmp_path):
    """Killed again and again, each time a little later, until it is done."""
    rules = tmp_path / "rules.toml"
    rules.write_text('aliases = { kitty = "cat" }\n')
    arguments = [
        *("train", "dataset", str(photos), "--rules", str(rules), "--workers", "2", "--quiet"),
        *("--cache-size", "20", "--validation", "9"),
    ]
    journal = tmp_path / "made" / "_state" / "pictures.jsonl"
    for lines in (3, 25):
        child = subprocess.Popen(
            [sys.executable, "-m", "annotary", *arguments, "--output", str(tmp_path / "made")],
            env=child_environment(),
        )
        while child.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") >= lines:
                os.kill(child.pid, signal.SIGKILL)
                break
            time.sleep(0.001)
        child.wait()
    with journal.open("ab") as file:
        file.write(b'["00112233')  # a tail that a loss of power may leave
    for output in ("made", "fresh"):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--output", str(tmp_path / output)])
        assert ended.value.code in (0, None)
    assert content(tmp_path / "made") == content(tmp_path / "fresh")


def test_pictures_are_measured_once(photos, tmp_path, monkeypatch):
    folder = tmp_path / "made"
    build(recipe(photos, tmp_path), folder)
    before = content(folder)
    from annotary.training.dataset.pictures import Measuring

    measured: list[bytes] = []
    plain = Measuring.measure_data

    def noted(self: Measuring, data: bytes) -> object:
        measured.append(data)
        return plain(self, data)

    monkeypatch.setattr(Measuring, "measure_data", noted)
    build(recipe(photos, tmp_path), folder)
    assert not measured
    assert content(folder) == before
    # A picture that went is made again, and one that changed is looked at again.
    next((folder / "images").rglob("*.webp")).unlink()
    build(recipe(photos, tmp_path), folder)
    assert len(measured) == 1
    assert content(folder) == before
    add(photos, "00.png", encoded(picture(70), "PNG"), None)
    build(recipe(photos, tmp_path), folder)
    assert len(measured) == 2
    assert content(folder) != before


def test_other_settings_need_a_word_and_use_the_pictures_again(photos, tmp_path):
    folder = tmp_path / "made"
    build(recipe(photos, tmp_path), folder)
    other = recipe(photos, tmp_path)
    changed = Recipe(other.inputs, tags=TagListOptions(minimum_count=3), cache=other.cache)
    with pytest.raises(
        OutputError, match=r"other settings \(duplicate_distance was 6 and is now 0"
    ):
        build(changed, folder)
    anew = Recipe(
        changed.inputs,
        tags=changed.tags,
        cache=changed.cache,
        build=BuildOptions(on_existing="overwrite"),
    )
    journal = folder / "_state" / "pictures.jsonl"
    before = journal.read_bytes()
    assert build(anew, folder).counts["tags"] == 7
    assert journal.read_bytes() == before
    fresh = tmp_path / "fresh"
    build(changed, fresh)
    assert {k: v for k, v in content(fresh).items() if k.startswith("images")} == {
        k: v for k, v in content(folder).items() if k.startswith("images")
    }
    smaller = Recipe(anew.inputs, cache=CacheOptions(cache="jpeg", cache_size=20), build=anew.build)
    build(smaller, folder)
    assert {path.suffix for path in (folder / "images").rglob("*.*")} == {".jpg"}


def test_images_near_to_the_validation_set_are_not_trained_on(photos, tmp_path):
    add(photos, "near.jpg", encoded(picture(5, 96), "JPEG", quality=60), "all, t0, kitty")
    ids = tmp_path / "ids.txt"
    ids.write_text("05.png\n06.png\ngone.png\n")
    plain = recipe(photos, tmp_path)
    split = SplitOptions(validation_ids=ids, validation_distance=6)
    built = build(Recipe(plain.inputs, tags=plain.tags, split=split), tmp_path / "made")
    dataset = TagDataset(tmp_path / "made")
    assert list(dataset.validation.ids) == ["05.png", "06.png"]
    assert "near.jpg" not in list(dataset.train.ids)
    assert built.reasons["near a validation image"] == 1
    assert "1 validation id is not in the dataset: gone.png" in built.notes
    report = json.loads((tmp_path / "made" / "report.json").read_text())
    near = next(one for one in report["dropped_images"] if one["id"] == "near.jpg")
    assert near["of"] == "05.png"


def test_images_of_archives_need_the_cache(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for number in range(4):
            for ending, data in (("png", encoded(picture(number), "PNG")), ("txt", b"a, b")):
                info = tarfile.TarInfo(f"{number}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    inputs = (str(tmp_path / "s.tar"),)
    split = SplitOptions(validation=1)
    with pytest.raises(UsageError, match="keep the cache on"):
        build(Recipe(inputs, cache=CacheOptions(cache="off"), split=split), tmp_path / "off")
    build(Recipe(inputs, split=split), tmp_path / "made")
    train = TagDataset(tmp_path / "made").train
    assert len(train) == 3
    assert train.path(0).suffix == ".webp"


def test_what_cannot_be_made_is_told(photos, tmp_path):
    with pytest.raises(UsageError, match="choose an --output beside it"):
        build(recipe(photos, tmp_path), photos / "dataset")
    other = tmp_path / "other"
    add(other, "mine.txt", b"x", None)
    with pytest.raises(OutputError, match="holds something else"):
        build(recipe(photos, tmp_path), other)
    many = Recipe((str(photos),), tags=TagListOptions(minimum_count=99))
    with pytest.raises(NothingToDo, match="with a minimum count of 99; left out: "):
        build(many, tmp_path / "none")
    assert not (tmp_path / "none" / "dataset.json").exists()


def test_a_validation_set_of_all_images_is_refused_and_one_of_most_is_told(photos, tmp_path):
    cache = CacheOptions(cache="off")

    def of(number: int) -> Recipe:
        split = SplitOptions(validation=number, validation_distance=0)
        return Recipe(
            (str(photos),), split=split, cache=cache, build=BuildOptions(on_existing="overwrite")
        )

    with pytest.raises(
        UsageError, match=r"500 validation images are asked for, and there are \d+ images in all"
    ):
        build(of(500), tmp_path / "made")
    assert not (tmp_path / "made" / "dataset.json").exists()
    built = build(of(40), tmp_path / "made")  # what was measured is used
    told = f"more images to measure on (40) than to learn from ({built.counts['train']})"
    assert told in built.notes


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text there")
def test_names_that_are_not_utf8_are_found_again(tmp_path):
    folder = tmp_path / "photos"
    for number in range(3):
        name = os.fsdecode(b"caf\xe9" + str(number).encode())
        add(folder, f"{name}.png", encoded(picture(number), "PNG"), "a")
    split = SplitOptions(validation=1)
    made = Recipe((str(folder),), split=split, cache=CacheOptions(cache="off"))
    build(made, tmp_path / "made")
    train = TagDataset(tmp_path / "made").train
    assert train.ids[0].startswith("caf\\udce9")
    assert [train.path(row).exists() for row in range(2)] == [True, True]


def test_ids_are_all_different_and_tags_stand_on_lines(tmp_path):
    rows = [{"file": f"{n}.png", "tags": ["a\nb", "c"]} for n in range(3)]
    for number in range(3):
        add(tmp_path, f"{number}.png", encoded(picture(number), "PNG"), None)
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, [*rows, rows[0]])))
    built = build(Recipe((str(tmp_path / "t.jsonl"),)), tmp_path / "made")
    assert TagDataset(tmp_path / "made").tags == ("a b", "c")
    assert built.reasons == {"same file": 1}
    report = json.loads((tmp_path / "made" / "report.json").read_text())
    (gone,) = report["dropped_images"]
    assert (gone["of"], gone["id"]) == ("0.png", str(tmp_path / "0.png"))


def test_the_page_is_escaped_and_needs_nothing_else(photos, tmp_path):
    add(photos, "zz.png", encoded(picture(80), "PNG"), "<script>alert(1)</script>, all, kitty")
    built = build(Recipe((str(photos),), tags=TagListOptions(minimum_tags=0)), tmp_path / "a&b")
    page = (built.folder / "summary.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "Dataset a&amp;b" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert page.count("data:image/jpeg;base64,") == 12 + min(12, built.counts["validation"])


def test_the_command_tells_counts(photos, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "dataset", str(photos), "--output", str(tmp_path / "made"), "--json"])
    assert ended.value.code in (0, None)
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["counts"]["posts"] == 56
    assert "56 images looked at in" in printed.err
    assert "1 unreadable" in printed.err
