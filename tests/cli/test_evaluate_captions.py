"""`annotary evaluate captions`: captions of files and of models, against references, images and what people think."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result

from annotary import errors
from annotary.evaluation.captions import measure_captions
from annotary.registry import load
from annotary.runtime import RuntimeOptions
from annotary.tasks.writing import Decoding, Written
from tests.cli.test_evaluate import Command, embedded, paint
from tests.cli.test_tag import annotary
from tests.small_encoder import COLOURS, SmallEncoder

SAID = {
    "red": ("a red wall", "the wall is painted red"),
    "green": ("a green field of grass", "green grass in the sun"),
    "blue": ("the blue sea", "a blue sky over the sea"),
    "white": ("a white house", "white snow on a house"),
}


class Describer(SmallEncoder):
    """Says which colour of all that it knows is the nearest to an image."""

    def check_prompt(self, prompt: str, decoding: Decoding) -> None:
        """Any prompt will do."""

    def write_captions(
        self, batch: npt.NDArray[np.generic], prompts: Sequence[str], decoding: Decoding
    ) -> list[list[Written]]:
        """One caption an image."""
        means = 255 * batch.mean(axis=(2, 3))
        known = np.array([COLOURS[name] for name in SAID])
        nearest = ((means[:, None] - known[None]) ** 2).sum(axis=2).argmin(axis=1)
        return [[Written(SAID[[*SAID][place]][0], 0.5)] for place in nearest]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs the command in this process with small models."""
    monkeypatch.chdir(tmp_path)

    def loaded(name: str, options: RuntimeOptions) -> Any:
        model = (
            Describer(name=name, most_words=8) if name == "describer" else SmallEncoder(name=name)
        )
        return SimpleNamespace(model=model, weights="w", fingerprint="f")

    monkeypatch.setattr("annotary.cli._evaluate_captions.loaded", loaded)

    def call(*arguments: object) -> Result:
        told = [str(argument) for argument in ("captions", *arguments)]
        result = CliRunner().invoke(load("cli", "evaluate").command, told)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def references(tmp_path: Path) -> Path:
    """Four photos with two captions each."""
    rows = []
    for name, said in SAID.items():
        paint(tmp_path / "photos" / f"{name}.png", COLOURS[name])
        rows.append({"image": f"photos/{name}.png", "captions": list(said), "split": "dev"})
    path = tmp_path / "references.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_captions_of_a_file(run, references, tmp_path):
    texts = ["a red house", "green grass in the sun", "the sea", "a white house"]
    rows = [
        {"image": f"photos/{name}.png", "captions": [text, "other"]}
        for name, text in zip(SAID, texts, strict=True)
    ]
    rows.append({"image": "photos/other.png", "captions": ["left out"]})
    made = write(tmp_path / "made.jsonl", rows)
    report = tmp_path / "report.json"
    result = run(references, "--predictions", made, "--output", report, "--json", "--seed", 3)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told == json.loads(report.read_text())
    expected = measure_captions(texts, range(4), [list(said) for said in SAID.values()])
    values = {name: one["value"] for name, one in told["metrics"].items()}
    assert values == pytest.approx(expected.metrics())
    low, high = told["metrics"]["cider_d"]["interval"]
    assert [low, high] == pytest.approx(list(expected.intervals(seed=3)["cider_d"]))
    assert low < values["cider_d"] < high
    assert (told["images"], told["captions"], told["references"]) == (4, 4, 8)
    assert told["unknown_images"] == 1
    assert "captions of images that the references do not have, left out: 1" in result.stderr
    # the images are there, so the starter says how well captions fit
    encoder = SmallEncoder()
    paths = [tmp_path / "photos" / f"{name}.png" for name in SAID]
    images = embedded(encoder, paths)
    vectors = encoder.embed_texts([f"A photo depicts {text}" for text in texts]).vectors
    scores = 2.5 * np.maximum((images * vectors).sum(axis=1), 0)
    assert told["scorer"]["model"] == "starter@1.0"
    assert told["scorer"]["clip_score"]["value"] == pytest.approx(scores.mean(), abs=1e-5)
    assert told["scorer"]["ref_clip_score"]["value"] > 0
    mismatched = told["scorer"]["mismatched_clip_score"]["value"]
    assert mismatched < told["scorer"]["clip_score"]["value"]
    assert told["judgements"] is None
    shown = run(references, "--predictions", made).stdout.splitlines()
    assert shown[0].endswith("references.jsonl: 4 images, 4 captions, 8 references, " + str(made))
    assert [line.split()[0] for line in shown[3:9]] == [
        *("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D"),
    ]
    assert shown[8].endswith("; what papers call CIDEr")
    assert "CLIPScore of another image" in shown[-1]


