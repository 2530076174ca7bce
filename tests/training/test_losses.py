"""Losses of tags: the reference's values, gradients, independent implementations, and 16 bits."""

from __future__ import annotations

import math
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from annotary.training import losses, tagger  # noqa: E402
from annotary.training.losses import (  # noqa: E402
    LOSS_NAMES,
    TaggingLoss,
    asymmetric_losses,
    positive_weights,
    smoothed,
    tagging_loss,
)
from annotary.training.recipe import LossRecipe  # noqa: E402

LOG_2 = math.log(2.0)

AT_ZERO = {
    "ce": 0.693147,
    "bce": 0.693147,
    "weighted": 0.693147,
    "focal": 0.173287,
    "focal2": 44.36143,
    "asl": 12 * 0.693147,
    "asl2": 12 * 0.693147,
    "asl3": 0.693147,
    "asl4": 88.72286,
    "asl5": 88.72286,
    "asl6": 177.44572,
    "asl7": 1.386294,
}
"""The reference's values for logits of 0 and any targets; sums are those of 3 images with 4 tags."""


@pytest.mark.parametrize("name", AT_ZERO)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_reference_values_at_logit_zero(name: str, value: float) -> None:
    loss = tagging_loss(torch.zeros(3, 4), torch.full((3, 4), value), kind=name)
    assert loss.item() == pytest.approx(AT_ZERO[name], rel=2e-6)


@pytest.mark.parametrize(("name", "scale"), [("asl8", 256), ("asl9", 358)])
def test_the_true_asymmetric_losses_at_logit_zero(name: str, scale: float) -> None:
    logits = torch.zeros(3, 4)
    positive = tagging_loss(logits, torch.ones(3, 4), kind=name).item()
    assert positive == pytest.approx(scale * 0.5 * LOG_2)
    negative = tagging_loss(logits, torch.zeros(3, 4), kind=name).item()
    assert negative == pytest.approx(scale * -(0.45**4) * math.log(0.55))


def test_recipes_name_every_loss() -> None:
    kinds = typing.get_args(typing.get_type_hints(LossRecipe)["kind"])
    assert {*kinds, "ce"} == set(LOSS_NAMES) == {*AT_ZERO, "asl8", "asl9"}


def _slow_loss(name: str, logit: float, target: float) -> float:
    """A target's loss as the papers write it, in plain Python."""
    p = 1 / (1 + math.exp(-logit))
    entropy = -(target * math.log(p) + (1 - target) * math.log(1 - p))
    if name.startswith("focal"):
        return entropy * abs(p - target) ** 2 * (256 if name == "focal2" else 1)
    if name in ("asl8", "asl9"):
        q = max(p - 0.05, 0.0)
        positive, negative = (1 - p) * math.log(p), q**4 * math.log(1 - q)
        return -(target * positive + (1 - target) * negative) * (256 if name == "asl8" else 358)
    return entropy * {"asl4": 128, "asl5": 128, "asl6": 256, "asl7": 2}.get(name, 1)


