"""Contrastive training: both losses against formulas, gradients, whose texts count, exact resume, that it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from annotary.training.contrastive import (  # noqa: E402
    ContrastiveOptions,
    ContrastiveTraining,
    PairBatch,
    PairTable,
    contrastive_loss,
    draw_some,
    own_targets,
    rows_of_step,
    train_contrastive,
)

OPTIONS = ContrastiveOptions(steps=60, learning_rate=0.02, weight_decay=0.01, scale=10.0)


@pytest.fixture(autouse=True)
def one_thread():  # such small matrices only wait for each other on several
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_table(name: str = "toy", **changes: object) -> PairTable:
    """Images are noisy rotations of a hidden meaning, texts are others of it; two texts an image."""
    generator = torch.Generator().manual_seed(3)
    meaning = torch.randn(40, 4, generator=generator)
    turns = [torch.randn(4, 6, generator=generator) for _ in range(2)]
    images = torch.stack([meaning @ turns[0] + 0.05 * torch.randn(40, 6, generator=generator)] * 2)
    texts = torch.cat([meaning @ turns[1] + 0.05, meaning @ turns[1] - 0.05])
    links = [[row, row + 40] for row in range(40)]
    return PairTable(name, images, texts, links, **{"batch_size": 16, **changes})  # type: ignore[arg-type]


def make_training(
    options: ContrastiveOptions = OPTIONS, dropout: float = 0.0, **changes: object
) -> ContrastiveTraining:
    torch.manual_seed(5)
    towers = [nn.Sequential(nn.Dropout(dropout), nn.Linear(6, 4)) for _ in range(2)]
    return ContrastiveTraining(*towers, [make_table(**changes)], options)


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_softmax_is_clips_formula() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 5))
    both = [-np.log(np.diag(softmax(side))).mean() for side in (logits, logits.T)]
    found = contrastive_loss(torch.from_numpy(logits), torch.eye(5, dtype=torch.float64))
    assert found.item() == pytest.approx(np.mean(both))
    one = contrastive_loss(
        torch.from_numpy(logits), torch.eye(5, dtype=torch.float64), sides="images"
    )
    assert one.item() == pytest.approx(both[0])


def test_softmax_divides_among_several_texts() -> None:
    logits = np.random.default_rng(1).normal(size=(3, 6))
    targets = np.repeat(np.eye(3), 2, axis=1)
    targets[0, 5] = 0.5
    rows = -(targets / targets.sum(1, keepdims=True) * np.log(softmax(logits))).sum(1).mean()
    columns = targets.T / targets.T.sum(1, keepdims=True)
    expected = (rows - (columns * np.log(softmax(logits.T))).sum(1).mean()) / 2
    found = contrastive_loss(torch.from_numpy(logits), torch.from_numpy(targets))
    assert found.item() == pytest.approx(expected)


def test_sigmoid_is_siglips_formula() -> None:
    logits = np.random.default_rng(2).normal(size=(4, 4))
    signs = 2 * np.eye(4) - 1
    expected = np.log1p(np.exp(-signs * logits)).sum() / 4
    targets = torch.eye(4, dtype=torch.float64)
    found = contrastive_loss(torch.from_numpy(logits), targets, kind="sigmoid")
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_pairs_of_which_nothing_is_known_do_not_count(kind: str) -> None:
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    known = torch.ones(4, 4, dtype=torch.bool)
    known[0, 1] = False
    losses = []
    for value in (0.0, 1.0):
        targets = torch.eye(4)
        targets[0, 1] = value
        losses.append(contrastive_loss(logits, targets, kind=kind, known=known))  # type: ignore[arg-type]
    assert losses[0].item() == losses[1].item()
    torch.autograd.backward(losses[0])
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_gradients_are_those_of_differences(kind: str) -> None:
    logits = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.repeat_interleave(torch.eye(3, dtype=torch.float64), 2, dim=1)
    known = torch.rand(3, 6) < 0.8
    assert torch.autograd.gradcheck(
        lambda rows: contrastive_loss(rows, targets, kind=kind, known=known | (targets > 0)),  # type: ignore[arg-type]
        (logits,),
    )


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_fitting_pairs_are_drawn_together_and_others_apart(kind: str) -> None:
    logits = torch.zeros(3, 3, requires_grad=True)
    torch.autograd.backward(contrastive_loss(logits, torch.eye(3), kind=kind))  # type: ignore[arg-type]
    assert logits.grad is not None
    assert (torch.diag(logits.grad) < 0).all()
    assert (logits.grad[~torch.eye(3, dtype=torch.bool)] > 0).all()


def test_a_row_without_a_fitting_text_does_not_count() -> None:
    targets = torch.eye(3)
    targets[2] = 0
    logits = torch.randn(3, 3)
    found = contrastive_loss(logits, targets, sides="images")
    expected = contrastive_loss(logits[:2], targets[:2], sides="images")
    assert found.item() == pytest.approx(expected.item())


def test_the_same_image_twice_is_no_negative() -> None:
    targets = own_targets(torch.tensor([7, 8, 7]), torch.tensor([7, 7, 8]))
    assert targets.tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 0]]
    # A text that two images share fits both, whichever of them it was drawn for.
    shared = PairTable(
        "shared", torch.zeros(1, 2, 3), torch.zeros(3, 3), [[0, 1], [1, 2]], texts_per_image=2
    )
    batch = shared.draw(0, torch.Generator().manual_seed(0))
    assert isinstance(batch, PairBatch)
    assert sorted(batch.targets.sum(1).tolist()) == [3.0, 3.0]


def test_a_pass_sees_every_image_once_and_is_ordered_anew() -> None:
    passes = [
        torch.cat([rows_of_step(step, 12, 4, seed=1) for step in range(start, start + 3)]).tolist()
        for start in (0, 3)
    ]
    assert [sorted(rows) for rows in passes] == [list(range(12))] * 2
    assert passes[0] != passes[1]
    assert sorted(draw_some([4, 5], 4, torch.Generator().manual_seed(0))) == [4, 4, 5, 5]


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_it_learns(loss: str) -> None:
    options = replace(OPTIONS, steps=300, learning_rate=0.05, bias=-3.0)
    training = make_training(options, loss=loss, texts_per_image=2)
    losses = list(training.run())
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    table = make_table()
    with torch.no_grad():
        images, texts = (
            nn.functional.normalize(tower(rows), dim=1)
            for tower, rows in (
                (training.towers["images"].eval(), table.images[0]),
                (training.towers["texts"].eval(), table.texts[:40]),
            )
        )
    first = (images @ texts.T).argmax(1)
    assert (first == torch.arange(40)).float().mean() > 0.8
    assert training.scale("toy") != pytest.approx(10.0)


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    options = replace(OPTIONS, steps=12, average=0.9)
    whole = make_training(options, dropout=0.3)
    expected = list(whole.run())
    stopped = make_training(options, dropout=0.3)
    for _ in range(5):
        stopped.train_step()
    stopped.save(tmp_path / "run.pt")
    torch.rand(3)  # other random numbers meanwhile change nothing
    resumed = make_training(options, dropout=0.3)
    resumed.restore(tmp_path / "run.pt")
    assert list(resumed.run()) == expected[5:]
    for training in (whole, resumed):
        training.averaged()
    for one, other in zip(whole.towers.parameters(), resumed.towers.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_whole_run_continues_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    options = replace(OPTIONS, steps=4)
    seen: list[int] = []
    done = train_contrastive(make_training(options), path, lambda step, _: seen.append(step))
    assert seen == [1, 2, 3, 4]
    again = train_contrastive(make_training(options), path, lambda step, _: seen.append(step))
    assert seen == [1, 2, 3, 4]
    assert torch.equal(done.towers["images"][1].weight, again.towers["images"][1].weight)
    with pytest.raises(ValueError, match="other options"):
        make_training(replace(options, seed=1)).restore(path)
    with pytest.raises(ValueError, match="other sources"):
        make_training(options, name="other").restore(path)


def test_seeds_differ_and_repeat() -> None:
    runs = [
        list(make_training(replace(OPTIONS, steps=3, seed=seed), dropout=0.5).run())
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_rates_freeze_and_slow_down() -> None:
    towers = [nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)) for _ in range(2)]
    before = [parameter.detach().clone() for tower in towers for parameter in tower.parameters()]
    training = ContrastiveTraining(
        *towers, [make_table()], OPTIONS, {"texts.": 0.0, "texts.1": 0.1}
    )
    training.train_step()
    after = [parameter for tower in towers for parameter in tower.parameters()]
    moved = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert moved == [True] * 4 + [False, False, True, True]


def test_the_scale_stays_below_its_limit() -> None:
    options = replace(OPTIONS, steps=20, scale=10.0, most_scale=10.1, scale_rate=100.0)
    training = make_training(options)
    list(training.run())
    assert training.scale("toy") <= 10.1 + 1e-4


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"scale": 0.0}, {"warmup_share": 2.0}, {"average": 1.0}]
)
def test_options_out_of_range(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        replace(OPTIONS, **changes)  # type: ignore[arg-type]


def test_sources_are_checked() -> None:
    tower = nn.Linear(6, 4)
    with pytest.raises(ValueError, match="sources"):
        ContrastiveTraining(tower, tower, [], OPTIONS)
    with pytest.raises(ValueError, match="links"):
        replace(make_table(), links=[[]] * 40)
