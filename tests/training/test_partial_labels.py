"""Training with partial labels: what nobody knows has no gradient and is not measured, and runs go on all the same."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pyarrow")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from annotary.errors import OutputError  # noqa: E402
from annotary.evaluation.tagging import average_precision  # noqa: E402
from annotary.training._feeding import Feed  # noqa: E402
from annotary.training._learning import Learner, Part  # noqa: E402
from annotary.training._run_parts import loss_of, measuring_loss_of, new_network  # noqa: E402
from annotary.training._validation import measure  # noqa: E402
from annotary.training.dataset.index import TagDataset  # noqa: E402
from annotary.training.distributed import Processes  # noqa: E402
from annotary.training.heads import frequency_bias  # noqa: E402
from annotary.training.losses import LOSS_NAMES, TaggingLoss, tagging_loss  # noqa: E402
from annotary.training.plan import plan_stages  # noqa: E402
from annotary.training.recipe import LossRecipe, TaggerRecipe  # noqa: E402
from tests.training.small_dataset import (  # noqa: E402
    COLOURS,
    SHAPES,
    TAGS,
    is_known,
    make_dataset,
    small_recipe,
)
from tests.training.test_trainer import Stop, losses, measured, stop_at_part, train  # noqa: E402

KINDS = [name for name in LOSS_NAMES if name != "ce"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TagDataset:
    torch.set_num_threads(1)
    return make_dataset(tmp_path_factory.mktemp("partial"), train=30, is_partial=True)


def learner_of(recipe: TaggerRecipe, dataset: TagDataset) -> Learner:
    network = new_network(recipe, dataset, recipe.stages[0].image_size)
    return Learner(network, loss_of(recipe, dataset), recipe, Processes())


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.2]))
def test_what_is_not_known_has_no_gradient(kind, seed, smoothing):
    generator = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(5, 6, generator=generator)).requires_grad_()
    targets = (torch.rand(5, 6, generator=generator) > 0.5).float()
    weights = torch.rand(5, 6, generator=generator)
    weights[torch.rand(5, 6, generator=generator) > 0.5] = 0.0
    positive = torch.rand(6, generator=generator) + 1 if kind == "weighted" else None
    loss = TaggingLoss(LossRecipe(kind=kind, label_smoothing=smoothing), positive)
    value = loss(logits, targets, weights, 30.0)
    (gradient,) = torch.autograd.grad(value, logits)
    assert (gradient[weights == 0] == 0).all()
    others = torch.where(weights == 0, 1 - targets, targets)
    moved = torch.where(weights == 0, -logits, logits)
    assert loss(moved, others, weights, 30.0) == value
    # What is known counts as it does where all is known, times its weight.
    (whole,) = torch.autograd.grad(loss(logits, targets), logits)
    torch.testing.assert_close(gradient, whole * weights)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_batch_add_up_whatever_they_know(kind):
    generator = torch.Generator().manual_seed(1)
    logits, targets = torch.randn(6, 4, generator=generator), torch.ones(6, 4)
    weights = (torch.rand(6, 4, generator=generator) > 0.6).float()
    positive = torch.ones(4) if kind == "weighted" else None

    def found(rows: slice) -> torch.Tensor:
        part = (logits[rows], targets[rows])
        return tagging_loss(
            *part, kind=kind, weights=weights[rows], positive_weights=positive, entries=len(part[0])
        )

    whole, parts = found(slice(0, 6)), [found(slice(n, n + 2)) for n in (0, 2, 4)]
    share = 1.0 if kind in ("asl", "asl2") else 1 / 3
    torch.testing.assert_close(whole, share * sum(parts))


@pytest.mark.parametrize("kind", ["bce", "focal2", "asl8", "asl", "weighted"])
def test_each_list_is_learned_from_its_own_images(kind, dataset):
    """The head's rows of shapes change as they would without the images of which only colours are known."""
    recipe = small_recipe(f"loss.kind={kind}", "augmentation.kind=none", "network.freeze=body")
    learner = learner_of(recipe, dataset)
    split = dataset.train
    only_colours = np.flatnonzero(split.sources == 1)
    with_shapes = np.flatnonzero(split.sources != 1)

    def gradient(rows: np.ndarray) -> torch.Tensor:
        side = recipe.stages[0].image_size
        pixels = torch.stack([torch.full((side, side, 3), 8 * int(r) % 256) for r in rows])
        part = Part(
            pixels.to(torch.uint8),
            torch.from_numpy(split.targets(rows)),
            torch.ones(len(rows)),
            torch.from_numpy(split.weights(rows)),
        )
        images, targets, weights = learner._prepared(part, (0, 0, 0))
        assert weights is not None
        logits = learner.network.eval()(images)
        loss = learner._loss(logits, targets, weights, 1.0)
        (found,) = torch.autograd.grad(loss, learner.network.head.weight)
        return found

    together = gradient(np.arange(len(split)))
    shapes = slice(0, len(SHAPES))
    torch.testing.assert_close(together[shapes], gradient(with_shapes)[shapes])
    alone = gradient(only_colours)
    assert (alone[shapes] == 0).all()
    assert alone[len(SHAPES) :].abs().max() > 0


