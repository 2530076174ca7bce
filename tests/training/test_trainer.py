"""Training runs: going on after any stop with the same bits, checkpoints that tag, learning, stages, refusals."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pyarrow")

from annotary.errors import OutputError, UsageError  # noqa: E402
from annotary.models import find, load_model  # noqa: E402
from annotary.models.joytag import describe, load  # noqa: E402
from annotary.runtime import RuntimeOptions  # noqa: E402
from annotary.training import trainer as trainer_module  # noqa: E402
from annotary.training._learning import Learner, Stepped  # noqa: E402
from annotary.training._metering import Meter  # noqa: E402
from annotary.training.checkpoints import whole_checkpoints  # noqa: E402
from annotary.training.dataset.index import TagDataset  # noqa: E402
from annotary.training.plan import plan_stages  # noqa: E402
from annotary.training.recipe import TaggerRecipe  # noqa: E402
from annotary.training.trainer import Trainer  # noqa: E402
from tests.conftest import child_environment  # noqa: E402
from tests.training.small_dataset import TAGS, make_dataset, small_recipe  # noqa: E402

EVERYTHING = (
    "averaging.decay=0.9",
    "augmentation.mixup=0.4",
    "loss.label_smoothing=0.1",
    "network.patch_dropout=0.25",
    "optimiser.kind=adamw",
    "schedule.warm_up=16",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TagDataset:
    torch.set_num_threads(1)
    return make_dataset(tmp_path_factory.mktemp("dataset"))


def train(recipe: TaggerRecipe, dataset: TagDataset, output: Path) -> trainer_module.TrainingResult:
    return Trainer(recipe, dataset, output, quiet=True).run()


def losses(output: Path) -> list[tuple[str, ...]]:
    """Stage, step, samples, loss, learning rate, and length of the gradient of each step, with all digits."""
    with (output / "steps.csv").open(encoding="utf-8") as file:
        return [tuple(row[:6]) for row in csv.reader(file)]


def measured(output: Path) -> list[tuple[str, ...]]:
    with (output / "validation.csv").open(encoding="utf-8") as file:
        return [tuple(row[:-1]) for row in csv.reader(file)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


class Stop(BaseException):
    """What ends a run in the middle, as a signal would."""


def stop_at_part(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """End the run when it prepares its so manyth part, so that some parts of a batch are done and others not."""
    seen = 0
    prepare = Learner._prepared

    def prepared(self, part, place):
        nonlocal seen
        seen += 1
        if seen == number:
            raise Stop
        return prepare(self, part, place)

    monkeypatch.setattr(Learner, "_prepared", prepared)


@pytest.mark.parametrize("changed", [(), EVERYTHING], ids=["joytag", "everything"])
def test_a_run_that_is_stopped_again_and_again_has_the_same_bits(changed, dataset, tmp_path):
    recipe = small_recipe(*changed)
    whole = train(recipe, dataset, tmp_path / "whole")
    output = tmp_path / "stopped"
    # Ten steps of two parts each. The stops are in the middle of a batch and between two, before the first checkpoint,
    # after one, in the second stage, and one comes before the run has got any further.
    stops = 0
    for part in (2, 6, 1, 7, 9, 2, 3):
        with pytest.MonkeyPatch.context() as patch:
            stop_at_part(patch, part)
            torch.manual_seed(part)  # what others draw must not matter
            with pytest.raises(Stop):
                train(recipe, dataset, output)
            stops += 1
    assert stops == 7
    again = train(recipe, dataset, output)
    assert losses(output) == losses(tmp_path / "whole")
    assert len(losses(output)) == 11
    assert measured(output) == measured(tmp_path / "whole")
    assert again.best.name == whole.best.name
    for name, value in weights(whole.last).items():
        assert torch.equal(value, weights(again.last)[name]), name


def test_a_stop_right_after_a_checkpoint_loses_no_measurement(dataset, tmp_path):
    recipe = small_recipe("validation.every=16", "stages=[{image_size=16, samples=48}]")
    train(recipe, dataset, tmp_path / "whole")
    save = trainer_module.Checkpoints.save

    def saved(self, *arguments, **more):
        save(self, *arguments, **more)
        raise Stop

    for _ in range(3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer_module.Checkpoints, "save", saved)
            with pytest.raises(Stop):
                train(recipe, dataset, tmp_path / "stopped")
    assert train(recipe, dataset, tmp_path / "stopped").was_done
    assert measured(tmp_path / "stopped") == measured(tmp_path / "whole")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert len(measured(tmp_path / "whole")) == 4


def test_a_killed_process_goes_on_with_the_same_bits(dataset, tmp_path):
    recipe = small_recipe("averaging.decay=0.9", "checkpoints.every=8", "checkpoints.keep=1")
    train(recipe, dataset, tmp_path / "whole")
    code = (
        "import os, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from annotary.training.checkpoints import Checkpoints\n"
        "from annotary.training.dataset.index import TagDataset\n"
        "from annotary.training.trainer import Trainer\n"
        "from annotary.training import checkpoints\n"
        "from tests.training.small_dataset import small_recipe\n"
        "torch.set_num_threads(1)\n"
        "data, output, when, *changed = sys.argv[1:]\n"
        "left = int(when)\n"
        "sync = checkpoints._sync\n"
        "def synced(path):\n"
        "    global left\n"
        "    left -= 1\n"
        "    if left == 0:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    sync(path)\n"
        "checkpoints._sync = synced\n"
        "Trainer(small_recipe(*changed), TagDataset(Path(data)), Path(output), quiet=True).run()\n"
    )
    output = tmp_path / "killed"
    # Within the writing of checkpoints, where most can go wrong: in the first, and in a later one.
    for when in (3, 21):
        changed = ("averaging.decay=0.9", "checkpoints.every=8", "checkpoints.keep=1")
        command = [
            sys.executable,
            "-c",
            code,
            str(dataset.folder),
            str(output),
            str(when),
            *changed,
        ]
        environment = child_environment()
        environment["PYTHONPATH"] = os.pathsep.join(
            (str(Path(__file__).parents[2]), environment.get("PYTHONPATH", ""))
        )
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    train(recipe, dataset, output)
    assert losses(output) == losses(tmp_path / "whole")
    names = [one.folder.name for one in whole_checkpoints(output / "checkpoints")]
    assert names == [
        one.folder.name for one in whole_checkpoints(tmp_path / "whole" / "checkpoints")
    ]
    left = {path.name for path in (output / "checkpoints").iterdir()}
    assert left == set(names)


def test_a_run_that_is_asked_to_stop_finishes_its_step_and_saves(dataset, tmp_path):
    recipe = small_recipe("checkpoints.every=1000", "validation.every=0")
    train(recipe, dataset, tmp_path / "whole")
    before = signal.getsignal(signal.SIGINT)
    step = Learner.step

    def interrupted(self, parts, count, learning_rate, place, size):
        if place == (0, 2):
            # Not a signal itself: one that comes while a network of another test is at work can end this process.
            signal.getsignal(signal.SIGINT)(signal.SIGINT, None)
        return step(self, parts, count, learning_rate, place, size)

    def obeyed(number):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", interrupted)
        patch.setattr(signal, "raise_signal", obeyed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, dataset, tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before
    (saved,) = whole_checkpoints(tmp_path / "run" / "checkpoints")
    assert saved.samples == 24
    train(recipe, dataset, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_asked_twice_it_ends_at_once():
    """In a process of its own: signals can end one in which networks have run."""
    told = subprocess.run(
        [sys.executable, "-c", ASKED_TWICE], capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["True", "ended", "ended", "False"]


ASKED_TWICE = """
import signal
from annotary.training._stopping import StopRequests
with StopRequests() as stops:
    signal.raise_signal(signal.SIGINT)
    print(stops.is_asked)
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("ended")
try:
    with StopRequests(is_active=False) as stops:
        signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("ended")
