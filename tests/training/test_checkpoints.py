"""Checkpoints: whole or not there, readable by JoyTag's own loader, and taggers at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from safetensors import SafetensorError  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from annotary.cards import read_card  # noqa: E402
from annotary.cli import main  # noqa: E402
from annotary.errors import ModelError, OutputError, UsageError  # noqa: E402
from annotary.models import load_model  # noqa: E402
from annotary.runtime import RuntimeOptions  # noqa: E402
from annotary.training.checkpoints import (  # noqa: E402
    Checkpoints,
    latest,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    whole_checkpoints,
)
from annotary.training.network import build_network  # noqa: E402
from annotary.training.recipe import NetworkRecipe  # noqa: E402
from tests.conftest import child_environment  # noqa: E402
from tests.taggers import SMALL_JOYTAG, SMALL_TAGS, make_joytag  # noqa: E402

SMALL = NetworkRecipe(
    num_blocks=2, d_model=32, mlp_dim=64, num_heads=4, cnn_stem=SMALL_JOYTAG["cnn_stem"]
)
EXACT = RuntimeOptions(runtime="torch", precision="fp32")

REFERENCE_KEYS = {
    *("n_tags", "image_size", "num_blocks", "patch_size", "d_model", "mlp_dim", "num_heads"),
    *("stochdepth_rate", "use_sine", "loss_type", "layerscale_init", "head_mean_after", "cnn_stem"),
    "patch_dropout",
}
"""What the constructor of the reference's class `ViT` takes; any other key is a TypeError there."""

REFERENCE_NEEDS = REFERENCE_KEYS - {
    *("layerscale_init", "head_mean_after", "cnn_stem", "patch_dropout"),
}


def small_network(seed=0, tags=SMALL_TAGS):
    return build_network(SMALL, tags, image_size=64, seed=seed)


def batch(count=2):
    return np.random.default_rng(0).normal(size=(count, 3, 64, 64)).astype(np.float32)


# The folder


def load_as_the_reference_does(directory):
    """JoyTag's own loader, written from its specification: the shapes of its tensors, and its strictness."""
    config = json.loads((directory / "config.json").read_text())
    assert config.pop("class") == "ViT"
    assert set(config) <= REFERENCE_KEYS
    assert set(config) >= REFERENCE_NEEDS
    width, inside, channels, shapes = config["d_model"], config["mlp_dim"], 3, {}
    for place, segment in enumerate(config["cnn_stem"].split(";")):
        kind, _, given = segment.partition(":")
        settings = dict(part.split("=") for part in given.split(",")) if given else {}
        name = f"patch_embeddings.conv.{place}"
        if kind == "conv":
            kernel, before, channels = int(settings.get("k", 3)), channels, int(settings["c"])
            shapes[f"{name}.weight"] = (channels, before, kernel, kernel)
            shapes[f"{name}.bias"] = (channels,)
        elif kind == "ln":
            shapes[f"{name}.norm.weight"] = shapes[f"{name}.norm.bias"] = (channels,)
    for block in range(config["num_blocks"]):
        linear = {
            "qkv_proj": (3 * width, width),
            "out_proj": (width, width),
            "mlp.linear1": (inside, width),
            "mlp.linear2": (width, inside),
        }
        for name, shape in linear.items():
            shapes[f"blocks.{block}.{name}.weight"] = shape
            shapes[f"blocks.{block}.{name}.bias"] = shape[:1]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[f"blocks.{block}.{name}"] = (width,)
        for name in ("skip_init1.skip", "skip_init2.skip"):
            shapes[f"blocks.{block}.{name}"] = (width,)
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    shapes |= {"head.weight": (config["n_tags"], width), "head.bias": (config["n_tags"],)}
    state = load_file(directory / "model.safetensors")
    assert {name: tuple(value.shape) for name, value in state.items()} == shapes
    assert {value.dtype for value in state.values()} == {torch.float32}
    lines = (directory / "top_tags.txt").read_text(encoding="utf-8").split("\n")
    return state, [line.strip() for line in lines if line.strip()]


def test_joytags_own_loader_reads_a_checkpoint(tmp_path):
    network = small_network()
    folder = save_checkpoint(tmp_path / "run" / "samples_1", network, SMALL_TAGS, training_state={})
    state, tags = load_as_the_reference_does(folder)
    assert tags == list(SMALL_TAGS)
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