def test_mixed_images_know_what_either_knows(dataset):
    recipe = small_recipe("augmentation.mixup=0.8", "augmentation.kind=none")
    learner = learner_of(recipe, dataset)
    rows = np.arange(6)  # the first goes with the last, and so on
    weights, targets = dataset.train.weights(rows), dataset.train.targets(rows)
    pixels = torch.zeros(6, 16, 16, 3, dtype=torch.uint8)
    pixels[3:] = 255
    part = Part(pixels, torch.from_numpy(targets), torch.ones(6), torch.from_numpy(weights))
    images, mixed, counted = learner._prepared(part, (0, 0, 0))
    dark, light = (
        learner._normalised(pixels[:1])[0, 0, 0, 0],
        learner._normalised(pixels)[3, 0, 0, 0],
    )
    for row in range(6):
        light_share = float((images[row, 0, 0, 0] - dark) / (light - dark))
        share = light_share if row >= 3 else 1 - light_share
        other = 5 - row
        total = share * weights[row] + (1 - share) * weights[other]
        positive = share * (weights * targets)[row] + (1 - share) * (weights * targets)[other]
        np.testing.assert_allclose(counted[row], total, atol=1e-5)
        known = total > 0
        np.testing.assert_allclose(mixed[row][known], positive[known] / total[known], atol=1e-5)
    assert (counted[:, :2].sum(0) > 0).all()
    assert ((mixed >= 0) & (mixed <= 1)).all()
    # The second, of which only colours are known, goes with one of which also only colours are.
    assert (counted[1, : len(SHAPES)] == 0).all()


def test_an_image_that_cannot_be_had_knows_nothing(dataset, tmp_path):
    recipe = small_recipe("augmentation.mixup=0.8")
    learner = learner_of(recipe, dataset)
    rows = np.arange(4)
    part = Part(
        torch.zeros(4, 16, 16, 3, dtype=torch.uint8),
        torch.from_numpy(dataset.train.targets(rows)),
        torch.tensor([1.0, 0.0, 1.0, 1.0]),
        torch.from_numpy(dataset.train.weights(rows)),
    )
    _, targets, weights = learner._prepared(part, (0, 0, 0))
    assert (weights[1] == 0).all()
    # Its partner is not mixed.
    np.testing.assert_array_equal(weights[2], dataset.train.weights([2])[0])
    known = weights[2] > 0
    np.testing.assert_array_equal(targets[2][known], dataset.train.targets([2])[0][known])


