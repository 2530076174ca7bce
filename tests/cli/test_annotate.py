"""`annotary annotate`: several tasks for each image."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from annotary.cards import Vocabulary
from annotary.cli import annotary
from annotary.cli._annotating import Loaded
from annotary.errors import AnnotaryError
from annotary.records import Annotation, from_line
from tests.small_encoder import COLOURS, SmallEncoder


class Everything(SmallEncoder):
    """It tags, too: how red, green and blue the image is."""

    vocabulary = Vocabulary(("red", "green", "blue"), ("", "", ""))

    def tag_scores(self, batch):
        return batch.mean(axis=(2, 3)).astype("float32")


@pytest.fixture
def models(monkeypatch):
    known = {"starter": Everything(), "other": SmallEncoder(name="other")}
    asked = []

    def load(name, options):
        asked.append(name)
        return Loaded(known[name], f"files-of-{name}", f"files-of-{name}")

    for place in ("annotate", "search"):
        monkeypatch.setattr(f"annotary.cli.{place}.loaded", load)
    known["asked"] = asked
    return known


@pytest.fixture
def folder(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setenv("ANNOTARY_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "photos"
    place.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (60, 40), colour).save(place / f"{name}.png")
    return place


LABELS = ("--labels", "red, green, blue, yellow, white, black")


def call(*arguments):
    return CliRunner().invoke(annotary, [str(argument) for argument in arguments])


def refused(*arguments) -> str:
    result = call(*arguments)
    assert isinstance(result.exception, AnnotaryError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_a_record_has_a_part_for_each_task(folder, models):
    result = call("annotate", folder, "--tasks", "tag,classify,embed", *LABELS, "--json")
    assert result.exit_code == 0, result.output
    records = [from_line(line) for line in result.stdout.splitlines()]
    assert len(records) == 6
    for record in records:
        assert isinstance(record, Annotation)
        name = record.image.rpartition("/")[2].removesuffix(".png")
        assert record.labels[0].name == name
        assert record.embedding is not None
        assert dict(record.sources) == dict.fromkeys(("tags", "labels", "embedding"), "small@1.0")
        assert {tag.name for tag in record.tags} >= {name} & {"red", "green", "blue"}
    # One model for all, loaded once, which embeds each image once for both tasks.
    assert models["asked"] == ["starter"]
    assert models["starter"].images == 6


def test_each_task_may_have_a_model_of_its_own(folder, models):
    call(
        "annotate", folder, "--tasks", "tag,embed", "--embed-model", "other", "--output", "a.jsonl"
    )
    assert models["asked"] == ["starter", "other"]
    with open("a.jsonl", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    assert records[0]["sources"] == {"tags": "small@1.0", "embedding": "other@1.0"}
    told = refused("annotate", folder, "--tasks", "tag,embed", "--output", "a.jsonl")
    assert "embedding.model was 'other@1.0', now 'small@1.0'" in told
    again = call(
        *("annotate", folder, "--tasks", "tag,embed", "--embed-model", "other"),
        *("--output", "a.jsonl"),
    )
    assert "6 done before" in again.stderr


def test_lines_for_people(folder, models):
    result = call("annotate", folder / "red.png", "--tasks", "tag,classify,embed", *LABELS)
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"{folder / 'red.png'}: red 0.90 | red ")
    assert line.endswith(" | 24 numbers")


def test_options_of_each_task(folder, models):
    tasks = ("--tasks", "tag,classify", *LABELS)
    result = call(
        *("annotate", folder / "white.png", *tasks, "--json", "--top", "1", "--label-top", "2"),
        *("--threshold", "0.1", "--label-threshold", "0"),
    )
    row = json.loads(result.stdout)
    assert (len(row["tags"]), len(row["labels"])) == (1, 2)


@pytest.mark.parametrize("more", [(), ("--label-top", "2"), ("--multi-label",)])
def test_words_without_scores_get_the_best_of_labels_that_compete(folder, models, more):
    tasks = ("--tasks", "tag,classify", *LABELS, "--threshold", "0.99")
    places = {"txt": "texts", "xmp": "keywords", "webdataset": "a.tar", "caption": "captions"}
    for form, place in places.items():
        result = call(
            "annotate", folder / "red.png", *tasks, "--format", form, "--output", place, *more
        )
        assert result.exit_code == 0, (result.output, result.exception)
    with tarfile.open("a.tar") as archive:
        (name,) = (name for name in archive.getnames() if name.endswith(".txt"))
        packed = archive.extractfile(name).read().decode()
    texts = [next(Path(name).rglob("red.*")).read_text().strip() for name in ("texts", "captions")]
    assert texts == [packed.strip()] * 2
    named = texts[0].split(", ")
    keywords = next(Path("keywords").rglob("*.xmp")).read_text()
    keywords = keywords[keywords.index("subject") : keywords.rindex("subject")]
    assert [colour for colour in COLOURS if colour in keywords] == [
        colour for colour in COLOURS if colour in named
    ]
    if "--multi-label" not in more:
        assert len(named) == (2 if more else 1)
    assert named[0] == "red"
    # Where scores stand beside them, all are written.
    call("annotate", folder / "red.png", *tasks, "--output", "a.jsonl", "--label-threshold", "0")
    with open("a.jsonl", encoding="utf-8") as file:
        assert len(json.loads(file.readline())["labels"]) == 6


def test_a_policy_looks_at_labels_where_there_are_any(folder, models, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("rules:\n  - label: red\n    block: 0.5\n")
    pytest.importorskip("yaml")
    both = call(
        *("annotate", folder / "red.png", "--tasks", "tag,classify", *LABELS, "--json"),
        *("--policy", policy),
    )
    tags = call("annotate", folder / "red.png", "--tasks", "tag", "--policy", policy, "--json")
    for result in (both, tags):
        assert result.exit_code == 0, (result.output, result.exception)
        assert json.loads(result.stdout)["decision"]["action"] == "block"
    assert "--policy is for" in refused(
        *("annotate", folder, "--tasks", "embed", "--json", "--policy", policy)
    )


def test_a_catalogue_is_filled_and_added_to(folder, models, tmp_path):
    pytest.importorskip("lancedb")
    from annotary.catalog import Catalog

    path = tmp_path / "c"
    first = call("annotate", folder, "--tasks", "tag,embed", "--catalog", path)
    assert first.stderr.startswith("6 new and 0 changed annotated"), first.stderr
    second = call("annotate", folder, "--tasks", "tag,classify,embed", *LABELS, "--catalog", path)
    assert second.stderr.startswith("6 completed in ")
    third = call("annotate", folder, "--tasks", "classify", *LABELS, "--catalog", path)
    assert third.stderr.rstrip().endswith("; 6 unchanged")
    catalog = Catalog.open(path)
    assert catalog.count("array_has(tag_names, 'red')") == 3  # red, yellow, white
    assert catalog.count("label = 'blue'") == 1
    told = refused("annotate", folder, "--tasks", "tag", "--threshold", "0.3", "--catalog", path)
    assert "holds tags of other settings (threshold was 0.4, now 0.3)" in told
    again = ("annotate", folder, "--tasks", "tag", "--threshold", "0.3", "--replace-part")
    assert refused(*again) == "--replace-part is for --catalog"
    assert call(*again, "--catalog", path).stderr.startswith("6 completed in ")
    row = json.loads(call("search", "blue", "--catalog", path, "--json").stdout.splitlines()[0])
    assert row["labels"][0]["name"] == "blue"
    assert row["sources"] == dict.fromkeys(("tags", "labels", "embedding"), "small@1.0")


def test_what_makes_no_sense_is_told_in_a_line(folder, models):
    assert "--tasks must name what to do" in refused("annotate", folder)
    assert "but got 'dance'" in refused("annotate", folder, "--tasks", "tag,dance")
    assert "each once" in refused("annotate", folder, "--tasks", "tag,tag")
    told = refused("annotate", folder, "--tasks", "tag", *LABELS)
    assert told == "--labels is for --tasks classify"
    told = refused("annotate", folder, "--tasks", "embed", "--json", "--top", "3")
    assert told == "--top is for --tasks tag"
    told = refused("annotate", folder, "--tasks", "tag", "--embed-model", "other")
    assert told == "--embed-model is for --tasks embed"
    assert "--label-top must be" in refused(
        *("annotate", folder, "--tasks", "classify", *LABELS, "--label-top", "0")
    )
    assert "--catalog goes neither with" in refused(
        *("annotate", folder, "--tasks", "tag", "--catalog", "c", "--output", "a.jsonl")
    )
    told = refused("annotate", folder, "--tasks", "tag", "--tag-model", "other")
    assert told.startswith("other@1.0 is no tagger")


def test_the_catalogue_needs_its_extra(folder, models, monkeypatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    told = refused("annotate", folder, "--tasks", "tag", "--catalog", "c")
    assert "pip install 'annotary[catalog]'" in told
    assert not Path("c").exists()
    assert not models["asked"]