values = st.lists(
    st.tuples(st.floats(-15, 15), st.floats(0, 1) | st.sampled_from([0.0, 1.0]), st.floats(0, 3)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(LOSS_NAMES), values, st.booleans())
def test_losses_are_those_of_the_papers(
    name: str, rows: list[tuple[float, float, float]], has_weights: bool
) -> None:
    logits, targets, weights = torch.tensor(rows, dtype=torch.float64).T[:, None]
    each = [_slow_loss(name, logit, target) for logit, target, _ in rows]
    counts = [weight if has_weights else 1.0 for *_, weight in rows]
    expected = math.fsum(one * count for one, count in zip(each, counts, strict=True))
    if name not in ("asl", "asl2"):
        expected /= max(math.fsum(counts), 1e-12)
    weights = weights if has_weights else None
    found = tagging_loss(logits, targets, kind=name, weights=weights)
    assert found.item() == pytest.approx(expected, rel=1e-7, abs=1e-7)
    single = tagging_loss(logits.float(), targets.float(), kind=name, weights=weights)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_gradients(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(4, 5, dtype=torch.float64, generator=generator)
    targets = torch.rand(4, 5, dtype=torch.float64, generator=generator).round(decimals=1)
    weights = torch.rand(4, 5, dtype=torch.float64, generator=generator)
    more = torch.rand(5, dtype=torch.float64, generator=generator) if name == "weighted" else None
    for known in (None, weights):
        assert torch.autograd.gradcheck(
            lambda x, known=known: tagging_loss(
                x, targets, kind=name, weights=known, positive_weights=more
            ),
            logits.requires_grad_(),
        )


@pytest.mark.parametrize("name", LOSS_NAMES)
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_sixteen_bits_give_what_their_logits_give_in_thirty_two(
    name: str, kind: torch.dtype
) -> None:
    logits = torch.tensor([[-60000.0, -90.0, -20.0, -1.0], [60000.0, 90.0, 20.0, 1.0]]).to(kind)
    for targets in (torch.zeros(2, 4, dtype=torch.uint8), torch.ones(2, 4, dtype=torch.uint8)):
        exact = logits.float().requires_grad_()
        expected = tagging_loss(exact, targets, kind=name)
        (slope,) = torch.autograd.grad(expected, exact)
        assert torch.isfinite(slope).all()
        rough = logits.clone().requires_grad_()
        with torch.autocast("cpu", kind):
            found = tagging_loss(rough, targets, kind=name)
        assert found.dtype == torch.float32
        assert torch.isfinite(found)
        assert found.item() == expected.item()
        (rough_slope,) = torch.autograd.grad(found, rough)
        assert rough_slope.dtype == kind
        torch.testing.assert_close(rough_slope, slope.to(kind))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_no_slope_is_lost_where_a_probability_is_exact(gamma: float) -> None:
    logits = torch.tensor([[-200.0, 0.0, 200.0]], requires_grad=True)
    targets = torch.tensor([[0.0, 0.5, 1.0]])
    (slope,) = torch.autograd.grad(tagging_loss(logits, targets, kind="focal", gamma=gamma), logits)
    assert torch.isfinite(slope).all()


def test_asymmetric_loss_without_its_exponents_and_shift_is_binary_cross_entropy() -> None:
    logits, targets = torch.randn(4, 6), torch.rand(4, 6)
    found = asymmetric_losses(logits, targets, positive_gamma=0, negative_gamma=0, shift=0)
    torch.testing.assert_close(found.mean(), tagging_loss(logits, targets))


def test_targets_that_are_not_known_do_not_count() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    targets = torch.randint(0, 2, (3, 4))
    known = torch.rand(3, 4) < 0.6
    known[0, 0] = True
    for name in LOSS_NAMES:
        loss = tagging_loss(logits, targets, kind=name, weights=known)
        other = tagging_loss(
            logits, torch.where(known, targets, 1 - targets), kind=name, weights=known
        )
        assert loss.item() == other.item()
        (slope,) = torch.autograd.grad(loss, logits)
        assert not slope[~known].any()
        alone = tagging_loss(logits[known], targets[known], kind=name)
        assert loss.item() == pytest.approx(alone.item(), rel=1e-5)


def test_whole_images_may_not_count() -> None:
    logits, targets = torch.randn(3, 4), torch.randint(0, 2, (3, 4))
    found = tagging_loss(logits, targets, weights=torch.tensor([[1.0], [0.0], [1.0]]))
    assert found.item() == pytest.approx(tagging_loss(logits[::2], targets[::2]).item(), rel=1e-6)


def test_rare_tags_weigh_more() -> None:
    found = positive_weights(torch.tensor([50, 10, 1, 0, 100]), 100)
    assert found.tolist() == [1.0, 9.0, 99.0, 100.0, 0.0]
    roots = positive_weights(torch.tensor([50, 10, 1, 0]), 101, root=2.0)
    assert roots.tolist() == pytest.approx([math.sqrt(51 / 50), math.sqrt(91 / 10), 10.0, 100.0])
    assert positive_weights(torch.tensor([0]), 0).tolist() == [100.0]
    targets = torch.tensor([[1.0, 0.0]])
    loss = TaggingLoss(LossRecipe("weighted"), torch.tensor([9.0, 9.0]))(torch.zeros(1, 2), targets)
    assert loss.item() == pytest.approx((9 * LOG_2 + LOG_2) / 2)


def test_weights_of_positives_belong_to_one_loss() -> None:
    for kind, weights in (("weighted", None), ("bce", torch.ones(2))):
        with pytest.raises(ValueError, match="positive weights belong to the loss weighted"):
            TaggingLoss(LossRecipe(kind), weights)  # type: ignore[arg-type]


def test_smoothing_moves_targets_towards_one_half() -> None:
    assert smoothed(torch.tensor([0, 1]), 0.1).tolist() == pytest.approx([0.05, 0.95])
    targets = torch.tensor([0.0, 1.0])
    assert smoothed(targets, 0.0) is targets
    logits, hard = torch.randn(3, 4), torch.randint(0, 2, (3, 4), dtype=torch.uint8)
    found = TaggingLoss(LossRecipe("bce", label_smoothing=0.2))(logits, hard)
    expected = 0.9 * tagging_loss(logits, hard) + 0.1 * tagging_loss(logits, 1 - hard)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_recipe_s_loss_says_whether_it_grows_with_the_batch() -> None:
    logits, targets = torch.randn(3, 4), torch.randint(0, 2, (3, 4))
    for kind in typing.get_args(typing.get_type_hints(LossRecipe)["kind"]):
        loss = TaggingLoss(LossRecipe(kind), torch.ones(4) if kind == "weighted" else None)
        once = loss(logits, targets).item()
        twice = loss(torch.cat([logits] * 2), torch.cat([targets] * 2)).item()
        assert twice == pytest.approx(once * (2 if loss.is_sum else 1), rel=1e-5), kind


def test_heads_on_features_have_the_same_loss() -> None:
    assert tagger.tagging_loss is losses.tagging_loss