def test_what_is_measured_is_what_is_known(dataset):
    recipe = small_recipe("loss.kind=bce")
    learner = learner_of(recipe, dataset)
    feed = Feed(dataset, recipe, Processes())
    spec = learner.network.preprocess
    with closing(feed.validation(4, spec)) as parts:
        found = measure(learner, parts, measuring_loss_of(recipe), len(TAGS), 0.4)
        scores = np.concatenate([torch.sigmoid(learner.logits(p.images)).numpy() for p in parts])
    split = dataset.validation
    targets = split.targets(np.arange(len(split))).astype(bool)
    known = np.array(
        [[is_known(row % 3, tag) for tag in range(len(TAGS))] for row in range(len(split))]
    )
    errors = np.where(targets, -np.log(scores), -np.log1p(-scores))
    assert found.loss == pytest.approx(errors[known].mean(), rel=1e-5)
    called = scores >= 0.4
    hits, wrong, missed = (
        (known & one).sum(0) for one in (called & targets, called & ~targets, ~called & targets)
    )
    f1 = 2 * hits / np.maximum(2 * hits + wrong + missed, 1)
    assert found.macro.f1 == pytest.approx(f1.mean())
    assert found.micro.f1 == pytest.approx(
        2 * hits.sum() / (2 * hits + wrong + missed).sum(), rel=1e-6
    )
    exact = average_precision(scores, targets, known)
    bounds = found.histograms.average_precision()
    assert (bounds.low - 1e-9 <= exact).all()
    assert (exact <= bounds.high + 1e-9).all()
    assert found.histograms.images.tolist() == known.sum(0).tolist()
    assert found.images == len(split)


def test_new_heads_begin_with_how_often_tags_are_where_they_are_known(dataset):
    network = new_network(small_recipe(), dataset, 16)
    split = dataset.train
    sources = np.arange(len(split)) % 3
    counts = split.counts()
    shapes = frequency_bias(counts[: len(SHAPES)], int((sources != 1).sum()))
    torch.testing.assert_close(network.head.bias[: len(SHAPES)], shapes)
    # That a colour is absent counts half.
    images = int((sources != 0).sum())
    colours = np.log((counts + 0.5) / (0.5 * (images - counts) + 0.5))[len(SHAPES) :]
    np.testing.assert_allclose(network.head.bias.detach()[len(SHAPES) :], colours, rtol=1e-5)
    assert len(COLOURS) == len(colours)


def test_a_run_that_is_stopped_has_the_same_bits(dataset, tmp_path):
    recipe = small_recipe(
        *("augmentation.mixup=0.4", "loss.unknown=0.05", "loss.label_smoothing=0.1"),
        "averaging.decay=0.9",
    )
    whole = train(recipe, dataset, tmp_path / "whole")
    output = tmp_path / "stopped"
    for part in (3, 7, 6):
        with pytest.MonkeyPatch.context() as patch:
            stop_at_part(patch, part)
            with pytest.raises(Stop):
                train(recipe, dataset, output)
    again = train(recipe, dataset, output)
    assert losses(output) == losses(tmp_path / "whole")
    assert measured(output) == measured(tmp_path / "whole")
    for name in ("model.safetensors", "tags.csv"):
        assert (again.last / name).read_bytes() == (whole.last / name).read_bytes()
    with pytest.raises(OutputError, match=r"loss\.unknown was 0\.05 and is now 0\.1"):
        train(replace(recipe, loss=replace(recipe.loss, unknown=0.1)), dataset, output)


def test_a_run_of_other_knowledge_is_another_run(dataset, tmp_path):
    recipe = small_recipe("stages=[{image_size=16, samples=8}]")
    other = make_dataset(tmp_path / "data", train=30, is_partial=True)
    train(recipe, other, tmp_path / "run")
    place = tmp_path / "data" / "sources.json"
    told = json.loads(place.read_text())
    told["inputs"][1]["absent"] = 0.25
    place.write_text(json.dumps(told))
    with pytest.raises(OutputError, match="the dataset: other images or tags"):
        train(recipe, TagDataset(tmp_path / "data"), tmp_path / "run")


