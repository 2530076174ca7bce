"""`annotary train probe`: from a dataset to a model with a new head that `annotary tag` opens."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest
from click.testing import CliRunner, Result

torch = pytest.importorskip("torch")
pytest.importorskip("pyarrow")
pytest.importorskip("onnx")

from annotary.cards import read_vocabulary  # noqa: E402
from annotary.cli import Stopped, annotary, main  # noqa: E402
from annotary.cli._options import help_texts  # noqa: E402
from annotary.errors import OutputError, UsageError  # noqa: E402
from annotary.evaluation import tagging  # noqa: E402
from annotary.training import feature_cache, probe_run  # noqa: E402
from annotary.training.dataset.index import TagDataset  # noqa: E402
from annotary.training.probe_recipe import ProbeRecipe  # noqa: E402
from tests.taggers import make_joytag  # noqa: E402
from tests.training.small_dataset import COLOURS, TAGS, make_dataset  # noqa: E402


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    make_dataset(folder / "data")
    return folder


def call(place, output, *arguments: object, model: str = "starter") -> Result:
    command = (
        *("train", "probe", "--data", place / "data", "--output", output, "--threads", "1"),
        *("--model", model, "--epochs", "200", *arguments),
    )
    return CliRunner().invoke(annotary, [str(argument) for argument in command])


def computed(monkeypatch) -> list[int]:
    """How many images the network is asked for, from here on."""
    found: list[int] = []
    before = feature_cache.to_batch
    monkeypatch.setattr(
        feature_cache,
        "to_batch",
        lambda images, *more: found.append(len(images)) or before(images, *more),
    )
    return found


def test_it_ends_with_a_model_and_how_to_use_it(place, tmp_path, monkeypatch):
    asked = computed(monkeypatch)
    run = call(place, tmp_path / "run")
    assert run.exit_code == 0, run.output
    tagger = tmp_path / "run" / "tagger"
    assert run.stdout == f"{tagger}\n"
    assert "24 images to learn from and 10 to measure on, 5 tags" in run.stderr
    assert "on 10 validation images: mAP " in run.stderr
    assert f"use it: annotary tag PHOTOS --model dir:{tagger}" in run.stderr
    assert sum(asked) == 34

    vocabulary = read_vocabulary(tagger)
    assert vocabulary.names == TAGS
    assert set(vocabulary.categories) == {"shape", "colour"}
    assert len(set(vocabulary.thresholds["balanced"])) > 1

    again = call(place, tmp_path / "run")
    assert (again.exit_code, again.stdout) == (0, run.stdout)
    assert "the run was done before" in again.stderr
    assert sum(asked) == 34
    told = json.loads(call(place, tmp_path / "run", "--json", "--resume", "--quiet").stdout)
    assert (told["tagger"], told["images"], told["validation"], told["was_done"]) == (
        *(str(tagger), 24, 10, True),
    )
    assert told["metrics"].keys() >= {"loss", "map", "macro_f1", "micro_f1", "fitted_macro_f1"}


def test_what_is_measured_is_what_the_model_does(place, tmp_path):
    assert call(place, tmp_path / "run").exit_code == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    dataset = TagDataset(place / "data")
    rows = np.arange(len(dataset.validation))
    photos = [str(dataset.validation.path(row)) for row in rows]
    tagged = CliRunner().invoke(
        annotary, ["tag", *photos, "--model", f"dir:{tmp_path / 'run' / 'tagger'}", "--json"]
    )
    assert tagged.exit_code == 0, tagged.output
    found = {line["image"]: line["tags"] for line in map(json.loads, tagged.stdout.splitlines())}
    given = np.array(
        [[tag in {one["name"] for one in found[photo]} for tag in TAGS] for photo in photos]
    )
    counts = tagging.TagCounts(len(TAGS))
    counts.update(given, dataset.validation.targets(rows).astype(bool))
    assert counts.macro().f1 == pytest.approx(metrics["fitted_macro_f1"])
    assert counts.micro().f1 == pytest.approx(metrics["fitted_micro_f1"])
    colours = [TAGS.index(colour) for colour in COLOURS]
    assert counts.rates().f1[colours].min() > 0.7


def test_a_stopped_run_goes_on_to_the_same_bits(place, tmp_path, monkeypatch):
    whole = call(place, tmp_path / "whole", "--views", "2")
    assert whole.exit_code == 0, whole.output
    monkeypatch.setattr(feature_cache, "_IN_A_PART", 8)
    before, done = probe_run.cached_features, []

    def stopped(*arguments, report, **more):
        def stop(count, of):
            done.append(count)
            if count == 16:
                raise KeyboardInterrupt

        return before(*arguments, report=stop, **more)

    with monkeypatch.context() as patched:
        patched.setattr(probe_run, "cached_features", stopped)
        assert isinstance(call(place, tmp_path / "run", "--views", "2").exception, Stopped)
    assert done == [8, 16]
    asked = computed(monkeypatch)
    assert call(place, tmp_path / "run", "--views", "2", "--resume").exit_code == 0
    assert sum(asked) == 2 * 8 + 10  # two views of what is missing, and the validation images
    for name in ("model.onnx", "tags.csv"):
        files = [tmp_path / run / "tagger" / name for run in ("run", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_other_settings_are_refused(place, tmp_path):
    assert call(place, tmp_path / "run").exit_code == 0
    with pytest.raises(OutputError, match=r"run of other settings \(views was 1 and is now 2\)"):
        raise call(place, tmp_path / "run", "--views", "2").exception
    make_joytag(tmp_path / "joytag")
    place_of_run = tmp_path / "run" / "run.json"
    told = json.loads(place_of_run.read_text())
    del told["recipe"]["unknown"]  # a run that is older than a setting was made as its default says
    place_of_run.write_text(json.dumps(told))
    assert "the run was done before" in call(place, tmp_path / "run").output
    with pytest.raises(OutputError, match=r"\(unknown was 0\.0 and is now 0\.5\)"):
        raise call(place, tmp_path / "run", "--unknown", "0.5").exception
    with pytest.raises(OutputError, match=r"fingerprint was .* and is now .*model was 'starter@"):
        raise call(place, tmp_path / "run", model=f"dir:{tmp_path / 'joytag'}").exception
    with pytest.raises(UsageError, match="holds no run to go on with"):
        raise call(place, tmp_path / "new", "--resume").exception
    with pytest.raises(UsageError, match="--views must be 1 or 2, but got 3"):
        raise call(place, tmp_path / "new", "--views", "3").exception
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(OutputError, match="holds something else"):
        raise call(place, tmp_path / "full").exception


def test_images_that_cannot_be_read_count_nothing_and_are_tried_again(tmp_path, capsys):
    data = make_dataset(tmp_path / "data")
    model = f"dir:{make_joytag(tmp_path / 'joytag')}"
    lost = data.train.path(3)
    moved = lost.rename(tmp_path / "moved.png")
    arguments = ["train", "probe", "--data", str(tmp_path / "data"), "--model", model]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--output", str(tmp_path / "run"), "--threads", "1", "--epochs", "200"])
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert "1 images could not be read and count nothing; see" in told
    (line,) = (tmp_path / "run" / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["image"] == str(lost)
    moved.rename(lost)
    again = json.loads(call(tmp_path, tmp_path / "run", "--json", model=model).stdout)
    assert (again["images"], again["failed"], again["was_done"]) == (24, 0, False)
    assert (tmp_path / "run" / "failures.jsonl").read_text() == ""
    assert {path.name for path in (tmp_path / "run" / "tagger").iterdir()} >= {
        *("config.json", "model.safetensors", "top_tags.txt", "card.toml"),
    }
    for row in range(len(data.train)):
        data.train.path(row).unlink()
    with pytest.raises(UsageError, match=r"no image to learn from could be read: .*png"):
        raise call(tmp_path, tmp_path / "third", model=model).exception


def test_every_option_has_a_help_text():
    assert set(help_texts(ProbeRecipe)) == {entry.name for entry in fields(ProbeRecipe)}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("epochs", 0), ("batch_size", 0), ("learning_rate", 0.0), ("dropout", 1.0)),
        *(
            ("weight_decay", -1.0),
            ("unknown", 1.1),
            ("seed", -1),
            ("seed", 2**63),
            ("weight_decay", float("inf")),
            ("model", ""),
            ("learning_rate", float("nan")),
        ),
    ],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must"):
        ProbeRecipe(**{name: value})
