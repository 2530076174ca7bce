"""What could not be made says why, is written down, and does not stand in the way of the corrected command."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotary.cli import main
from annotary.errors import NothingToDo, OutputError, UsageError
from annotary.training.dataset.building import BuildOptions, Recipe, build
from annotary.training.dataset.choosing import SplitOptions
from annotary.training.dataset.image_cache import CacheOptions
from annotary.training.dataset.pictures import Measuring
from annotary.training.dataset.posts import PostOptions
from annotary.training.dataset.tag_lists import TagListOptions
from tests.training.dataset.making import encoded

FEW = SplitOptions(validation=2, positives=1, validation_distance=0)


def picture(seed: int) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return encoded(np.asarray(Image.fromarray(small).resize((24, 24))), "PNG")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight pictures with tags."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.png").write_bytes(picture(number))
        (folder / f"{number}.txt").write_text(f"all, t{number % 2}")
    return folder


def recipe(*inputs: Path | str, **parts: object) -> Recipe:
    plain = Recipe(tuple(map(str, inputs)), split=FEW, cache=CacheOptions(cache="off"))
    return replace(plain, **parts)  # type: ignore[arg-type]


def refused(made: Recipe, output: Path) -> str:
    """What is said where nothing is left, which the report has, too."""
    with pytest.raises(NothingToDo) as error:
        build(made, output)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(f"; see {output / 'report.json'}")
    report = json.loads((output / "report.json").read_text())
    assert message.startswith(report["error"])
    assert report["counts"]["dropped_images"] == len(report["dropped_images"])
    assert sum(report["dropped_images_by_reason"].values()) == len(report["dropped_images"])
    assert not (output / "dataset.json").exists()
    return message


def test_the_first_failure_is_told_where_nothing_is_left(tmp_path):
    coco = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(3)],
        "annotations": [{"image_id": n, "category_id": 1} for n in range(3)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    message = refused(recipe(tmp_path / "coco.json"), tmp_path / "coco")
    assert message.startswith(
        "no image can be trained on; left out: 3 unreadable; the first: 0.png: nothing has this name, neither in"
    )
    assert "say where the images are with --images; see" in message
    report = json.loads((tmp_path / "coco/report.json").read_text())
    assert [one["id"] for one in report["dropped_images"]] == ["0.png", "1.png", "2.png"]
    assert "--images" in report["dropped_images"][0]["told"]

    rows = [{"id": n, "md5": f"ab{n}", "file_ext": "png", "tag_string": "a"} for n in range(3)]
    (tmp_path / "posts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    message = refused(recipe(tmp_path / "posts.jsonl"), tmp_path / "posts")
    assert (
        "has no ab/ab0.png nor other usual names of it; say where the images are with --images"
        in message
    )

    dead = "http://127.0.0.1:1/a.png"
    (tmp_path / "dead.csv").write_text(f"url,tags\n{dead},a\n")
    made = recipe(tmp_path / "dead.csv", cache=CacheOptions())
    message = refused(replace(made, source=replace(made.source, retries=0)), tmp_path / "dead")
    assert f"left out: 1 unreadable; the first: {dead}: " in message


def test_where_tags_were_looked_for_is_told(photos, tmp_path):
    for path in photos.glob("*.txt"):
        path.write_text(" , ")
    message = refused(recipe(photos), tmp_path / "blank")
    assert f"left out: 8 no tags; files beside the images of {photos}, such as" in message
    assert ".txt, have no tags; see" in message
    for path in photos.glob("*.txt"):
        path.unlink()
    message = refused(recipe(photos), tmp_path / "none")
    assert "8 no tags; no .txt, .json, .caption or .xmp was found beside the images of" in message
    assert "nor was there a metadata.jsonl or metadata.csv" in message
    (photos / "t.csv").write_text("image,words\n0.png,x\n1.png,y\n")
    message = refused(recipe(photos / "t.csv"), tmp_path / "table")
    assert (
        "no tags in a column with a usual name; choose one with --tag-column: 'image', 'words'"
        in message
    )
    (photos / "0.json").write_text('{"tags": "x"}')
    made = recipe(photos, posts=PostOptions(tag_column="foo"))
    assert "such as" in (message := refused(made, tmp_path / "column"))
    assert "have no tags in 'foo' (--tag-column)" in message


def test_the_corrected_command_goes_on_where_the_first_failed(photos, tmp_path, monkeypatch):
    folder = tmp_path / "made"
    many = replace(FEW, validation=8)
    with pytest.raises(UsageError, match="8 validation images are asked for"):
        build(recipe(photos, split=many), folder)
    measured: list[bytes] = []
    plain = Measuring.measure_data
    monkeypatch.setattr(
        Measuring, "measure_data", lambda self, data: measured.append(data) or plain(self, data)
    )
    refused(recipe(photos, tags=TagListOptions(minimum_count=99)), folder)
    assert build(recipe(photos), folder).counts["validation"] == 2
    assert not measured  # the settings that pictures depend on were the same

    # There is a dataset now, and there was one also when a run that went on with it was stopped.
    other = recipe(photos, tags=TagListOptions(minimum_count=3))
    for _ in range(2):
        with pytest.raises(OutputError, match="holds a dataset of other settings"):
            build(other, folder)
        (folder / "dataset.json").unlink(missing_ok=True)
    # As it was before it was noted that a dataset is finished.
    build(recipe(photos), folder)
    (folder / "_state/finished").unlink()
    with pytest.raises(OutputError, match="minimum_count was null and is now 3"):
        build(other, folder)
    # Made anew and failed, it is nobody's any more.
    anew = BuildOptions(on_existing="overwrite")
    refused(recipe(photos, tags=TagListOptions(minimum_count=99), build=anew), folder)
    assert build(other, folder).counts["train"] == 6
    assert not measured


def tar_of(photos: Path, place: Path) -> None:
    with tarfile.open(place, "w") as tar:
        for path in sorted(photos.iterdir()):
            info = tarfile.TarInfo(path.name)
            info.size = path.stat().st_size
            tar.addfile(info, io.BytesIO(path.read_bytes()))


def test_an_archive_that_is_cut_off_is_told_and_the_exit_code_is_1(photos, tmp_path, capsys):
    whole, cut = tmp_path / "whole.tar", tmp_path / "cut.tar"
    tar_of(photos, whole)
    end = whole.read_bytes().index(b"5.png")
    cut.write_bytes(whole.read_bytes()[: end + 700])
    codes = {}
    for tar in (whole, cut):
        for quiet in ([], ["--quiet"]):
            arguments = [str(tar), "--output", str(tmp_path / tar.stem), "--validation", "1"]
            with pytest.raises(SystemExit) as ended:
                main(["train", "dataset", *arguments, *quiet])
            codes[tar.stem, bool(quiet)] = ended.value.code
            told = capsys.readouterr().err
            assert (f"{cut} is cut off after 5 images: unexpected end of data" in told) == (
                tar is cut
            )
    assert codes == {
        ("whole", False): 0, ("whole", True): 0, ("cut", False): 1, ("cut", True): 1,
    }  # fmt: skip
    report = json.loads((tmp_path / "cut/report.json").read_text())
    assert report["notes"][0].startswith(f"{cut} is cut off after 5 images")
    (tmp_path / "no.tar").write_bytes(b"x" * 2000)
    assert f"{tmp_path / 'no.tar'} cannot be read: " in refused(
        recipe(tmp_path / "no.tar", cache=CacheOptions()), tmp_path / "no"
    )


def test_tags_that_differ_in_case_or_underscores_alone_are_told(photos, tmp_path):
    names = ["Polar Bear", "polar bear", "polar_bear", "^_^", "cat", "dog"]
    for number in range(8):
        (photos / f"{number}.txt").write_text(names[number % 6])
    built = build(recipe(photos), tmp_path / "made")
    assert (
        "3 tags differ from another only in case or underscores, such as 'Polar Bear', 'polar bear' and 'polar_bear';"
        " see --underscores and --aliases"
    ) in built.notes
    rules = tmp_path / "rules.toml"
    rules.write_text('underscores = true\naliases = { "Polar Bear" = "polar bear" }\n')
    built = build(recipe(photos, tags=TagListOptions(rules=rules)), tmp_path / "again")
    assert not any("differ" in note for note in built.notes)


def test_validation_ids_need_to_be_there(photos, tmp_path):
    ids = tmp_path / "ids.txt"
    made = recipe(photos, split=SplitOptions(validation_ids=ids))
    for text, told in {
        "x.png\ny.png\n": r"no id of 2, such as x\.png, that is in the dataset; its ids are such as 0\.png",
        "\n": r"has no id that is in the dataset",
    }.items():
        ids.write_text(text)
        with pytest.raises(UsageError, match=told):
            build(made, tmp_path / "made")
    ids.write_text("1.png\nx.png\ny.png\n")
    built = build(made, tmp_path / "made")
    assert built.counts["validation"] == 1
    assert "2 validation ids are not in the dataset, such as x.png" in built.notes


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--validation", "0.05", "--validation-ids", "ids.txt"],
            "--validation has no effect beside",
        ),
        (["--tag-column", "foo"], "--tag-column foo has no effect"),
        (["--image-column", "foo"], "--image-column foo has no effect"),
        (["--seed", "-1"], "--seed must not be negative, but got -1"),
        (["--positives", "-1"], "--positives must not be negative, but got -1"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_done(
    photos, tmp_path, capsys, options, told
):
    with pytest.raises(SystemExit) as ended:
        main(["train", "dataset", str(photos), "--output", str(tmp_path / "made"), *options])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"annotary: {told}")
    assert not (tmp_path / "made").exists()