def test_a_checkpoint_of_a_published_directory_is_that_directory(tmp_path):
    before = make_joytag(tmp_path / "published")
    network = build_network(SMALL, SMALL_TAGS, before, image_size=64)
    after = save_checkpoint(tmp_path / "after", network, SMALL_TAGS)
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (before, after))
    assert new == old
    assert not (after / "training").exists()
    one, other = (load_model(f"dir:{folder}", EXACT) for folder in (before, after))
    assert np.array_equal(one.tag_scores(batch()), other.tag_scores(batch()))


def test_it_tags_at_once_with_the_scores_of_the_network(tmp_path):
    network = small_network()
    folder = save_checkpoint(tmp_path / "run" / "samples_1", network, SMALL_TAGS, training_state={})
    model = load_model(f"dir:{folder}", EXACT)
    with torch.inference_mode():
        expected = network.eval()(torch.from_numpy(batch())).sigmoid().numpy()
    assert model.tag_scores(batch()) == pytest.approx(expected, abs=1e-6)
    assert model.card.preprocess == network.preprocess
    assert model.card.id == "run@samples_1"
    assert set(model.vocabulary.thresholds["balanced"]) == {0.4}


def test_thresholds_and_categories_are_in_the_folder(tmp_path):
    thresholds = {"balanced": [0.1, 0.2, 0.3, 0.4, 0.5], "precise": 0.9}
    categories = ["general", "general", "copyright", "character", "general"]
    folder = save_checkpoint(
        tmp_path / "model", small_network(), SMALL_TAGS, None, thresholds, categories=categories
    )
    vocabulary = load_model(f"dir:{folder}", EXACT).vocabulary
    assert vocabulary.thresholds["balanced"] == (0.1, 0.2, 0.3, 0.4, 0.5)
    assert set(vocabulary.thresholds["precise"]) == {0.9}
    assert vocabulary.categories == tuple(categories)
    (folder / "card.toml").unlink()
    assert load_model(f"dir:{folder}", EXACT).vocabulary == vocabulary


def test_a_threshold_near_to_0_stays_above_it(tmp_path):
    thresholds = {"balanced": [2e-7, 0.5, 0.9999999, 1e-9, 1.0]}
    folder = save_checkpoint(tmp_path / "s", small_network(), SMALL_TAGS, None, thresholds)
    found = load_model(f"dir:{folder}", EXACT).vocabulary.thresholds["balanced"]
    assert found == (2e-7, 0.5, 0.9999999, 1e-9, 1.0)


def test_a_table_of_other_tags_is_refused(tmp_path):
    folder = save_checkpoint(
        tmp_path / "model", small_network(), SMALL_TAGS, None, {"balanced": 0.3}
    )
    (folder / "top_tags.txt").write_text("\n".join(reversed(SMALL_TAGS)))
    with pytest.raises(ModelError, match=r"tags\.csv has other tags, or in another order"):
        load_model(f"dir:{folder}", EXACT)


def test_the_card_says_what_is_known(tmp_path):
    about = {"name": "birds", "version": "2", "licence": "CC0-1.0", "source": "a folder"}
    network = small_network()
    spec = replace(network.preprocess, resample="bilinear")
    folder = save_checkpoint(tmp_path / "x", network, SMALL_TAGS, spec, about=about)
    card = read_card(folder)
    assert (card.id, card.licence, card.source) == ("birds@2", "CC0-1.0", "a folder")
    assert card.preprocess == spec
    assert card.family == "joytag"


def test_what_is_made_of_weights_keeps_their_licence(tmp_path):
    first = save_checkpoint(
        tmp_path / "first", small_network(), SMALL_TAGS, about={"licence": "CC0-1.0"}
    )
    network = build_network(SMALL, SMALL_TAGS, first, image_size=64)
    assert network.start.licence == "CC0-1.0"
    assert read_card(save_checkpoint(tmp_path / "x", network, SMALL_TAGS)).licence == "CC0-1.0"
    assert small_network().start.licence == ""


