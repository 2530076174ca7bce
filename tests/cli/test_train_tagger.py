"""`annotary train tagger`: from a recipe and a dataset to a checkpoint that `annotary tag` opens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

torch = pytest.importorskip("torch")
pytest.importorskip("pyarrow")

from annotary.cli import annotary, main  # noqa: E402
from annotary.errors import OutputError, UsageError  # noqa: E402
from annotary.training.recipe import recipe_names  # noqa: E402
from tests.training.small_dataset import STEM, make_dataset  # noqa: E402

RECIPE = f"""
name = "small"
extends = "joytag"
[data]
batch_size = 8
device_batch_size = 4
workers = 0
minimum_tags = 1
[network]
num_blocks = 1
patch_size = 4
d_model = 16
mlp_dim = 32
num_heads = 2
cnn_stem = "{STEM}"
[precision]
numbers = "fp32"
[[stages]]
image_size = 16
samples = 32
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    make_dataset(folder / "data")
    (folder / "small.toml").write_text(RECIPE, encoding="utf-8")
    return folder


def call(*arguments: object) -> Result:
    command = ["train", "tagger", *(str(argument) for argument in arguments), "--threads", "1"]
    return CliRunner().invoke(annotary, command)


def test_it_ends_with_the_checkpoint_and_how_to_use_it(place, tmp_path):
    run = call(place / "small.toml", "--data", place / "data", "--output", tmp_path / "run")
    assert run.exit_code == 0, run.output
    best = tmp_path / "run" / "checkpoints" / "samples_32"
    assert run.stdout == f"{best}\n"
    assert "stage 1: 32 samples of 16 px (1.3 passes), 4 steps of 8 (2 x 4)" in run.stderr
    assert "best checkpoint: mAP 0." in run.stderr
    assert f"annotary tag PHOTOS --model dir:{best}" in run.stderr

    photo = next((place / "data" / "originals").glob("*.png"))
    tagged = CliRunner().invoke(
        annotary, ["tag", str(photo), "--model", f"dir:{best}", "--threads", "1", "--json"]
    )
    assert tagged.exit_code == 0, tagged.output

    again = call(place / "small.toml", "--data", place / "data", "--output", tmp_path / "run")
    assert again.exit_code == 0
    assert again.stdout == run.stdout
    assert "the run was done before: 32 samples" in again.stderr
    assert "stage 1" not in again.stderr

    as_json = call(
        *(place / "small.toml", "--data", place / "data", "--output", tmp_path / "run"),
        *("--json", "--resume", "--quiet"),
    )
    told = json.loads(as_json.stdout)
    assert (told["best"], told["was_done"], told["samples"]) == (str(best), True, 32)
    assert as_json.stderr == ""

    with pytest.raises(OutputError, match=r"loss.kind was 'focal2' and is now 'bce'"):
        raise call(
            *(place / "small.toml", "--data", place / "data", "--output", tmp_path / "run"),
            *("--set", "loss.kind=bce", "--quiet"),
        ).exception


def test_a_plan_writes_nothing(place, tmp_path):
    planned = call(
        *(place / "small.toml", "--data", place / "data", "--output", tmp_path / "run"),
        *("--plan", "--json", "--set", "network.gradient_checkpointing=true"),
    )
    assert planned.exit_code == 0, planned.output
    plan = json.loads(planned.stdout)
    assert (plan["images"], plan["validation"], plan["tags"]) == (24, 10, 5)
    assert plan["parameters"] == plan["trained"] > 1000
    (stage,) = plan["stages"]
    assert (stage["steps"], stage["accumulation"], stage["device_batch_size"]) == (4, 2, 4)
    assert stage["samples_per_second"] > 0
    assert stage["loader_samples_per_second"] > 0
    assert stage["memory"] > 16 * plan["parameters"]
    assert plan["hours"] == stage["hours"] > 0
    assert not (tmp_path / "run").exists()
    whole = call(place / "small.toml", "--data", place / "data", "--plan")
    assert whole.stdout.splitlines()[0] == (
        "recipe small: 24 images to learn from and 10 to measure on, 5 tags"
    )
    assert whole.stdout.splitlines()[-1] == "expected: under a minute"


