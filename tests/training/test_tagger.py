"""Training of taggers: losses against known values, exact resume, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from annotary.errors import OutputError  # noqa: E402
from annotary.training.tagger import (  # noqa: E402
    TaggerData,
    TaggerHead,
    TaggerOptions,
    TaggerTraining,
    tagging_loss,
    train_tagger,
)


def make_data(*, images: int = 50, tags: int = 5, has_all: bool = True) -> TaggerData:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, images, 8, generator=generator)
    targets = (features[0, :, :tags] > 0.5).float()
    if not has_all:
        return TaggerData(features[:1], targets)
    weights = torch.rand(images, tags, generator=generator)
    evidence = torch.randn(2, images, tags, generator=generator).half()
    return TaggerData(features.half(), targets, weights, evidence)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_losses_at_logit_zero(value: float) -> None:
    logits, targets = torch.zeros(3, 4), torch.full((3, 4), value)
    assert tagging_loss(logits, targets).item() == pytest.approx(0.693147, abs=1e-6)
    focal = tagging_loss(logits, targets, kind="focal")
    assert focal.item() == pytest.approx(0.173287, abs=1e-6)
    joytag = tagging_loss(logits, targets, kind="focal", scale=256.0)
    assert joytag.item() == pytest.approx(44.36143, abs=1e-4)


def test_focal_loss_with_gamma_zero_is_binary_cross_entropy() -> None:
    logits, targets = torch.randn(4, 6), torch.rand(4, 6)
    focal = tagging_loss(logits, targets, kind="focal", gamma=0.0)
    torch.testing.assert_close(focal, tagging_loss(logits, targets))


def test_targets_of_weight_zero_do_not_count() -> None:
    logits = torch.tensor([[0.3, -2.0]], requires_grad=True)
    weights = torch.tensor([[1.0, 0.0]])
    losses = [
        tagging_loss(logits, torch.tensor([[1.0, unknown]]), weights=weights) for unknown in (0, 1)
    ]
    assert losses[0].item() == losses[1].item()
    losses[0].backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0
    assert logits.grad[0, 0] < 0


def test_no_known_target_gives_loss_zero() -> None:
    assert tagging_loss(torch.ones(1, 1), torch.ones(1, 1), weights=torch.zeros(1, 1)).item() == 0


@pytest.mark.parametrize(
    "options",
    [
        TaggerOptions(epochs=3, batch_size=16),
        TaggerOptions(epochs=3, batch_size=16, loss="focal", hidden=7, mixup=0.3, dropout=0.0),
    ],
)
def test_resume_at_every_step_gives_the_same_bits(options: TaggerOptions, tmp_path: Path) -> None:
    data = make_data()
    whole = TaggerTraining(data, options)
    losses = list(whole.run())
    assert len(losses) == whole.total_steps == 12
    for stop in range(whole.total_steps + 1):
        first = TaggerTraining(data, options)
        early = [first.train_step() for _ in range(stop)]
        first.save(tmp_path / "run.pt")
        torch.manual_seed(stop)  # the state of the global generator must not matter
        second = TaggerTraining(data, replace(options))
        second.restore(tmp_path / "run.pt")
        assert early + list(second.run()) == losses
        for name, value in whole.head.state_dict().items():
            assert torch.equal(value, second.head.state_dict()[name]), name


def test_an_interrupted_save_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = TaggerTraining(make_data(), TaggerOptions(epochs=1))
    path = tmp_path / "run.pt"
    training.save(path)
    before = path.read_bytes()

    def fail(*args: object) -> None:
        raise OSError("disk full")

    training.train_step()
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OutputError, match=r"cannot write .*run\.pt: disk full"):
        training.save(path)
    assert path.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_full_disk_is_told_and_what_was_saved_stays(tmp_path: Path) -> None:
    training = TaggerTraining(make_data(), TaggerOptions(epochs=1))
    path = tmp_path / "run.pt"
    training.save(path)
    before = path.read_bytes()
    (tmp_path / "run.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"cannot write .*run\.pt: [^\n]+$"):
        training.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_restore_refuses_other_options(tmp_path: Path) -> None:
    data, options = make_data(), TaggerOptions(epochs=1)
    TaggerTraining(data, options).save(tmp_path / "run.pt")
    other = TaggerTraining(data, replace(options, learning_rate=1.0))
    with pytest.raises(ValueError, match="other options"):
        other.restore(tmp_path / "run.pt")


def test_it_learns_and_continues_from_its_checkpoint(tmp_path: Path) -> None:
    data = make_data(images=400, has_all=False)
    options = TaggerOptions(
        epochs=60, batch_size=64, learning_rate=0.05, weight_decay=0.0, dropout=0.0
    )
    seen: list[float] = []
    head = train_tagger(data, options, tmp_path / "run.pt", lambda step, loss: seen.append(loss))
    assert seen[-1] < 0.5 * seen[0]
    predicted = head(data.features[0]) > 0
    assert (predicted == data.targets.bool()).float().mean() > 0.8
    seen.clear()
    again = train_tagger(data, options, tmp_path / "run.pt", lambda step, loss: seen.append(loss))
    assert not seen
    assert torch.equal(again.last.weight, head.last.weight)


def test_head_starts_at_the_frequency_of_the_tags() -> None:
    data = make_data(images=300, has_all=False)
    head = TaggerHead(8, 5)
    head.prepare(data, torch.Generator().manual_seed(0))
    share = torch.sigmoid(head(data.features[0])).mean(0)
    torch.testing.assert_close(share, data.targets.mean(0), atol=0.01, rtol=0)


def test_evidence_is_required_when_the_head_was_made_for_it() -> None:
    with pytest.raises(ValueError, match="evidence"):
        TaggerHead(3, 2, has_evidence=True)(torch.zeros(1, 3))


@pytest.mark.parametrize("wrong", [{"loss": "hinge"}, {"epochs": 0}, {"dropout": 1.0}])
def test_options_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        TaggerOptions(**wrong)  # type: ignore[arg-type]


def test_data_of_different_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match="images"):
        TaggerData(torch.zeros(1, 4, 2), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="evidence"):
        TaggerData(torch.zeros(1, 4, 2), torch.zeros(4, 3), evidence=torch.zeros(1, 4, 2))