print(stops.is_asked)
"""


def test_a_checkpoint_tags_at_once(dataset, tmp_path):
    result = train(small_recipe("averaging.decay=0.5"), dataset, tmp_path)
    for folder in (result.best, result.last):
        model = load(describe(folder), folder, RuntimeOptions(runtime="torch", threads=1))
        assert model.vocabulary.names == TAGS
        side = json.loads((folder / "config.json").read_text(encoding="utf-8"))["image_size"]
        assert side == 20 if folder == result.last else side in (16, 20)
        scores = model.tag_scores(np.zeros((1, 3, side, side), np.float32))
        assert scores.shape == (1, len(TAGS))
    text = (result.last / "tags.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["category"] for row in rows] == ["shape", "shape", "colour", "colour", "colour"]
    assert all(0.0 <= float(row["balanced"]) <= 1.0 for row in rows)
    assert set(result.metrics) == {"loss", "map", "macro_f1", "micro_f1"}


def test_it_learns_colours(tmp_path):
    data = make_dataset(tmp_path / "data", train=64, validation=32)
    recipe = small_recipe(
        "optimiser.kind=adamw",
        "optimiser.learning_rate=0.01",
        "augmentation.kind=none",
        "network.stochastic_depth=0.0",
        "averaging.decay=0.9",
        "validation.every=0",
        "validation.metric=map",
        "checkpoints.every=100000",
        "stages=[{image_size=16, samples=1280}]",
    )
    result = train(recipe, data, tmp_path / "run")
    assert result.metrics["map"] > 0.85
    assert result.metrics["macro_f1"] > 0.7
    first, last = (float(losses(tmp_path / "run")[row][3]) for row in (1, -1))
    assert last < 0.5 * first


def test_parts_of_a_batch_make_the_same_step_as_the_whole(dataset, tmp_path):
    changed = ("network.stochastic_depth=0.0", "augmentation.kind=none", "data.batch_size=12")
    for size in (12, 4):
        train(
            small_recipe(*changed, f"data.device_batch_size={size}"), dataset, tmp_path / str(size)
        )
    for one, other in zip(losses(tmp_path / "12")[1:], losses(tmp_path / "4")[1:], strict=True):
        assert float(one[3]) == pytest.approx(float(other[3]), rel=1e-4)


@pytest.mark.parametrize("loss", ["focal2", "asl"])  # a mean, and a sum
def test_uneven_parts_of_a_batch_count_as_much_as_they_have_images(loss, dataset, tmp_path):
    changed = (
        *("network.stochastic_depth=0.0", "augmentation.kind=none", f"loss.kind={loss}"),
        *("data.batch_size=7", "stages=[{image_size=16, samples=28}]"),
    )
    for size in (7, 5):  # 7, and 4 and 3
        recipe = small_recipe(*changed, f"data.device_batch_size={size}")
        train(recipe, dataset, tmp_path / str(size))
    for one, other in zip(losses(tmp_path / "7")[1:], losses(tmp_path / "5")[1:], strict=True):
        assert list(map(float, one)) == pytest.approx(list(map(float, other)), rel=1e-4)


def test_a_run_of_uneven_parts_goes_on_with_the_same_bits(dataset, tmp_path):
    recipe = small_recipe(
        *("data.batch_size=7", "data.device_batch_size=5", "checkpoints.every=7"),
        "stages=[{image_size=16, samples=35}]",
    )
    train(recipe, dataset, tmp_path / "whole")
    for part in (4, 6):  # in the second part of a batch of two, each time
        with pytest.MonkeyPatch.context() as patch:
            stop_at_part(patch, part)
            with pytest.raises(Stop):
                train(recipe, dataset, tmp_path / "stopped")
    train(recipe, dataset, tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_a_stage_may_go_on_with_the_curve_and_the_optimiser_of_the_one_before(dataset, tmp_path):
    recipe = small_recipe("stages.2.restart=false")
    train(recipe, dataset, tmp_path)
    rates = [float(row[4]) for row in losses(tmp_path)[1:]]
    assert rates == sorted(rates, reverse=True)
    assert rates[6] < 0.5 * rates[0]
    train(small_recipe(), dataset, tmp_path / "again")
    assert float(losses(tmp_path / "again")[7][4]) == 4e-3


@pytest.mark.parametrize("numbers", ["bf16", "fp16"])
def test_other_numbers_come_near(numbers, dataset, tmp_path):
    changed = ("network.stochastic_depth=0.0", "stages=[{image_size=16, samples=24}]")
    train(small_recipe(*changed), dataset, tmp_path / "fp32")
    changed = (*changed, f"precision.numbers={numbers}", "precision.scale=256")
    train(small_recipe(*changed), dataset, tmp_path / numbers)
    exact, near = (
        [float(row[3]) for row in losses(tmp_path / name)[1:]] for name in ("fp32", numbers)
    )
    assert near == pytest.approx(exact, rel=0.02)
    assert near != exact
    with (tmp_path / numbers / "steps.csv").open(encoding="utf-8") as file:
        scales = {float(row["loss_scale"]) for row in csv.DictReader(file)}
    assert scales == ({256.0} if numbers == "fp16" else {1.0})


def test_an_overflow_in_fp16_leaves_the_step_out_and_halves_the_scale(dataset, tmp_path):
    recipe = small_recipe(
        "precision.numbers=fp16", "precision.scale=1.2676506002282294e30", "validation.every=0"
    )
    train(recipe, dataset, tmp_path)
    with (tmp_path / "steps.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss_scale"]) for row in rows[:2]] == [2.0**100, 2.0**99]
    assert float(rows[0]["loss"]) < 100


def test_a_loss_that_is_no_number_ends_the_run(dataset, tmp_path):
    recipe = small_recipe("optimiser.learning_rate=1e30", "optimiser.kind=adamw")
    with pytest.raises(UsageError, match=r"no number any more .* smaller optimiser.learning_rate"):
        train(recipe, dataset, tmp_path)


def test_weights_that_are_lost_are_not_saved(dataset, tmp_path):
    recipe = small_recipe("optimiser.learning_rate=1e30", "optimiser.kind=adamw", "logs.every=100")
    with pytest.raises(UsageError, match="no number any more after 16 samples"):
        train(recipe, dataset, tmp_path)
    assert not whole_checkpoints(tmp_path / "checkpoints")


def test_a_gradient_that_is_no_number_ends_the_run_unless_its_step_is_left_out():
    stage = plan_stages(small_recipe())[0]
    for norm in (float("inf"), float("nan")):
        stepped = Stepped(torch.tensor(1.0), torch.tensor(norm), 1.0)
        Meter(stage, 1, skips_overflows=True).check(8, stepped)
        with pytest.raises(UsageError, match="no number any more after 8 samples"):
            Meter(stage, 1).row(1, 8, stepped)


def test_a_run_of_other_settings_is_refused(dataset, tmp_path):
    train(small_recipe(), dataset, tmp_path / "run")
    with pytest.raises(OutputError) as caught:
        train(
            small_recipe("optimiser.learning_rate=1e-3", "loss.kind=bce"), dataset, tmp_path / "run"
        )
    assert "loss.kind was 'focal2' and is now 'bce'" in str(caught.value)
    assert "optimiser.learning_rate was 0.004 and is now 0.001" in str(caught.value)
    assert "seed" not in str(caught.value)
    other = make_dataset(tmp_path / "other", train=25)
    with pytest.raises(OutputError, match="the dataset: train were 24 and are now 25"):
        train(small_recipe(), other, tmp_path / "run")
    # What the result does not depend on may change, and what is done is done.
    again = train(small_recipe("logs.every=5", "checkpoints.keep=3"), dataset, tmp_path / "run")
    assert again.was_done
    assert len(losses(tmp_path / "run")) == 11


def test_a_folder_of_something_else_is_refused(dataset, tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="holds something else"):
        train(small_recipe(), dataset, tmp_path)
    with pytest.raises(UsageError, match="holds no run to go on with"):
        Trainer(small_recipe(), dataset, tmp_path / "new", must_continue=True).run()
    assert not (tmp_path / "new").exists()


def test_two_runs_in_one_folder_are_refused(dataset, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    train(small_recipe(), dataset, tmp_path)
    with (tmp_path / ".lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another process trains in"):
            train(small_recipe(), dataset, tmp_path)


def test_images_that_break_are_listed_and_count_nothing(tmp_path):
    data = make_dataset(tmp_path / "data")
    Path(data.train.images[3]).write_bytes(b"no picture")
    assert train(small_recipe(), data, tmp_path / "run").failed == 1
    lines = (tmp_path / "run" / "failures.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["image"] for line in lines} == {data.train.ids[3]}
    assert all(np.isfinite(float(row[3])) for row in losses(tmp_path / "run")[1:])


def test_a_dataset_whose_images_are_gone_ends_the_run(tmp_path):
    data = make_dataset(tmp_path / "data", train=80)
    (tmp_path / "data" / "originals").rename(tmp_path / "elsewhere")
    with pytest.raises(
        UsageError, match=r"64 of the first 64 images cannot be had, such as train0"
    ):
        train(small_recipe("stages=[{image_size=16, samples=80}]"), data, tmp_path / "run")


def test_images_with_too_few_tags_are_left_out(dataset):
    with pytest.raises(UsageError, match="none of the 24 images to learn from has 3 tags"):
        Trainer(small_recipe("data.minimum_tags=3"), dataset, Path("nowhere"))


def test_fine_tuning_goes_on_from_a_checkpoint_of_its_own_without_what_it_started_from(
    dataset, tmp_path
):
    start = train(small_recipe(), dataset, tmp_path / "first").last
    moved = start.rename(tmp_path / "start")
    recipe = small_recipe(
        f"network.start=dir:{moved}", "network.freeze=body", "averaging.decay=0.9"
    )
    with pytest.MonkeyPatch.context() as patch:
        stop_at_part(patch, 9)
        with pytest.raises(Stop):
            train(recipe, dataset, tmp_path / "second")
    kept = weights(moved)
    moved.rename(tmp_path / "gone")
    result = train(recipe, dataset, tmp_path / "second")
    tuned = weights(result.last)
    assert torch.equal(tuned["norm.weight"], kept["norm.weight"])
    assert not torch.equal(tuned["head.weight"], kept["head.weight"])


def test_a_backbone_of_others_is_trained_and_goes_on_with_the_same_bits(dataset, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "image_size": 16, "patch_size": 4}
    config = transformers.ViTConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    recipe = small_recipe(
        "network.kind=backbone",
        f"network.start=dir:{tmp_path / 'vit'}",
        "optimiser.kind=adamw",
        "optimiser.learning_rate=1e-3",
        "optimiser.layer_decay=0.75",
        "averaging.decay=0.9",
    )
    train(recipe, dataset, tmp_path / "whole")
    for part in (9, 10):  # in the first stage, and in the second
        with pytest.MonkeyPatch.context() as patch:
            stop_at_part(patch, part)
            with pytest.raises(Stop):
                train(recipe, dataset, tmp_path / "run")
    (tmp_path / "vit").rename(tmp_path / "gone")
    result = train(recipe, dataset, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    model = find(f"dir:{result.last}")
    assert load_model(model, RuntimeOptions(runtime="torch", threads=1)).vocabulary.names == TAGS


def test_there_may_be_no_images_to_measure_on_and_few_to_learn_from(tmp_path):
    found = make_dataset(tmp_path / "dataset", train=3, validation=0)
    result = train(small_recipe(), found, tmp_path / "run")
    assert result.metrics == {}
    assert result.best == result.last
    assert len(losses(tmp_path / "run")) == 11
    assert not measured(tmp_path / "run")[1:]
    assert describe(result.best).thresholds == {"balanced": {"*": 0.4}}


def test_what_is_seen_does_not_depend_on_how_batches_are_put_together(tmp_path):
    found = make_dataset(tmp_path / "dataset", train=13)  # no multiple of anything
    still = ("network.stochastic_depth=0", "augmentation.kind=trivial2")
    for size in (1, 3, 8):
        train(small_recipe(f"data.device_batch_size={size}", *still), found, tmp_path / str(size))
    told = [[float(row[3]) for row in losses(tmp_path / str(size))[1:]] for size in (1, 3, 8)]
    np.testing.assert_allclose(told[1], told[0], rtol=1e-4)
    np.testing.assert_allclose(told[2], told[0], rtol=1e-4)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_disk_that_is_full_from_the_start_is_told_with_the_files_name(dataset, tmp_path):
    (tmp_path / ".run.json.tmp").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"cannot write .*run\.json: No space left"):
        train(small_recipe(), dataset, tmp_path)


def test_lamb_clips_as_the_recipe_says(dataset, tmp_path):
    found = {}
    for limit in ("1", "0", "0.01", "1000"):
        recipe = small_recipe(f"optimiser.clip_norm={limit}")
        train(recipe, dataset, tmp_path / limit)
        found[limit] = [row[3] for row in losses(tmp_path / limit)[1:]]
    assert max(float(row[5]) for row in losses(tmp_path / "1")[1:]) > 1.0
    assert found["1"] != found["0"] != found["0.01"] != found["1"]
    assert found["0"] == found["1000"]


def test_a_recipe_that_fine_tunes_is_refused_without_a_start(dataset, tmp_path):
    with pytest.raises(UsageError, match="say what it starts from"):
        Trainer(small_recipe("needs_start=true"), dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # A run that was begun before there was such a key goes on.
    train(small_recipe(), dataset, tmp_path / "old")
    assert train(small_recipe("needs_start=true"), dataset, tmp_path / "old").was_done


def test_a_run_that_came_to_nothing_gives_way_to_its_corrected_form(dataset, tmp_path):
    with pytest.raises(UsageError, match="network cannot be"):
        train(small_recipe("network.num_heads=5"), dataset, tmp_path)
    assert (tmp_path / "run.json").exists()
    with pytest.raises(UsageError, match="there is no folder"):
        train(small_recipe(f"network.start=dir:{tmp_path / 'nowhere'}"), dataset, tmp_path)
    trainer = Trainer(small_recipe(), dataset, tmp_path, quiet=True)
    assert not trainer.is_begun
    trainer.run()
    assert trainer.is_begun
    with pytest.raises(OutputError, match="num_heads was 2 and is now 4"):
        train(small_recipe("network.num_heads=4"), dataset, tmp_path)


def test_few_images_that_are_all_gone_end_the_run(tmp_path):
    data = make_dataset(tmp_path / "data")
    away = tmp_path / "elsewhere"
    (tmp_path / "data" / "originals").rename(away)
    with pytest.raises(UsageError, match=r"24 of the first 24 images cannot be had, such as train"):
        train(small_recipe(), data, tmp_path / "run")
    # Less than a pass, and less than a batch of images that are tried.
    recipe = small_recipe("stages=[{image_size=16, samples=8}]")
    with pytest.raises(UsageError, match=r"8 of the first 8 images cannot be had, such as train"):
        train(recipe, data, tmp_path / "short")
    assert not whole_checkpoints(tmp_path / "short" / "checkpoints")
    away.rename(tmp_path / "data" / "originals")
    result = train(small_recipe(), data, tmp_path / "run")
    assert result.failed == 0
    assert len(losses(tmp_path / "run")) == 11


@pytest.mark.parametrize("metric", ["map", "loss"])
def test_a_measurement_without_images_is_an_error_that_loses_nothing(metric, tmp_path):
    data = make_dataset(tmp_path / "data")
    recipe = small_recipe(
        *("validation.every=0", f"validation.metric={metric}", "checkpoints.every=1000"),
        "stages=[{image_size=16, samples=32}]",
    )
    train(recipe, data, tmp_path / "whole")
    away = tmp_path / "elsewhere"
    away.mkdir()
    for path in list((tmp_path / "data" / "originals").glob("validation*")):
        path.rename(away / path.name)
    for _ in range(2):
        with pytest.raises(UsageError, match=r"none of the 10 validation images can be had, such"):
            train(recipe, data, tmp_path / "run")
        (saved,) = whole_checkpoints(tmp_path / "run" / "checkpoints")
        assert (saved.samples, dict(saved.metrics)) == (32, {})
    for path in list(away.iterdir()):
        path.rename(tmp_path / "data" / "originals" / path.name)
    result = train(recipe, data, tmp_path / "run")
    assert set(result.metrics) == {"loss", "map", "macro_f1", "micro_f1"}
    assert measured(tmp_path / "run") == measured(tmp_path / "whole")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_checkpoint_between_measurements_has_the_thresholds_of_the_last(dataset, tmp_path):
    recipe = small_recipe(
        *("validation.every=32", "checkpoints.every=16", "checkpoints.keep=9"),
        "stages=[{image_size=16, samples=80}]",
    )
    train(recipe, dataset, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_at_part(
            patch, 9
        )  # right after the checkpoint at 32, so that 48 comes from a run that goes on
        with pytest.raises(Stop):
            train(recipe, dataset, tmp_path / "run")
    train(recipe, dataset, tmp_path / "run")
    for run in ("whole", "run"):
        tables = [
            (tmp_path / run / "checkpoints" / f"samples_{samples}" / "tags.csv").read_text("utf-8")
            for samples in (16, 32, 48)
        ]
        assert "balanced" not in tables[0]
        assert "balanced" in tables[1]
        assert tables[1] == tables[2]