def test_a_run_that_is_older_than_a_setting_goes_on(tmp_path):
    recipe = small_recipe("stages=[{image_size=16, samples=16}]")
    dataset = make_dataset(tmp_path / "data")
    train(recipe, dataset, tmp_path / "run")
    place = tmp_path / "run" / "run.json"
    told = json.loads(place.read_text())
    del told["recipe"]["loss"]["unknown"]
    place.write_text(json.dumps(told))
    assert train(recipe, dataset, tmp_path / "run").was_done
    place.write_text(json.dumps(told))
    with pytest.raises(OutputError, match=r"loss\.unknown was 0\.0 and is now 0\.5"):
        train(small_recipe("loss.unknown=0.5"), dataset, tmp_path / "run")


def test_parts_of_any_size_come_to_the_same_weights(dataset, tmp_path):
    from safetensors.torch import load_file

    changed = ("network.stochastic_depth=0.0", "stages=[{image_size=16, samples=24}]")
    found = []
    for size in (2, 8):
        recipe = small_recipe(*changed, f"data.device_batch_size={size}")
        result = train(recipe, dataset, tmp_path / str(size))
        found.append(load_file(result.last / "model.safetensors"))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-5, rtol=1e-4)
    assert plan_stages(recipe, 1)[0].parts == 1


def test_a_probe_is_not_taught_what_nobody_knows(dataset, tmp_path):
    pytest.importorskip("onnx")
    from click.testing import CliRunner

    from annotary.cli import annotary

    def call(*arguments: object) -> dict[str, Any]:
        made = CliRunner().invoke(annotary, [str(argument) for argument in arguments])
        assert made.exit_code == 0, made.output
        return dict(json.loads(made.stdout))

    def probe(data: Path, output: Path, *more: object) -> dict[str, Any]:
        options = ("--threads", "1", "--epochs", "100", "--json", "--quiet", *more)
        return call("train", "probe", "--data", data, "--output", output, *options)

    def scored(data: Path, tagger: str) -> dict[str, Any]:
        options = ("--model", f"dir:{tagger}", "--threads", "1", "--json", "--quiet")
        return call("evaluate", "tagging", data, *options)

    partial = make_dataset(tmp_path / "partial", train=36, is_partial=True)
    whole = make_dataset(tmp_path / "whole", train=36)
    taken = shutil.copytree(partial.folder, tmp_path / "taken")  # for what it says
    (taken / "dataset.json").write_text((whole.folder / "dataset.json").read_text())
    found = probe(partial.folder, tmp_path / "run")
    wrong = probe(taken, tmp_path / "other")
    counted = probe(partial.folder, tmp_path / "counted", "--unknown", 1)
    recall = [
        scored(whole.folder, one["tagger"])["rules"][0]["micro"]["recall"]
        for one in (found, wrong, counted)
    ]
    assert recall[0] > max(recall[1:])
    # What is measured of a part of the truth is the same by either command.
    told = scored(partial.folder, found["tagger"])
    assert told["rules"][0]["micro"]["f1"] == pytest.approx(found["metrics"]["fitted_micro_f1"])
    assert told["map"]["macro"] == pytest.approx(found["metrics"]["map"], abs=0.01)


def test_unknown_is_a_share():
    with pytest.raises(ValueError, match=r"unknown must be in 0\.\.1"):
        LossRecipe(unknown=-0.1)
    assert LossRecipe(unknown=1.0).unknown == 1.0


def test_loaders_say_what_counts(dataset):
    recipe = small_recipe("loss.unknown=0.25")
    learner = learner_of(recipe, dataset)
    feed = Feed(dataset, recipe, Processes())
    with closing(feed.training(4, learner.network.preprocess)) as parts:
        part = next(parts)
    assert part.target_weights is not None
    assert set(np.unique(part.target_weights)) <= {0.25, 0.5, 1.0}
    assert part.target_weights.shape == part.targets.shape


def test_a_dataset_without_partial_labels_has_no_weights(tmp_path: Path):
    plain = make_dataset(tmp_path / "data")
    recipe = small_recipe()
    learner = learner_of(recipe, plain)
    with closing(Feed(plain, recipe, Processes()).training(4, learner.network.preprocess)) as parts:
        part = next(parts)
    assert part.target_weights is None
    assert learner._prepared(part, (0, 0, 0))[2] is None