def test_recipes_are_listed():
    listed = call("--recipes")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == recipe_names()


def test_what_is_missing_is_told(place, tmp_path):
    assert "say RECIPE" in call().stderr
    assert "say --data DIR" in call("joytag").stderr
    assert "say --output" in call("joytag", "--data", place / "data").stderr
    with pytest.raises(UsageError, match="unknown recipe 'joytgas'; known: "):
        raise call("joytgas", "--data", place, "--output", tmp_path).exception
    with pytest.raises(UsageError, match="no finished dataset"):
        raise call("joytag", "--data", tmp_path, "--output", tmp_path / "run").exception
    with pytest.raises(UsageError, match="holds no run to go on with"):
        raise call(
            *(place / "small.toml", "--data", place / "data", "--output", tmp_path / "run"),
            *("--resume", "--quiet"),
        ).exception


def test_help_tells_the_way_to_several_gpus():
    shown = CliRunner().invoke(annotary, ["train", "tagger", "--help"])
    assert shown.exit_code == 0
    assert "torchrun --nproc-per-node 8 -m annotary train tagger" in " ".join(shown.output.split())


def test_a_dataset_without_validation_images_is_warned_of(place, tmp_path):
    make_dataset(tmp_path / "data", validation=0)
    planned = call(place / "small.toml", "--data", tmp_path / "data", "--plan")
    assert planned.stdout.splitlines()[-1].startswith(
        "warning: the dataset has no images to measure"
    )
    assert "warning" not in call(place / "small.toml", "--data", place / "data", "--plan").output


@pytest.mark.parametrize("plan", [True, False])
def test_fine_tuning_needs_a_start(plan, place, tmp_path):
    more = ("--plan",) if plan else ()
    with pytest.raises(
        UsageError, match=r"recipe finetune fine-tunes.*network.start=dir:CHECKPOINT"
    ):
        raise call(
            "finetune", "--data", place / "data", "--output", tmp_path / "run", *more
        ).exception
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_is_refused_before_the_plan(place, tmp_path, monkeypatch):
    def measured(*arguments):
        raise AssertionError("the plan was measured")

    monkeypatch.setattr("annotary.training.plan.make_plan", measured)
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    common = (place / "small.toml", "--data", place / "data", "--output")
    with pytest.raises(OutputError, match=r"cannot write .*run: "):
        raise call(*common, tmp_path / "file" / "run").exception
    with pytest.raises(OutputError, match="holds something else"):
        raise call(*common, tmp_path).exception
    with pytest.raises(UsageError, match="holds no run to go on with"):
        raise call(*common, tmp_path / "run", "--resume").exception
    assert not (tmp_path / "run").exists()


def test_keys_without_effect_are_warned_of(place, tmp_path):
    made = call(place / "small.toml", "--data", place / "data", "--output", tmp_path / "a")
    start = ("--set", f"network.start=dir:{made.stdout.strip()}", "--set", "network.d_model=32")
    planned = call(place / "small.toml", "--data", place / "data", "--plan", *start)
    assert planned.exit_code == 0, planned.output
    told = planned.stderr.splitlines()[0]
    assert told.startswith("warning: network.num_blocks, network.patch_size, network.d_model")
    assert "have no effect beside network.start" in told


def test_images_that_failed_are_an_exit_code_of_1_when_all_is_kept(tmp_path):
    data = make_dataset(tmp_path / "data")
    Path(data.train.images[3]).write_bytes(b"no picture")
    (tmp_path / "small.toml").write_text(RECIPE, encoding="utf-8")
    command = ["train", "tagger", str(tmp_path / "small.toml"), "--data", str(tmp_path / "data")]
    command += ["--output", str(tmp_path / "run"), "--no-plan", "--threads", "1"]
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 1
    assert (tmp_path / "run" / "checkpoints" / "samples_32" / "model.safetensors").exists()