@pytest.mark.parametrize(
    ("tags", "thresholds", "told"),
    [
        (("a", "b\nc"), {}, "cannot stand on a line"),
        (("a", ""), {}, "cannot stand on a line"),
        (("a", "a"), {}, "must be unique"),
        (("a", "b"), {"balanced": [0.1]}, "must have 2 rows"),
        (("a", "b"), {"balanced": 1.5}, "must be in"),
    ],
)
def test_what_cannot_be_written_is_told_before(tmp_path, tags, thresholds, told):
    with pytest.raises(UsageError, match=told):
        save_checkpoint(tmp_path / "x", small_network(tags=tags), tags, None, thresholds)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        save_checkpoint(tmp_path / "file" / "x", small_network(), SMALL_TAGS)


@pytest.mark.parametrize("name", ["save_file", "torch.save"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, name):
    folder = save(Checkpoints(tmp_path), 10, f1=0.5)

    def fail(*_, **__):
        raise {"save_file": SafetensorError, "torch.save": RuntimeError}[name]("No space left")

    monkeypatch.setattr(f"annotary.training.checkpoints.{name}", fail)
    with pytest.raises(OutputError, match=r"cannot write .*samples_10: No space left"):
        save(Checkpoints(tmp_path), 10, f1=0.7)
    assert names(tmp_path) == ["samples_10"]
    assert read_checkpoint(folder).metrics == {"f1": 0.5}


# Going on


def test_a_run_gets_back_what_it_handed_over(tmp_path):
    network = small_network()
    optimiser = torch.optim.AdamW(network.parameters())
    network.train()(torch.from_numpy(batch())).sum().backward()
    optimiser.step()
    state = {
        "optimiser": optimiser.state_dict(),
        "random": torch.get_rng_state(),
        "place": {"epoch": 3, "image": 17},
    }
    folder = save_checkpoint(tmp_path / "s", network, SMALL_TAGS, training_state=state, samples=5)
    other = small_network(seed=1)
    found = load_checkpoint(folder, other)
    assert found["place"] == {"epoch": 3, "image": 17}
    assert torch.equal(found["random"], state["random"])
    again = torch.optim.AdamW(other.parameters())
    again.load_state_dict(found["optimiser"])
    pairs = zip(network.parameters(), other.parameters(), strict=True)
    for one, two in pairs:
        assert torch.equal(one, two)
        moments = (optimiser.state[one]["exp_avg"], again.state[two]["exp_avg"])
        assert torch.equal(*moments)


def test_a_running_mean_tags_and_the_run_goes_on_with_its_own_weights(tmp_path):
    network, mean = small_network(seed=1), small_network(seed=2)
    folder = save_checkpoint(
        tmp_path / "s", network, SMALL_TAGS, training_state={}, weights=mean.state_dict()
    )
    state, _ = load_as_the_reference_does(folder)
    assert torch.equal(state["head.weight"], mean.head.weight)
    other = small_network(seed=3)
    load_checkpoint(folder, other)
    assert torch.equal(other.head.weight, network.head.weight)


def test_what_is_not_of_this_network_is_one_line(tmp_path):
    folder = save_checkpoint(tmp_path / "s", small_network(), SMALL_TAGS, training_state={})
    with pytest.raises(ModelError, match=r"cannot go on from .*size mismatch|cannot go on from"):
        load_checkpoint(folder, small_network(tags=("one",)))
    plain = save_checkpoint(tmp_path / "plain", small_network(), SMALL_TAGS)
    with pytest.raises(ModelError, match="is no whole checkpoint"):
        load_checkpoint(plain, small_network())


# Which of them stay


def save(checkpoints, samples, **metrics):
    return checkpoints.save(
        samples, small_network(), SMALL_TAGS, training_state={"at": samples}, metrics=metrics
    )


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_the_last_ones_and_the_best_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, metric="f1")
    assert checkpoints.latest() is None
    for samples, score in ((5, 0.1), (10, 0.9), (20, 0.3), (100, float("nan")), (200, 0.2)):
        save(checkpoints, samples, f1=score)
    assert names(tmp_path) == ["samples_10", "samples_100", "samples_200"]
    assert checkpoints.latest() == tmp_path / "samples_200"
    assert checkpoints.best() == tmp_path / "samples_10"
    assert [one.samples for one in whole_checkpoints(tmp_path)] == [10, 100, 200]


def test_of_equals_the_last_is_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, metric="f1")
    for samples in (1, 2, 3):  # rare tags have no F1 above 0 for long
        save(checkpoints, samples, f1=0.0)
    assert checkpoints.best() == tmp_path / "samples_3"
    assert names(tmp_path) == ["samples_3"]