def test_captions_that_a_model_writes(run, references, tmp_path):
    (tmp_path / "photos" / "white.png").write_bytes(b"no image")
    result = run(references, "--model", "describer", "--scorer", "none", "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["model"] == "describer@1.0"
    assert told["images"] == 3
    assert told["metrics"]["bleu_1"]["value"] == pytest.approx(1.0, abs=1e-6)
    assert told["scorer"] is None
    assert told["without_caption"] == []
    assert [one["image"] for one in told["failures"]] == [str(tmp_path / "photos" / "white.png")]
    assert "images that could not be read, of all: 1" in result.stderr
    with pytest.raises(errors.UsageError, match="writes no captions"):
        run(references, "--model", "small")
    for name in SAID:
        (tmp_path / "photos" / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(errors.NothingToDo, match="no image could be read"):
        run(references, "--model", "describer")


def test_what_people_think(run, references, tmp_path):
    rows = [
        {
            "image": f"photos/{name}.png",
            "caption": f"a {colour} thing",
            "rating": [rating, rating + 1],
        }
        for name in SAID
        for colour, rating in ((name, 3), ("black", 1))
    ]
    judged = write(tmp_path / "judged.jsonl", rows)
    result = run(references, "--predictions", judged, "--judgements", "rating", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["judgements"]["captions"] == 8
    by_metric = told["judgements"]["correlations"]
    assert set(by_metric) == {*told["metrics"], "clip_score", "ref_clip_score"}
    assert by_metric["clip_score"]["pairs"] == 16
    for name in ("bleu_1", "cider_d", "clip_score"):
        assert by_metric[name]["kendall_c"] > 0.3, name
        assert by_metric[name]["spearman"] > 0.3, name
    # without references there are the images alone
    alone = run(judged, "--judgements", "rating", "--json")
    found = json.loads(alone.stdout)
    assert found["metrics"] is None
    assert found["judgements"]["correlations"]["clip_score"] == by_metric["clip_score"]
    assert "agreement with rating" in run(judged, "--judgements", "rating").stdout
    (tmp_path / "photos" / "red.png").unlink()
    less = run(judged, "--judgements", "rating", "--scorer", "small", "--json")
    assert less.exit_code == 1
    assert json.loads(less.stdout)["judgements"]["correlations"]["clip_score"]["pairs"] == 12


def test_images_without_captions_and_captions_without_images(run, references, tmp_path):
    rows = [{"image": f"photos/{name}.png", "caption": said[0]} for name, said in SAID.items()][:3]
    made = write(tmp_path / "made.jsonl", rows)
    result = run(references, "--predictions", made, "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 1
    assert told["without_caption"] == [str(tmp_path / "photos" / "white.png")]
    assert told["images"] == 3
    assert "images without a caption, which count nowhere: 1" in result.stderr
    for name in SAID:
        (tmp_path / "photos" / f"{name}.png").unlink()
    told = run(references, "--predictions", made, "--json", "--split", "dev")
    assert json.loads(told.stdout)["scorer"] is None
    assert "is not there, so no model says how well captions fit; --images says" in told.stderr
    with pytest.raises(errors.NothingToDo, match="no image could be read"):
        run(references, "--predictions", made, "--scorer", "small")


def test_one_image_is_too_few_for_cider(run, references, tmp_path):
    made = write(tmp_path / "made.jsonl", [{"image": "photos/red.png", "caption": "a red wall"}])
    result = run(references, "--predictions", made)
    assert "CIDEr-D" in result.stdout
    assert "is not defined for one image" in result.stdout
    told = json.loads(run(references, "--predictions", made, "--json").stdout)
    assert told["metrics"]["cider_d"] is None
    assert told["scorer"]["mismatched_clip_score"] is None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "--predictions FILE or --model NAME"),
        (("--predictions", "made.jsonl", "--model", "describer"), "choose one"),
        (("--predictions", "made.jsonl", "--beams", "2"), "--beams: only with --model"),
        (("--model", "describer", "--judgements", "rating"), "leave out --model"),
        (("--judgements", "rating", "--split", "dev"), "--split is for references"),
        (("--judgements", "rating"), "no column 'rating'"),
        (("--predictions", "none.jsonl"), "no such file"),
        (("--predictions", "made.jsonl", "--judgements", "rating"), "no column 'rating'"),
    ],
)
def test_what_makes_no_sense_is_one_line(run, references, tmp_path, arguments, told):
    write(tmp_path / "made.jsonl", [{"image": "photos/red.png", "caption": "a red wall"}])
    with pytest.raises(errors.UsageError, match=told) as error:
        run(references, *arguments)
    assert "\n" not in str(error.value)


def test_other_files_are_not_written_over(run, references, tmp_path):
    made = write(tmp_path / "made.jsonl", [{"image": "photos/red.png", "caption": "a red wall"}])
    with pytest.raises(errors.UsageError, match="no report of `annotary evaluate captions`"):
        run(references, "--predictions", made, "--output", made)


def test_the_starter_from_the_shell(tmp_path, monkeypatch):
    examples = Path(__file__).parents[2] / "examples"
    monkeypatch.chdir(tmp_path)
    rows = ["image,caption"]
    for name in ("cat", "boats", "flower", "mountains", "raccoon", "rocket"):
        (tmp_path / f"{name}.jpg").write_bytes((examples / f"{name}.jpg").read_bytes())
        rows.append(f"{name}.jpg,a photo of a {name}")
    (tmp_path / "references.csv").write_text("\n".join(rows))
    made = annotary(
        "evaluate", "captions", "references.csv", "--predictions", "references.csv", "--json"
    )
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert told["metrics"]["cider_d"]["value"] > 5
    scorer = told["scorer"]
    assert scorer["clip_score"]["interval"][0] > scorer["mismatched_clip_score"]["interval"][1]
    made = annotary("evaluate", "captions", "none.csv", "--predictions", "references.csv")
    assert made.returncode == 2
    assert made.stderr == "annotary: no such file or folder: 'none.csv'\n"


def test_a_seed_below_0_is_refused_before_anything_is_worked_out(run, references):
    found = run(references, "--model", "describer", "--seed", -1)
    assert found.exit_code == 2
    assert "not in the range" in found.stderr
