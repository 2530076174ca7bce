"""`annotary duplicates`: files, catalogues and references; what is printed and written, and that nothing is deleted."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from annotary.cli import annotary
from annotary.cli._annotating import Loaded
from annotary.errors import AnnotaryError
from tests.conftest import child_environment
from tests.small_encoder import SmallEncoder

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command that works."""
    runner = CliRunner()
    result = runner.invoke(annotary, [str(a) for a in arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value, result.stdout, result.stderr


def complaint(*arguments: object) -> str:
    with pytest.raises(AnnotaryError) as raised:
        run(*arguments)
    return str(raised.value)


def groups(*arguments: object) -> list[list[tuple[str, bool, str | None]]]:
    """What is printed as JSON: image, whether it is kept, and how it was found; by group."""
    found: dict[int, list] = {}
    for line in run("duplicates", *arguments, "--json", "--quiet")[1].splitlines():
        row = json.loads(line)
        found.setdefault(row["group"], []).append((row["image"], row["keep"], row.get("by")))
    return list(found.values())


@pytest.fixture
def album() -> Path:
    """Three photos, and copies of two of them: smaller, recompressed, byte for byte, linked."""
    folder = Path("album")
    folder.mkdir()
    for name in ("boats", "cat", "rocket"):
        shutil.copyfile(EXAMPLES / f"{name}.jpg", folder / f"{name}.jpg")
        os.utime(folder / f"{name}.jpg", (1000, 1000))
    with Image.open(folder / "cat.jpg") as cat:
        cat.resize((cat.width // 2, cat.height // 2)).save(folder / "cat small.png")
        cat.save(folder / "cat again.jpg", quality=40)
    shutil.copyfile(folder / "boats.jpg", folder / "boats, copy.jpg")
    (folder / "link.jpg").symlink_to("boats.jpg")
    return folder


CATS = [
    ("album/cat.jpg", True, None),
    ("album/cat again.jpg", False, "phash"),
    ("album/cat small.png", False, "phash"),
]
BOATS = [("album/boats.jpg", True, None), ("album/boats, copy.jpg", False, "exact")]


def test_groups_are_printed_for_people_and_nothing_is_deleted(album):
    before = sorted(album.iterdir())
    code, out, err = run("duplicates", album)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "group 1: 2 images"
    assert lines[1].startswith("  keep  album/boats.jpg  640 x 512, 71.1 kB  oldest file")
    assert lines[1].endswith("(also album/link.jpg)")
    assert lines[2].startswith("        album/boats, copy.jpg")
    assert lines[2].endswith("the same bytes as album/boats.jpg")
    assert lines[3] == "group 2: 3 images"
    assert lines[4].endswith("largest file")
    assert "7 images compared: 2 groups; 3 images could go, " in err
    assert sorted(album.iterdir()) == before


def test_ways_of_comparing(album):
    assert groups(album) == [BOATS, CATS]
    assert groups(album, "--by", "exact") == [BOATS]
    by_look = [("album/boats, copy.jpg", False, "phash")]
    assert groups(album, "--by", "phash") == [[BOATS[0], *by_look], CATS]
    assert groups(album, "--by", "phash", "--distance", "16")[0] == [BOATS[0], *by_look]


def test_bytes_alone_are_compared_without_decoding(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for name, content in {"a": "x", "b": "x", "c": "y", "d": "longer"}.items():
        (folder / f"{name}.jpg").write_text(content)
        os.utime(folder / f"{name}.jpg", (10**9, 10**9))
    found = groups("files", "--by", "exact")
    assert found == [[("files/a.jpg", True, None), ("files/b.jpg", False, "exact")]]
    # In an archive, too, where sizes are not known beforehand.
    shutil.make_archive("files", "zip", folder)
    ((kept, other),) = groups("files.zip", "--by", "exact")
    assert kept[1:] == (True, None)
    assert other[1:] == (False, "exact")


def test_tables(album):
    assert run("duplicates", album, "--output", "found.csv", "--quiet")[0] == 0
    with open("found.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [image for image, _, _ in BOATS + CATS]
    assert [row["keep"] for row in rows] == ["yes", "no", "yes", "no", "no"]
    assert [row["group"] for row in rows] == ["1", "1", "2", "2", "2"]
    assert rows[0]["also"] == "album/link.jpg"
    assert rows[3]["by"] == "phash"
    run("duplicates", album, "--output", "found.jsonl", "--quiet")
    written = Path("found.jsonl").read_text("utf-8")
    assert written == run("duplicates", album, "--json", "--quiet")[1]
    assert not list(Path().glob(".annotary*"))


def test_a_sheet_shows_the_groups_the_kept_one_first_and_framed(album):
    code, _, err = run("duplicates", album, "--sheet", "sheet.png", "--output", "found.csv")
    assert code == 0
    assert "sheet.png" not in err
    with Image.open("sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    frame = (pixels == (0, 150, 60)).all(axis=2)
    columns = np.flatnonzero(frame.any(axis=0))
    assert 128 < columns[-1] - columns[0] < 140  # only those of the first column are framed
    edges = np.flatnonzero(np.diff(frame[:, columns[10]].astype(int)) == 1)
    assert len(edges) == 4  # the upper and the lower edge of two frames
    err = run("duplicates", album, "--sheet", "sheet.png", "--sheet-groups", "1")[2]
    assert "sheet.png shows the first 1 of 2 groups; --sheet-groups says how many" in err
    with Image.open("sheet.png") as smaller:
        assert smaller.height < len(pixels)
    err = run("duplicates", EXAMPLES / "cat.jpg", "--sheet", "other.jpg")[2]
    assert "other.jpg is not drawn, as there are no groups" in err
    assert not Path("other.jpg").exists()


def test_what_others_wrote_is_never_replaced(album, monkeypatch):
    monkeypatch.delattr("annotary.cli._grouping.Reading.results")
    shutil.copyfile(album / "cat.jpg", "mine.jpg")
    Path("mine.csv").write_text("image,cluster,name,distance\n")
    Path("found.csv.failures.jsonl").write_text('{"mine": true}\n')
    before = {path: path.read_bytes() for path in Path().rglob("*.*") if path.is_file()}
    for arguments, told in (
        (("--sheet", "mine.jpg"), "--sheet mine.jpg is there and is no contact sheet"),
        (("--sheet", "album/cat.jpg"), "album/cat.jpg is there and is no contact sheet"),
        (("--sheet", "sheet.pdf"), "--sheet sheet.pdf must end in .jpg, .jpeg, .png"),
        (("--output", "mine.csv"), "is no table of annotary duplicates; name another file"),
        (("--output", "found.csv"), "found.csv.failures.jsonl is there already and is no list"),
    ):
        assert told in complaint("duplicates", album, *arguments), arguments
    assert before == {path: path.read_bytes() for path in Path().rglob("*.*") if path.is_file()}


def test_what_cannot_be_read_is_told_and_listed(album):
    (album / "broken.jpg").write_bytes(b"no image")
    code, _, err = run("duplicates", album, "--output", "found.jsonl")
    assert code == 1
    assert "album/broken.jpg: " in err
    assert "1 failed; see found.jsonl.failures.jsonl" in err
    (failure,) = map(json.loads, Path("found.jsonl.failures.jsonl").read_text().splitlines())
    assert failure["image"] == "album/broken.jpg"


def test_against_another_folder(album):
    train = Path("train")
    train.mkdir()
    shutil.copyfile(album / "cat small.png", train / "kitten.png")
    shutil.copyfile(EXAMPLES / "coffee.jpg", train / "coffee.jpg")
    (train / "same.jpg").symlink_to("../album/rocket.jpg")
    leaked = groups("train", "--against", album)
    assert leaked == [
        [("album/rocket.jpg", True, None), ("train/same.jpg", True, "file")],
        [("album/cat small.png", True, None), ("train/kitten.png", False, "exact")],
    ]
    assert "10 images compared: 2 also in album" in run("duplicates", train, "--against", album)[2]
    assert sorted(groups("train", "--against", album, "--by", "exact")) == sorted(leaked)


def test_by_embedding(album, monkeypatch):
    encoder = SmallEncoder()
    monkeypatch.setattr("annotary.cli.duplicates.loaded", lambda *_: Loaded(encoder, "w", "w"))
    found = groups(album, "--by", "embedding", "--cosine", "0.999")
    assert [sorted(image for image, _, _ in group) for group in found] == [
        sorted(image for image, _, _ in group) for group in (BOATS, CATS)
    ]
    assert encoder.images == 7
    assert groups(album, "--by", "exact,embedding", "--cosine", "0.999")[0] == BOATS


@pytest.fixture(scope="module")
def catalog(tmp_path_factory) -> Path:
    """A catalogue of the album's photos and copies, with vectors."""
    pytest.importorskip("lancedb")
    from annotary.catalog import fill
    from annotary.sources import Reader, SourceOptions, open_sources
    from annotary.tasks.embedding import Embed

    folder = tmp_path_factory.mktemp("catalogued")
    for name in ("boats", "cat", "rocket"):
        shutil.copyfile(EXAMPLES / f"{name}.jpg", folder / f"{name}.jpg")
        os.utime(folder / f"{name}.jpg", (1000, 1000))
    shutil.copyfile(folder / "boats.jpg", folder / "boats copy.jpg")
    with Image.open(folder / "cat.jpg") as cat:
        cat.save(folder / "cat again.jpg", quality=40)
    place = folder / "photos.catalog"
    items = open_sources([str(folder)], SourceOptions())
    settings = {"embedding": {"weights": "w", "name": "small"}}
    with (
        Reader(SourceOptions()) as reader,
        fill(place, items, [Embed(SmallEncoder())], settings, reader) as filling,
    ):
        assert all(record.ok for record in filling)
    return place


def stems(found) -> list[list[str]]:
    return [[Path(image).stem for image, _, _ in group] for group in found]


def test_a_catalogue(catalog, monkeypatch):
    monkeypatch.delattr("annotary.cli._grouping.Reading.results")
    expected = [["boats", "boats copy"], ["cat", "cat again"]]
    assert stems(groups("--catalog", catalog)) == expected
    ways = ("--by", "exact,embedding", "--cosine", "0.999")
    assert stems(groups("--catalog", catalog, *ways)) == expected
    assert stems(groups("--catalog", catalog, "--by", "exact")) == expected[:1]


def test_a_folder_against_a_catalogue(catalog, album, monkeypatch):
    found = groups(album / "cat small.png", "--against", catalog)
    assert stems(found) == [["cat", "cat small"]]
    monkeypatch.setattr(
        "annotary.cli.duplicates.loaded", lambda *_: Loaded(SmallEncoder(), "w", "w")
    )
    ways = ("--by", "embedding", "--cosine", "0.999")
    assert stems(groups(album / "cat small.png", "--against", catalog, *ways)) == [
        ["cat", "cat small"]
    ]
    monkeypatch.setattr(
        "annotary.cli.duplicates.loaded", lambda *_: Loaded(SmallEncoder(), "v", "v")
    )
    assert "holds vectors of small@1.0 with other weights" in complaint(
        "duplicates", album, "--against", catalog, *ways
    )


def test_what_makes_no_sense_is_refused_before_anything_is_read(album, catalog):
    for arguments, told in (
        ((), "name images to compare: either PATH... or --catalog FOLDER"),
        ((album, "--catalog", catalog), "either PATH... or --catalog FOLDER"),
        (("nowhere",), "no such file or folder: 'nowhere'"),
        ((album, "--against", "nowhere"), "no such file or folder: 'nowhere'"),
        ((album, "--by", "sight"), "--by must be of exact, phash, embedding, but got 'sight'"),
        ((album, "--distance", "20"), "--distance must be 0..16 bits, but got 20"),
        ((album, "--model", "starter"), "--model is for --by embedding"),
        ((album, "--output", "a.txt"), "--output a.txt must be a file ending in .jsonl or .csv"),
        ((album, "--output", "a.csv", "--json"), "--json prints, so it does not go with --output"),
        ((album, "--shard", "1/2"), "--shard would compare only a part of the images"),
        (("--catalog", "album"), "album is no catalogue"),
        (("--catalog", catalog, "--by", "embedding", "--model", "x"), "in no catalogue"),
    ):
        assert told in complaint("duplicates", *arguments), arguments
    Path("empty").mkdir()
    assert "no images in empty" in complaint("duplicates", "empty")
    Path("list.csv").write_text("image\nalbum/cat.jpg\n")
    told = complaint("duplicates", "list.csv", "--output", "list.csv")
    assert "list.csv is read and cannot be written" in told


def test_the_light_install_is_enough(album):
    """Neither lancedb nor pyarrow nor any library that runs networks is imported."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lancedb", "pyarrow", "sklearn", "scipy", "torch", "onnxruntime", "pandas"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Refuse())
from annotary.cli import main
main(["duplicates", "album", "--json"])
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=child_environment(),
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 5
