"""`annotary cluster`: what is printed, written and drawn, from files and from catalogues."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotary.cli._annotating import Loaded
from tests.cli.test_duplicates import EXAMPLES, complaint, run
from tests.conftest import child_environment
from tests.small_encoder import COLOURS, SmallEncoder

pytest.importorskip("sklearn")


@pytest.fixture(autouse=True)
def small(monkeypatch) -> SmallEncoder:
    encoder = SmallEncoder()
    monkeypatch.setattr("annotary.cli.cluster.loaded", lambda *_: Loaded(encoder, "w", "w"))
    return encoder


def paint(folder: Path, counts: dict[str, int]) -> Path:
    """Pictures that are nearly of one colour, named by it."""
    generator = np.random.default_rng(4)
    folder.mkdir()
    for colour, count in counts.items():
        for i in range(count):
            noise = generator.integers(-12, 13, (24, 32, 3))
            pixels = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{colour} {i:02}.png")
    return folder


@pytest.fixture
def walls() -> Path:
    return paint(Path("walls"), {"red": 9, "green": 7, "blue": 5})


NAMES = "red\ngreen\nblue\nyellow\n\nblack\nred\n"


def rows(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def test_groups_are_printed_with_names_and_typical_images(walls):
    Path("names.txt").write_text(NAMES)
    code, out, err = run("cluster", walls, "--clusters", "3", "--names", "names.txt")
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == 3
    for line, start, share in zip(
        lines, ("red", "green", "blue"), ("9  ", "7  ", "5  "), strict=True
    ):
        assert share in line
        assert f"%  {start}" in line
        assert line.count(f"walls/{start} ") == 3
    assert "21 images in 3 clusters in " in err


def test_the_number_is_found_and_a_table_written(walls):
    Path("names.txt").write_text(NAMES)
    result = run("cluster", walls, "--names", "names.txt", "--output", "groups.csv", "--json")
    told = [json.loads(line) for line in result[1].splitlines()]
    assert [(one["cluster"], one["images"], one["names"][0]) for one in told] == [
        (1, 9, "red"),
        (2, 7, "green"),
        (3, 5, "blue"),
    ]
    assert told[0]["share"] == pytest.approx(9 / 21, abs=1e-6)
    nearest = [entry["distance"] for entry in told[0]["nearest"]]
    assert nearest == sorted(nearest)
    with open("groups.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["image"] for row in table] == sorted(map(str, walls.iterdir()))
    for row in table:
        colour = Path(row["image"]).name.split()[0]
        assert row["name"].startswith(colour)
        assert int(row["cluster"]) == ["red", "green", "blue"].index(colour) + 1
        assert 0 <= float(row["distance"]) < 0.1


def test_what_is_like_nothing_else_is_in_no_cluster(walls):
    for colour in ("white", "black"):
        Image.new("RGB", (32, 24), COLOURS[colour]).save(walls / f"{colour}.png")
    options = ("--method", "hdbscan", "--min-size", "4", "--output", "groups.jsonl")
    code, out, err = run("cluster", walls, *options)
    assert (code, out) == (0, "")
    outside = [row for row in rows("groups.jsonl") if row["cluster"] == 0]
    assert {row["image"] for row in outside} <= {"walls/white.png", "walls/black.png"}
    assert {row["name"] for row in outside} == {"(none)"}
    assert f"23 images in 3 clusters, {len(outside)} in none" in err


def test_words_of_the_starter_name_clusters_when_none_are_told(walls, small):
    out = run("cluster", walls, "--clusters", "3", "--quiet")[1]
    assert small.texts > 100
    assert len(out.splitlines()) == 3


def test_a_model_that_knows_no_texts_leaves_clusters_without_names(walls, monkeypatch):
    class Mute:
        def __init__(self) -> None:
            encoder = SmallEncoder()
            self.card, self.streams, self.batch_size = encoder.card, 1, 4
            self.choice = encoder.choice
            self.embed_images = encoder.embed_images

    monkeypatch.setattr("annotary.cli.cluster.loaded", lambda *_: Loaded(Mute(), "w", "w"))
    out = run("cluster", walls, "--clusters", "3", "--quiet")[1]
    assert "cluster 1" in out.splitlines()[0]
    Path("names.txt").write_text(NAMES)
    assert "does not know texts" in complaint("cluster", walls, "--names", "names.txt")


def test_a_sheet_shows_the_typical_images_and_grey_for_what_is_gone(walls, monkeypatch):
    code, *_ = run(
        "cluster", walls, "--clusters", "3", "--sheet", "sheet.png", "--sheet-images", "4"
    )
    assert code == 0
    with Image.open("sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    for colour in ("red", "green", "blue"):
        near = np.abs(pixels - COLOURS[colour]).max(axis=2) <= 30
        assert near.sum() > 3.5 * 32 * 24
    assert not list(Path().glob(".annotary*"))
    shown = len(list(Path("walls").glob("red *")))
    run("cluster", walls, "--clusters", "3", "--sheet", "sheets", "--sheet-images", "30")
    assert sorted(p.name for p in Path("sheets").iterdir()) == [
        f"cluster-{i}.jpg" for i in (1, 2, 3)
    ]
    assert shown == 9


def test_what_others_wrote_is_never_replaced(walls, small):
    (walls / "photo.jpg").write_bytes((EXAMPLES / "cat.jpg").read_bytes())
    Path("mine.csv").write_text("image,price\n")
    Path("mine.jsonl").write_text('{"image": "a.png"}\n')
    Path("sheets").mkdir()
    shutil.copyfile(walls / "photo.jpg", "sheets/cluster-2.jpg")
    for arguments, told in (
        (("--sheet", "walls/photo.jpg"), "walls/photo.jpg is there and is no contact sheet"),
        (("--sheet", "sheets"), "sheets/cluster-2.jpg is there and is no contact sheet"),
        (("--output", "mine.csv"), "mine.csv is there already and is no table of annotary cluster"),
        (("--output", "mine.jsonl"), "mine.jsonl is there already and is no table"),
    ):
        before = {path: path.read_bytes() for path in Path().rglob("*.*") if path.is_file()}
        assert told in complaint("cluster", walls, *arguments), arguments
        assert before == {path: path.read_bytes() for path in Path().rglob("*.*") if path.is_file()}
    assert not small.images


def test_earlier_output_of_the_same_command_is_replaced(walls):
    for suffix in ("csv", "jsonl"):
        options = ("--output", f"groups.{suffix}", "--sheet", "sheet.jpg", "--quiet")
        assert run("cluster", walls, "--clusters", "2", *options)[0] == 0
        before = Path(f"groups.{suffix}").read_bytes(), Path("sheet.jpg").read_bytes()
        assert run("cluster", walls, "--clusters", "3", *options)[0] == 0
        assert Path(f"groups.{suffix}").read_bytes() != before[0]
        assert Path("sheet.jpg").read_bytes() != before[1]
    told = complaint("cluster", "sheet.jpg", walls, "--sheet", "sheet.jpg")
    assert told == "--sheet sheet.jpg is read; name another file"


def test_one_image_is_one(walls):
    assert "1 image in 1 cluster in " in run("cluster", walls / "red 00.png")[2]


def test_where_nothing_is_dense_that_is_told_and_nothing_drawn(walls):
    options = ("--method", "hdbscan", "--min-size", "20", "--sheet", "sheet.jpg")
    code, out, err = run("cluster", walls, *options)
    assert (code, out) == (0, "")
    assert "nothing lies densely enough: say a smaller --min-size, or --method kmeans" in err
    assert "21 images in 0 clusters, 21 in none" in err
    assert not Path("sheet.jpg").exists()


def test_vectors_are_remembered_between_runs(walls, small):
    Path("names.txt").write_text(NAMES)
    options = ("--clusters", "3", "--names", "names.txt", "--json", "--quiet")
    first = run("cluster", walls, *options)[1]
    assert (small.images, small.texts) == (21, 5)
    assert run("cluster", walls, *options)[1] == first
    assert (small.images, small.texts) == (21, 5)
    Image.new("RGB", (32, 24), COLOURS["red"]).save(walls / "a new one.png")
    (walls / "broken.png").write_bytes(b"no image")
    assert run("cluster", walls, *options, "--output", "groups.csv")[0] == 1
    assert small.images == 22
    with open("groups.csv", encoding="utf-8", newline="") as file:
        images = [row["image"] for row in csv.DictReader(file)]
    assert images == sorted(str(path) for path in walls.iterdir() if path.name != "broken.png")


def test_words_that_are_too_long_are_told_shortened(walls):
    Path("names.txt").write_text(f"{NAMES}{'yellow ' * 30}\n")
    told = f": {('yellow ' * 30)[:77]}...\n"
    err = run("cluster", walls, "--clusters", "3", "--names", "names.txt")[2]
    assert f"longer than small@1.0 reads, so the end is left out{told}" in err
    assert "left out" not in run("cluster", walls, "--names", "names.txt", "--quiet")[2]


def test_images_in_archives_are_drawn(walls):
    shutil.make_archive("walls", "zip", walls)
    run("cluster", "walls.zip", "--clusters", "3", "--sheet", "sheet.png", "--sheet-images", "2")
    with Image.open("sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    assert (np.abs(pixels - COLOURS["blue"]).max(axis=2) <= 30).sum() > 1.5 * 32 * 24
    assert (pixels == 200).all(axis=2).sum() < 128 * 128  # a grey cell


def test_what_cannot_be_read_is_told_and_the_others_are_grouped(walls):
    (walls / "broken.png").write_bytes(b"no image")
    code, out, err = run("cluster", walls, "--clusters", "3")
    assert code == 1
    assert len(out.splitlines()) == 3
    assert "walls/broken.png: " in err
    assert "; 1 failed" in err


@pytest.fixture(scope="module")
def catalog(tmp_path_factory) -> Path:
    """A catalogue of painted walls with vectors and tags."""
    pytest.importorskip("lancedb")
    from annotary.catalog import fill
    from annotary.records import Tag
    from annotary.sources import Reader, SourceOptions, open_sources
    from annotary.tasks.embedding import Embed

    class Tagged:
        """Tags an image by the name of its file."""

        part, source, streams, batch_size = "tags", "named@1.0", 1, 4
        inputs = (SmallEncoder().card.preprocess,)

        def annotate(self, pictures, *batches):
            names = [Path(picture.item.image).name for picture in pictures]
            named = [name.split()[0] for name in names]
            return [{"tags": (Tag("wall", 0.9), Tag(f"{name} paint", 0.8))} for name in named]

    folder = paint(tmp_path_factory.mktemp("catalogued") / "walls", {"red": 6, "blue": 4})
    place = folder.parent / "walls.catalog"
    items = open_sources([str(folder)], SourceOptions())
    settings = {"embedding": {"weights": "w", "name": "small"}, "tags": {"weights": "t"}}
    tasks = [Embed(SmallEncoder()), Tagged()]
    with (
        Reader(SourceOptions()) as reader,
        fill(place, items, tasks, settings, reader) as filling,
    ):
        assert all(record.ok for record in filling)
    return place


def test_a_catalogue_is_grouped_by_its_vectors_and_named_by_its_tags(catalog, small):
    out = run("cluster", "--catalog", catalog, "--clusters", "2", "--json", "--sheet", "s.jpg")[1]
    told = [json.loads(line) for line in out.splitlines()]
    assert [(one["images"], one["name"]) for one in told] == [(6, "red paint"), (4, "blue paint")]
    assert not small.calls
    assert not small.images
    with Image.open("s.jpg") as sheet:
        assert sheet.format == "JPEG"
    Path("names.txt").write_text(NAMES)
    options = ("--clusters", "2", "--names", "names.txt", "--json")
    told = map(json.loads, run("cluster", "--catalog", catalog, *options)[1].splitlines())
    assert [one["names"][0] for one in told] == ["red", "blue"]


def test_words_are_not_compared_with_vectors_of_other_weights(catalog, monkeypatch):
    monkeypatch.setattr("annotary.cli.cluster.loaded", lambda *_: Loaded(SmallEncoder(), "v", "v"))
    Path("names.txt").write_text(NAMES)
    told = complaint("cluster", "--catalog", catalog, "--names", "names.txt", "--clusters", "2")
    assert "holds vectors of small@1.0 with other weights" in told


def test_what_makes_no_sense_is_refused_before_anything_is_read(walls, catalog, small):
    Path("empty.txt").write_text("\n")
    Path("latin.txt").write_bytes(b"caf\xe9")
    for arguments, told in (
        ((), "name images to group: either PATH... or --catalog FOLDER"),
        ((walls, "--catalog", catalog), "either PATH... or --catalog FOLDER"),
        ((walls, "--clusters", "0"), "--clusters must be 1..10,000"),
        ((walls, "--method", "hdbscan", "--clusters", "3"), "--clusters is for --method kmeans"),
        ((walls, "--min-size", "5"), "--min-size is for --method hdbscan; kmeans takes --clusters"),
        ((walls, "--names", "nowhere.txt"), "cannot read --names nowhere.txt: No such file"),
        ((walls, "--names", "latin.txt"), "cannot read --names latin.txt: it is not UTF-8"),
        ((walls, "--names", "empty.txt"), "--names empty.txt holds no words"),
        ((walls, "--sheet", "sheet.pdf"), "--sheet sheet.pdf must end in .jpg, .jpeg, .png"),
        ((walls, "--output", "x.parquet"), "must be a file ending in .jsonl or .csv"),
        (("nowhere",), "no such file or folder"),
        (("--catalog", "walls"), "walls is no catalogue"),
    ):
        assert told in complaint("cluster", *arguments), arguments
    assert not small.images
    told = complaint("cluster", walls, "--clusters", "22")
    assert told == "--clusters 22 needs as many images, but there are 21"


def test_without_scikit_learn_the_message_is_the_command_to_install_it(walls):
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lancedb", "pyarrow", "sklearn", "scipy", "torch", "onnxruntime", "pandas"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Refuse())
import annotary.cli.cluster
from annotary.catalog import clusters
import numpy as np
try:
    clusters.find_clusters(np.eye(3, dtype=np.float32))
except clusters.MissingExtra as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=child_environment(),
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "Clustering needs an optional part: pip install 'annotary[catalog]'\n"
