"""`annotary classify`, `annotary embed` and `annotary compare` as a user meets them, with the model that ships."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from annotary.records import Annotation, from_line
from tests.cli.test_tag import annotary, complaint

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
LABELS = "a cat, boats, a cup of coffee, a rocket, mountains"
TRUE = {
    "cat.jpg": "a cat",
    "boats.jpg": "boats",
    "coffee.jpg": "a cup of coffee",
    "rocket.jpg": "a rocket",
    "mountains.jpg": "mountains",
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five of the photographs of the README."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in TRUE:
        shutil.copy(EXAMPLES / name, folder)
    return folder


def records(text: str) -> dict[str, Annotation]:
    found = [from_line(line) for line in text.splitlines()]
    return {Path(record.image).name: record for record in found if isinstance(record, Annotation)}


def test_labels_that_compete_are_printed_the_best_first(pictures):
    result = annotary("classify", pictures, "--labels", LABELS)
    assert result.returncode == 0, result.stderr
    lines = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    best = {
        Path(path).name: told.rsplit(", ", 4)[0].rsplit(" ", 1)[0] for path, told in lines.items()
    }
    assert best == TRUE
    assert result.stderr.startswith("5 classified in ")


def test_records_hold_all_labels_and_their_scores_sum_to_one(pictures):
    result = annotary("classify", pictures, "--labels", LABELS, "--json", "--quiet")
    found = records(result.stdout)
    assert {name: record.labels[0].name for name, record in found.items()} == TRUE
    for record in found.values():
        assert len(record.labels) == 5
        assert sum(label.score for label in record.labels) == pytest.approx(1.0, abs=1e-5)
        assert record.sources["labels"].startswith("starter@")


def test_words_without_scores_get_the_best_label(pictures):
    result = annotary("classify", pictures, "--labels", LABELS, "--format", "txt")
    assert result.returncode == 0, result.stderr
    assert (pictures / "cat.txt").read_text() == "a cat\n"
    assert (pictures / "rocket.txt").read_text() == "a rocket\n"


def test_an_ontology_with_several_prompts_and_none_of_these(pictures):
    Path("ontology.yaml").write_text(
        "a photo of a kitten: animal\na photo of a cat: animal\nvehicle: [a rocket, a boat]\n"
    )
    command = (
        "classify",
        pictures,
        "--ontology",
        "ontology.yaml",
        "--none-label",
        "other",
        "--json",
    )
    result = annotary(*command, "--quiet")
    assert result.returncode == 0, result.stderr
    found = records(result.stdout)
    assert found["cat.jpg"].labels[0].name == "animal"
    assert found["boats.jpg"].labels[0].name == "vehicle"
    assert {label.name for label in found["coffee.jpg"].labels} == {"animal", "vehicle", "other"}


def test_labels_of_each_image_by_itself(pictures):
    with Path("labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("image", "labels"), ("cat.jpg", "a cat, a dog"), (f"{pictures}/boats.jpg", "boats")]
        )
    result = annotary("classify", pictures, "--labels-from", "labels.csv", "--json", "--quiet")
    found = records(result.stdout)
    assert {label.name for label in found["cat.jpg"].labels} == {"a cat", "a dog"}
    assert [label.name for label in found["boats.jpg"].labels] == ["boats"]
    assert found["rocket.jpg"].labels == ()
    assert found["rocket.jpg"].sources
    told = annotary("classify", pictures, "--labels-from", "labels.csv").stderr
    assert "3 images are not in labels.csv, so they got no labels" in told


def test_what_a_user_may_not_have_meant_is_told(pictures):
    one = annotary("classify", pictures, "--labels", "a cat")
    assert one.returncode == 0
    assert "one label alone always wins: say --none-label NAME, or --multi-label" in one.stderr
    long = annotary("classify", pictures, "--labels", f"cat, {'word ' * 400}")
    assert "longer than starter@" in long.stderr
    assert max(map(len, long.stderr.splitlines())) < 200
    assert "one label" not in long.stderr
    told = annotary("compare", pictures / "cat.jpg", "cat", "word " * 400)
    assert "does not read all of 'word word" in told.stderr
    assert "api.py" not in told.stderr


def test_a_stopped_run_goes_on_and_other_labels_are_refused(pictures):
    command = ("classify", pictures, "--labels", LABELS, "--output", "labels.jsonl")
    first = annotary(*command, "--include-files", "[a-c]*")
    assert first.stderr.startswith("3 classified in ")
    second = annotary(*command)
    assert second.stderr.startswith("2 classified in ")
    assert "3 done before" in second.stderr
    assert len(Path("labels.jsonl").read_text().splitlines()) == 5
    assert "labels" in complaint(
        annotary("classify", pictures, "--labels", "cat, dog", "--output", "labels.jsonl")
    )


def test_texts_are_remembered_between_runs(pictures):
    command = ("classify", pictures, "--labels", LABELS, "--json", "--quiet")
    first = records(annotary(*command).stdout)
    (remembered,) = Path("annotary-cache/texts").glob("*.sqlite")
    before = remembered.read_bytes()
    second = records(annotary(*command).stdout)
    assert remembered.read_bytes() == before
    for name, record in first.items():
        scores = {label.name: label.score for label in second[name].labels}
        # Images that come in other batches differ in the last bits.
        assert scores == pytest.approx({n.name: n.score for n in record.labels}, abs=1e-4)
    shutil.rmtree("annotary-cache")
    annotary(*command, "--no-text-cache")
    assert not Path("annotary-cache").exists()


def test_a_broken_image_is_listed_and_the_run_goes_on(pictures):
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    result = annotary("classify", pictures, "--labels", LABELS, "--output", "labels.csv")
    assert result.returncode == 1
    assert "5 classified" in result.stderr
    assert json.loads(Path("failures.jsonl").read_text())["image"].endswith("broken.jpg")
    with Path("labels.csv").open(newline="") as file:
        rows = {Path(row["image"]).name: row for row in csv.DictReader(file)}
    assert rows["cat.jpg"]["labels"].startswith("a cat")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say the labels in one way, with --labels"),
        (("--labels", " , "), "there are no labels"),
        (("--labels", "a", "--labels-file", "x"), "got --labels, --labels-file"),
        (("--labels-file", "missing.txt"), "missing.txt: No such file"),
        (("--labels-file", "labels.yaml"), "labels.yaml is no list of labels but an ontology"),
        (
            ("--labels", "cat", "--template", "a photo"),
            "--template must have {} where the label goes",
        ),
        (("--labels", "cat", "--threshold", "2"), "--threshold must be in 0..1"),
        (("--labels", "cat", "--none-label", "cat"), "none_label must differ from the labels"),
        (("--labels", "cat", "--templates", "missing.txt"), "missing.txt"),
        (("--labels", "cat", "--policy", "missing.yaml"), "missing.yaml"),
        (("--labels", "cat", "--model", "no-such-model"), "no-such-model"),
    ],
)
def test_what_makes_no_sense_is_one_line(pictures, arguments, message):
    assert message in complaint(annotary("classify", pictures, *arguments))


def test_a_tagger_is_told_to_know_no_texts(pictures, colours):
    told = complaint(annotary("classify", pictures, "--labels", "a", "--model", f"dir:{colours}"))
    assert "does not know texts; choose a model that embeds images and texts" in told


def test_a_matrix_and_its_rows(pictures):
    pytest.importorskip("pyarrow")
    result = annotary("embed", pictures, "--output", "vectors.npy")
    assert result.returncode == 0, result.stderr
    vectors = np.load("vectors.npy", mmap_mode="r")
    assert vectors.shape[0] == 5
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    printed = records(annotary("embed", pictures, "--json", "--quiet").stdout)
    vector = printed["boats.jpg"].embedding
    assert vector is not None
    np.testing.assert_allclose(vectors[0], vector.vector, atol=1e-6)


def test_vectors_have_to_go_somewhere(pictures):
    assert "say one of --output FILE" in complaint(annotary("embed", pictures))


def test_images_and_texts_are_compared(pictures):
    cat = pictures / "cat.jpg"
    result = annotary("compare", cat, "a photo of a cat", "a photo of a boat", cat, "--json")
    assert result.returncode == 0, result.stderr
    like, unlike, same = map(json.loads, result.stdout.splitlines())
    assert like["cosine"] > unlike["cosine"]
    assert like["probability"] > 0.5 > unlike["probability"]
    assert same["cosine"] == pytest.approx(1.0, abs=1e-5)
    assert "probability" not in same
    assert "match" in annotary("compare", "text:a cat", cat).stdout


def test_a_missing_image_is_no_text(pictures):
    told = complaint(annotary("compare", pictures / "missing.jpg", "a cat"))
    assert "no such file" in told
    assert "text:" in told
