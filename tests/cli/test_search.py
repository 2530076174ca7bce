"""`annotary search`, in a catalogue and in a folder."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from annotary.cli import annotary
from annotary.cli._annotating import Loaded
from annotary.errors import AnnotaryError
from tests.small_encoder import COLOURS, SmallEncoder

HERE = ("annotary.cli.search.loaded", "annotary.cli.embed.loaded")


class BlindEncoder(SmallEncoder):
    """It knows no texts."""

    embed_texts = property()


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANNOTARY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def models(monkeypatch):
    """The models that can be loaded, by name."""
    known = {
        "starter": SmallEncoder(),
        "other": SmallEncoder(name="other"),
        "sigmoid": SmallEncoder("sigmoid", name="sigmoid"),
        "blind": BlindEncoder(name="blind"),
    }

    def load(name, options):
        return Loaded(known[name], f"files-of-{name}", f"files-of-{name}")

    for place in HERE:
        monkeypatch.setattr(place, load)
    return known


@pytest.fixture
def folder(tmp_path) -> Path:
    """Photos that are called by their colours, and one that is half red and half blue."""
    place = tmp_path / "photos"
    place.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (60, 40), colour).save(place / f"{name}.png")
    both = Image.new("RGB", (60, 40), COLOURS["red"])
    both.paste(COLOURS["blue"], (30, 0, 60, 40))
    both.save(place / "red and blue.png")
    return place


@pytest.fixture
def catalog(folder, models, tmp_path) -> Path:
    pytest.importorskip("lancedb")
    place = tmp_path / "photos.catalog"
    assert call("embed", folder, "--catalog", place).exit_code == 0
    return place


def call(*arguments):
    return CliRunner().invoke(annotary, [str(argument) for argument in arguments])


def found(*arguments) -> list[str]:
    """The names of what was found, in order."""
    result = call("search", *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return [Path(line.split(maxsplit=2)[2]).stem for line in result.stdout.splitlines()]


def refused(*arguments) -> str:
    result = call(*arguments)
    assert isinstance(result.exception, AnnotaryError), result.output
    message = str(result.exception)
    assert "\n" not in message
    return message


@pytest.fixture(params=["in a catalogue", "in a folder"])
def where(request, folder, models) -> tuple[str, Path]:
    if request.param == "in a folder":
        return "--in", folder
    return "--catalog", request.getfixturevalue("catalog")


def test_words_find_pictures(where):
    assert found("a photo of a red wall", *where)[0] == "red"
    assert found("blue", *where, "--top", "2") == ["blue", "red and blue"]
    assert len(found("blue", *where)) == 7
    # All words are one text, in quotes or not.
    assert found("red", "wall", *where) == found("red wall", *where)


def test_a_picture_finds_what_is_like_it_but_not_itself(where, folder):
    red = folder / "red.png"
    assert found("--image", red, *where)[0] == "red and blue"
    assert "red" not in found("--image", red, *where)
    assert found("--image", red, *where, "--keep-query")[0] == "red"
    copy = folder.parent / "copy.png"
    copy.write_bytes(red.read_bytes())
    assert "red" not in found("--image", copy, *where)
    assert found(f"image:{red}", *where) == found("--image", red, *where)


def test_pictures_and_words_are_added_and_subtracted(where, folder, models):
    red = folder / "red.png"
    assert found("--image", red, "blue", *where)[0] == "red and blue"
    assert found("--image", red, "blue", *where, "--text-weight", "5")[0] == "blue"
    plain = found("red blue", *where)
    less = found("red blue", "--minus", "blue", *where)
    assert less.index("blue") > plain.index("blue")
    assert less[0] == "red"
    image = found("red blue", "--minus-image", folder / "blue.png", *where)
    assert "blue" not in image
    assert image[0] == "red"


def test_the_arithmetic_is_that_of_the_page(where, folder, models):
    model = models["starter"]
    text, minus = model.embed_texts(["green"]).vectors[0], model.embed_texts(["red"]).vectors[0]
    query = 2.0 * text - 0.25 * minus
    query /= np.linalg.norm(query)
    result = call(
        *("search", "green", "--minus", "red", *where, "--json"),
        *("--text-weight", "2", "--minus-weight", "0.25"),
    )
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["rank"] for row in rows] == list(range(1, 8))
    for row in rows:
        pixels = np.asarray(Image.open(row["image"]).resize((8, 8), Image.Resampling.BOX))
        batch = pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255
        expected = float(model.embed_images(batch)[0] @ query)
        assert row["score"] == pytest.approx(expected, abs=1e-3)
        assert "probability" not in row  # of a mixture no model says how probably it fits


def test_the_probability_of_a_single_text(where, models):
    rows = [
        json.loads(line) for line in call("search", "red", *where, "--json").stdout.splitlines()
    ]
    assert rows[0]["probability"] > rows[-1]["probability"]
    assert all(0 <= row["probability"] <= 1 for row in rows)
    # It is no calibrated one, so people do not see it.
    line = call("search", "red", *where).stdout.splitlines()[0]
    assert line.split(maxsplit=2)[:2] == ["1", f"{rows[0]['score']:+.3f}"]
    assert line.endswith("red.png")
    assert "  " not in line.strip().split("  ", 2)[2]


def test_a_threshold(where):
    rows = [
        json.loads(line) for line in call("search", "red", *where, "--json").stdout.splitlines()
    ]
    cut = (rows[2]["score"] + rows[3]["score"]) / 2
    assert len(found("red", *where, "--threshold", str(cut))) == 3
    result = call("search", "red", *where, "--threshold", "1")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "nothing was found above --threshold" in result.stderr


def test_a_model_without_texts(where, folder, catalog, models):
    flag, place = where
    if flag == "--catalog":
        place = folder.parent / "blind.catalog"
        call("embed", folder, "--catalog", place, "--model", "blind")
    told = refused("search", "red", flag, place, "--model", "blind")
    assert told.startswith("blind@1.0 does not know texts")
    assert (
        found("--image", folder / "red.png", flag, place, "--model", "blind")[0] == "red and blue"
    )


def test_what_makes_no_sense_is_told_in_a_line(folder, models, tmp_path):
    inside = ("--in", folder)
    assert "say what to search for" in refused("search", *inside)
    assert "either --catalog FOLDER or --in PATH" in refused("search", "red")
    assert "either --catalog" in refused("search", "red", *inside, "--catalog", tmp_path)
    assert "--where is for --catalog" in refused("search", "red", *inside, "--where", "width > 3")
    assert "no such file" in refused("search", "--image", "missing.png", *inside).lower()
    assert "no such file" in refused("search", "missing.png", *inside)
    assert "cancel" in refused("search", "red", "--minus", "red", "--minus-weight", "1", *inside)
    assert "--top must be" in refused("search", "red", *inside, "--top", "0")
    assert "--threshold must be" in refused("search", "red", *inside, "--threshold", "2")
    (tmp_path / "text.png").write_text("no image")
    assert "text.png: not an image" in refused("search", "--image", tmp_path / "text.png", *inside)
    assert "no such file or folder" in refused("search", "red", "--in", tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "no images in" in refused("search", "red", "--in", tmp_path / "empty")
    assert "no catalogue in" in refused("search", "red", "--catalog", tmp_path / "missing")
    assert "is no catalogue" in refused("search", "red", "--catalog", folder)


def test_a_picture_of_what_is_found(where, folder, tmp_path):
    sheet = tmp_path / "found.png"
    assert found("green", *where, "--sheet", sheet)[0] == "green"
    with Image.open(sheet) as picture:
        first = picture.convert("RGB").getpixel((12 + 64, 12 + 22 + 6 + 64))
    assert first == COLOURS["green"]
    with Image.open(sheet) as picture:  # below the first cell stand its cosine and its name
        below = np.asarray(picture.convert("L"))[-28:, :140]
        assert below.min() < 100 < below.max()
    assert "must end in .jpg" in refused("search", "red", *where, "--sheet", tmp_path / "a.gif")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_sheet_replaces_nothing_but_a_sheet(where, folder, tmp_path, suffix):
    sheet = tmp_path / f"sheet{suffix}"
    assert found("green", *where, "--sheet", sheet)[0] == "green"
    before = sheet.read_bytes()
    assert found("red", *where, "--sheet", sheet)[0] == "red"
    assert sheet.read_bytes() != before
    photo = folder / f"mine{suffix}"
    Image.new("RGB", (60, 40), (1, 2, 3)).save(photo)
    (tmp_path / "link.png").symlink_to(photo)
    kept = photo.read_bytes()
    for place in (photo, tmp_path / "link.png"):
        told = refused("search", "red", *where, "--sheet", place)
        assert told == f"--sheet {place} is there and is no contact sheet; name another file"
    assert photo.read_bytes() == kept
    # What is read is not written, even if it is a sheet.
    before = sheet.read_bytes()
    for query in (("--image", sheet), ("red", "--minus-image", sheet), (f"image:{sheet}",)):
        told = refused("search", *query, *where, "--sheet", sheet)
        assert told == f"--sheet {sheet} is read; name another file"
    assert sheet.read_bytes() == before
    (tmp_path / "folder.png").mkdir()
    told = refused("search", "red", *where, "--sheet", tmp_path / "folder.png")
    assert "is no contact sheet" in told


def test_words_that_are_files_are_refused(where, folder):
    """A shell has made them of `--in photos/*`, or one --in was meant for all."""
    assert refused("search", "red", *where, folder) == (
        f"{folder} is a folder: say --in {folder}; if it is a text, text:{folder}"
    )
    red = folder / "red.png"
    assert refused("search", "red", *where, red).startswith(
        f"{red} is a file: say --image {red}, or --in {red}"
    )
    os.chdir(folder.parent)
    Path("red").mkdir()
    assert "red is a folder" in refused("search", "red", *where)
    assert found("text:red", *where)[0] == "red"


def test_paths_alone(where, folder, tmp_path):
    Image.new("RGB", (60, 40), COLOURS["red"]).save(folder / "a b.png")
    if where[0] == "--catalog":
        call("embed", folder, "--catalog", where[1])
    result = call("search", "red", *where, "--paths", "--top", "2", "--quiet")
    assert sorted(result.stdout.splitlines()) == [str(folder / n) for n in ("a b.png", "red.png")]
    assert "--paths and --json" in refused("search", "red", *where, "--paths", "--json")


def test_what_has_no_path_is_told(folder, models, tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder / "red.png", "red.png")
    result = call("search", "red", "--in", tmp_path / "a.tar", "--paths")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "1 image in archives and at addresses left out" in result.stderr
    assert "1 image searched" in result.stderr


def test_printing_to_what_has_enough():
    """As `| head -1` does: in a process of its own, for its standard output breaks."""
    import subprocess
    import sys

    from tests.conftest import child_environment

    code = (
        "from annotary.cli import search\n"
        "rows = [search._Row('a' * 4000, '', 1.0, None, {})] * 1000\n"
        "query = search._Query(None, None, ())\n"
        "values = dict(sheet=None, as_json=False, as_paths=False, quiet=True, threshold=None)\n"
        "search._show(rows, query, None, values)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"  1  +1.000")
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 0


# With the model that ships


EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.mark.parametrize(
    ("query", "first"),
    [("boats on the water", "boats"), ("一只猫", "cat")],
)
def test_the_starter_finds_the_examples(query, first, monkeypatch):
    assert found(query, "--in", EXAMPLES, "--top", "1") == [first]


def test_the_starter_fills_a_catalogue(tmp_path):
    pytest.importorskip("lancedb")
    place = tmp_path / "c"
    assert call("embed", EXAMPLES, "--catalog", place).exit_code == 0
    assert found("a cat", "--catalog", place)[0] == "cat"
    assert len(found("--image", EXAMPLES / "cat.jpg", "--catalog", place)) == 7
    result = call("annotate", EXAMPLES, "--tasks", "tag", "--catalog", place)
    assert result.stderr.startswith("8 completed in "), result.stderr
    assert found("an animal", "--catalog", place, "--where", "array_has(tag_names, 'cat')") == [
        "cat"
    ]


def test_the_page_shows_what_is_printed(monkeypatch):
    page = (EXAMPLES.parent / "docs" / "search.md").read_text("utf-8")
    (shown,) = (block for block in page.split("```text\n") if block.startswith("  1  "))
    names = [line.split()[-1] for line in shown.splitlines()[:3]]
    monkeypatch.chdir(EXAMPLES.parent)
    printed = call("search", "eine Katze", "--in", "examples", "--top", "3").stdout.splitlines()
    assert len(printed) == len(names) == 3
    assert printed[0].split()[-1] == names[0]


# In a catalogue


def test_conditions(catalog, folder):
    assert found("red", "--catalog", catalog, "--where", "image LIKE '%blue%'") == [
        "red and blue",
        "blue",
    ]
    told = refused("search", "red", "--catalog", catalog, "--where", "colour = 3")
    assert "'colour = 3' cannot be used: No field named colour" in told
    assert "holds no images for which 'width > 1000'" in refused(
        *("search", "red", "--catalog", catalog, "--where", "width > 1000")
    )
    for broken in ("width >", "width > 'a'", "width > 3) OR (1 = 1", "'", "width > 3 -- x"):
        told = refused("search", "red", "--catalog", catalog, "--where", broken)
        assert "cannot be used" in told


def test_records_as_json(catalog, folder):
    (line,) = call(
        "search", "green", "--catalog", catalog, "--top", "1", "--json"
    ).stdout.splitlines()
    row = json.loads(line)
    assert row["image"] == str(folder / "green.png")
    assert (row["rank"], row["width"], row["height"]) == (1, 60, 40)
    assert row["sources"] == {"embedding": "small@1.0"}
    assert "embedding" not in row


def test_a_catalogue_knows_its_model(catalog, folder, models):
    other = folder.parent / "other.catalog"
    assert call("embed", folder, "--catalog", other, "--model", "other").exit_code == 0
    assert found("red", "--catalog", other)[0] == "red"
    told = refused("search", "red", "--catalog", other, "--model", "starter")
    assert "holds vectors of other@1.0" in told
    assert "leave --model out" in told
    assert found("red", "--catalog", other, "--model", "other")[0] == "red"


def test_another_model_is_refused_before_it_is_fetched(catalog, monkeypatch):
    monkeypatch.setattr(HERE[0], lambda name, options: pytest.fail(f"{name} was loaded"))
    told = refused("search", "red", "--catalog", catalog, "--model", "joytag")
    assert told == f"{catalog} is of starter, and not of joytag; leave --model out"


def test_a_model_that_has_changed_since(catalog, folder, models, monkeypatch):
    new = lambda name, options: Loaded(models[name], "new", "new")  # noqa: E731
    monkeypatch.setattr(HERE[0], new)
    told = refused("search", "red", "--catalog", catalog)
    assert "rebuild it: annotary embed PATH... --catalog" in told
    assert "--on-existing overwrite" in told
    monkeypatch.setattr(HERE[1], new)
    assert "the files of the model differ" in refused("embed", folder, "--catalog", catalog)
    assert call("embed", folder, "--catalog", catalog, "--on-existing", "overwrite").exit_code == 0
    assert found("red", "--catalog", catalog)[0] == "red"


def test_an_empty_catalogue(catalog, folder):
    for file in folder.iterdir():
        file.unlink()
    result = call("embed", folder, "--catalog", catalog)
    assert "7 gone" in result.stderr
    assert "holds no images" in refused("search", "red", "--catalog", catalog)
    assert "--where" not in refused("search", "red", "--catalog", catalog)


def test_embed_tells_what_became_of_each(catalog, folder):
    result = call("embed", folder, "--catalog", catalog)
    assert "0 new and 0 changed embedded" in result.stderr
    assert result.stderr.rstrip().endswith("7 unchanged")
    (folder / "broken.jpg").write_bytes(b"nothing")
    result = call("embed", folder, "--catalog", catalog)
    assert result.exit_code == 1
    assert result.stderr.rstrip().endswith(f"1 failed; see {catalog / 'failures.jsonl'}")


# In a folder


def test_a_second_search_embeds_only_what_is_new(folder, models):
    model = models["starter"]
    first = call("search", "red", "--in", folder)
    assert "7 images searched, 7 embedded now" in first.stderr
    second = call("search", "red", "--in", folder)
    assert second.stdout == first.stdout
    assert second.stderr.strip() == "7 images searched"
    assert model.images == 7
    Image.new("RGB", (30, 30), (250, 10, 10)).save(folder / "new.png")
    Image.new("RGB", (30, 30), (5, 250, 5)).save(folder / "red.png")
    third = call("search", "red", "--in", folder)
    assert "8 images searched, 2 embedded now" in third.stderr
    assert found("red", "--in", folder)[0] == "new"
    assert model.images == 9


def test_models_have_caches_of_their_own(folder, models):
    found("red", "--in", folder)
    found("red", "--in", folder, "--model", "sigmoid")
    assert models["sigmoid"].images == 7


def test_a_cache_that_cannot_be_written_is_told_and_the_search_goes_on(folder, models, tmp_path):
    (tmp_path / "cache").write_text("a file, and no folder")
    result = call("search", "red", "--in", folder)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].endswith("red.png")
    assert "vectors could not be kept in" in result.stderr


def test_a_cache_that_is_damaged(folder, models, tmp_path):
    before = call("search", "red", "--in", folder).stdout
    (file,) = (tmp_path / "cache" / "vectors").iterdir()
    file.write_bytes(b"not a database at all" * 100)
    result = call("search", "red", "--in", folder)
    assert result.stdout == before
    assert "file is not a database" in result.stderr


def test_images_that_fail_are_told(folder, models):
    (folder / "broken.jpg").write_bytes(b"nothing")
    result = call("search", "red", "--in", folder)
    assert result.exit_code == 1
    assert "broken.jpg: not an image" in result.stderr
    assert "7 images searched, 7 embedded now; 1 failed" in result.stderr
    assert len(result.stdout.splitlines()) == 7


def test_several_places_and_an_archive(folder, models, tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder / "red.png", "inner/crimson.png")
    names = found("red", "--in", folder, "--in", tmp_path / "a.tar", "--top", "2")
    assert sorted(names) == ["crimson", "red"]
    assert found("--image", folder / "red.png", "--in", tmp_path / "a.tar", "--in", folder)[0] == (
        "red and blue"
    )
    os.chdir(folder)
    assert call("search", "red", "--in", ".").stdout.splitlines()[0].endswith("  red.png")


def test_the_cache_is_safe_with_many_threads_and_processes(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from annotary.catalog._vector_cache import FileKey, VectorCache, kept

    vectors = np.random.default_rng(0).normal(size=(48, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def work(part):
        cache = VectorCache("m", tmp_path)
        for i in range(part, 48, 8):
            cache.put([(FileKey(f"/{i}", i, i), vectors[i])])
        cache.close()
        return cache.problem

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [""] * 8
    cache = VectorCache("m", tmp_path)
    for i in range(48):
        np.testing.assert_array_equal(cache.get(FileKey(f"/{i}", i, i)), kept(vectors[i]))
        assert cache.get(FileKey(f"/{i}", i, i + 1)) is None
    assert VectorCache("n", tmp_path).get(FileKey("/1", 1, 1)) is None
    with sqlite3.connect(cache.path) as connection:
        assert connection.execute("SELECT count(*) FROM vectors").fetchone() == (48,)
    connection.close()
    cache.close()