def test_less_may_be_better(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, metric="loss", is_higher_better=False)
    for samples, loss in ((1, 0.5), (2, 0.2), (3, 0.4)):
        save(checkpoints, samples, loss=loss)
    assert names(tmp_path) == ["samples_2", "samples_3"]
    assert checkpoints.best() == tmp_path / "samples_2"


def test_one_that_is_written_anew_after_going_back_stays(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 30)
    written = save(checkpoints, 10)
    assert written.is_dir()
    assert checkpoints.best() is None
    assert names(tmp_path) == ["samples_10", "samples_30"]


def test_saving_again_replaces(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 10, f1=0.1)
    save(checkpoints, 10, f1=0.2)
    assert names(tmp_path) == ["samples_10"]
    assert whole_checkpoints(tmp_path)[0].metrics == {"f1": 0.2}


# Being killed


def test_what_lacks_something_is_not_whole(tmp_path):
    folder = save(Checkpoints(tmp_path), 10)
    assert read_checkpoint(folder).samples == 10
    for name in ("model.safetensors", "training/state.pt", "top_tags.txt", "card.toml"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1])
        assert read_checkpoint(folder) is None
        (folder / name).unlink()
        assert latest(tmp_path) is None
        (folder / name).write_bytes(content)
    assert latest(tmp_path) == folder
    (folder / "training" / "checkpoint.json").write_text("{")
    assert latest(tmp_path) is None


def test_between_two_renamings_the_old_one_is_found_and_restored(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 10).rename(tmp_path / ".samples_10.replaced")
    (tmp_path / ".samples_20.partial").mkdir()
    (tmp_path / ".samples_5.removed").mkdir()
    assert latest(tmp_path) == tmp_path / ".samples_10.replaced"
    load_checkpoint(tmp_path / ".samples_10.replaced", small_network())
    save(checkpoints, 30)
    assert names(tmp_path) == ["samples_10", "samples_30"]


WRITER = """
import sys
from pathlib import Path
import torch
from annotary.training.checkpoints import Checkpoints
from annotary.training.network import build_network
from annotary.training.recipe import NetworkRecipe

tags = sys.argv[2:]
recipe = NetworkRecipe(num_blocks=2, d_model=32, mlp_dim=64, num_heads=4, cnn_stem="")
checkpoints = Checkpoints(Path(sys.argv[1]), keep=2)
network = build_network(recipe, tags, image_size=64)
for samples in range(1, 100_000):
    with torch.no_grad():
        network.head.bias.fill_(samples)
    # The same names come again, so that folders are replaced as well.
    state = {"samples": samples, "filler": torch.zeros(200_000)}
    checkpoints.save(1 + samples % 5, network, tags, training_state=state)
"""


def test_a_killed_process_leaves_a_checkpoint_to_go_on_from(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path), *SMALL_TAGS]
    for wait in (0.05, 0.16):
        before = latest(tmp_path)
        stamp = before and before.stat().st_mtime_ns
        process = subprocess.Popen(command, stderr=subprocess.PIPE, env=child_environment())
        while (found := latest(tmp_path)) is None or found.stat().st_mtime_ns == stamp:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        found = latest(tmp_path)
        network = build_network(replace(SMALL, cnn_stem=""), SMALL_TAGS, image_size=64)
        state = load_checkpoint(found, network)
        assert network.head.bias.tolist() == [state["samples"]] * 5


# The whole way


def test_a_checkpoint_tags_from_the_command_line(tmp_path, capsys):
    network = small_network()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0]))
    checkpoints = Checkpoints(tmp_path / "run")
    folder = checkpoints.save(
        64,
        network,
        SMALL_TAGS,
        training_state={},
        thresholds={"balanced": [0.5, 0.9, 0.4, 0.2, 0.9]},
    )
    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "red.png")
    arguments = ["tag", str(tmp_path / "red.png"), "--model", f"dir:{folder}"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--format", "jsonl", "--output", str(tmp_path / "tags.jsonl")])
    assert ended.value.code == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "tags.jsonl").read_text().splitlines()[0])
    tags = {tag["name"]: tag["score"] for tag in record["tags"]}
    assert set(tags) == {"1girl", "steins;gate", "saber_(fate)"}
    assert tags["1girl"] == pytest.approx(0.8808, abs=1e-3)
