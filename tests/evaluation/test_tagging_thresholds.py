"""Fitted thresholds are the best there are, and drawing those of rare tags to the others does not lose."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotary.cards import Vocabulary, read_vocabulary
from annotary.evaluation import TagCounts
from annotary.evaluation.tagging_streams import ScoreHistograms
from annotary.evaluation.tagging_thresholds import (
    FittingOptions,
    card_text,
    fit,
    held_out,
    tags_text,
    thresholds_text,
)
from annotary.tasks.tag_selection import TaggingOptions, thresholds_of


def made_up(
    images: int, tags: int, seed: int = 0, spread: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of tags that are rare and frequent, each with a bias of its own."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-2, 1.5, (images, tags)) - np.linspace(0, 3, tags)
    targets = generator.random((images, tags)) < 1 / (1 + np.exp(-logits))
    shown = logits + generator.normal(0, 0.7, (images, tags)) + generator.normal(0, spread, tags)
    return (1 / (1 + np.exp(-shown))).astype(np.float32), targets


def histograms_of(scores: np.ndarray, targets: np.ndarray) -> ScoreHistograms:
    found = ScoreHistograms(scores.shape[1])
    found.update(scores, targets)
    return found


def counts_at(thresholds: np.ndarray, scores: np.ndarray, targets: np.ndarray) -> TagCounts:
    counts = TagCounts(scores.shape[1])
    counts.update(scores >= thresholds, targets)
    return counts


NO_CATEGORY = ("",) * 12


@pytest.mark.parametrize("rule", ["macro-f1", "micro-f1"])
def test_one_threshold_is_as_good_as_the_best_of_a_search(rule):
    scores, targets = made_up(600, 12)
    found = fit(histograms_of(scores, targets), FittingOptions(fit=rule), NO_CATEGORY)
    assert len(set(found.values.tolist())) == 1
    mean = rule.removesuffix("-f1")

    def reached(threshold: float) -> float:
        return getattr(counts_at(np.full(12, threshold, np.float32), scores, targets), mean)().f1

    best = max(reached(one) for one in np.linspace(0.02, 0.98, 97))
    assert reached(found.values[0]) >= best - 2e-3


def test_precision_equals_recall_where_that_is_asked():
    scores, targets = made_up(3000, 12)
    found = fit(histograms_of(scores, targets), FittingOptions(fit="p=r"), NO_CATEGORY)
    micro = counts_at(found.values, scores, targets).micro()
    assert micro.precision == pytest.approx(micro.recall, abs=0.01)


@pytest.mark.parametrize("rule", ["macro-f1", "micro-f1", "p=r"])
def test_the_more_thresholds_the_better_on_the_same_images(rule):
    scores, targets = made_up(800, 12, seed=5, spread=2.0)
    histograms, categories = histograms_of(scores, targets), tuple("aaabbbcccddd")
    reached = []
    for per in ("all", "category", "tag"):
        options = FittingOptions(fit=rule, per=per, shrinkage=0.0, fit_support=1)
        found = fit(histograms, options, categories)
        counts = counts_at(found.values, scores, targets)
        reached.append((counts.micro() if rule == "micro-f1" else counts.macro()).f1)
        assert len(found.groups) == (4 if per == "category" else 0)
    if rule != "p=r":
        assert reached[0] <= reached[1] + 1e-9
        assert reached[1] <= reached[2] + 1e-9
    assert reached[2] > reached[0] + 0.01


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_micro_f1_over_tags_is_not_beaten_by_any_change_of_one_threshold(seed):
    scores, targets = made_up(80, 4, seed)
    if not targets.any(axis=0).all():
        return
    options = FittingOptions(fit="micro-f1", per="tag", shrinkage=0.0, fit_support=1)
    found = fit(histograms_of(scores, targets), options, ("",) * 4).values
    reached = counts_at(found, scores, targets).micro().f1
    for tag in range(4):
        for other in (0.01, 0.05, 0.1, 0.2, 0.4, 0.8):
            changed = found.copy()
            changed[tag] = other
            assert counts_at(changed, scores, targets).micro().f1 <= reached + 1e-9


def test_rare_tags_get_the_pooled_threshold():
    scores, targets = made_up(400, 12)
    targets[:, 3] = False
    targets[:2, 3] = True
    options = FittingOptions(fit="macro-f1", per="tag", fit_support=5, shrinkage=3.0)
    found = fit(histograms_of(scores, targets), options, NO_CATEGORY)
    support = targets.sum(axis=0)
    assert found.own == (support >= 5).sum()
    np.testing.assert_allclose(found.values[support < 5], found.pooled, rtol=1e-6)
    assert "shrinkage 3" in found.told


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0])
def test_shrinkage_does_not_lose_on_other_images(spread):
    """Averaged over draws, neither one threshold for all nor one for each tag beats what is chosen between them."""
    reached = {"all": [], "own": [], "shrunk": []}
    for seed in range(5):
        scores, targets = made_up(900, 30, seed, spread)
        others, truth = scores[600:], targets[600:]
        halves = [histograms_of(scores[k:600:2], targets[k:600:2]) for k in (0, 1)]
        whole = histograms_of(scores[:600], targets[:600])
        for name, per, shrinkage in (
            ("all", "all", None),
            ("own", "tag", 0.0),
            ("shrunk", "tag", None),
        ):
            options = FittingOptions(fit="macro-f1", per=per, shrinkage=shrinkage, fit_support=1)
            found = fit(whole, options, ("",) * 30, halves)
            reached[name].append(counts_at(found.values, others, truth).macro().f1)
    means = {name: float(np.mean(values)) for name, values in reached.items()}
    assert means["shrunk"] >= max(means["all"], means["own"]) - 0.004, means
    if spread == 2.0:
        assert means["shrunk"] > means["all"] + 0.02


def test_images_are_judged_by_thresholds_of_the_other_half():
    scores, targets = made_up(500, 12)
    halves = [histograms_of(scores[k::2], targets[k::2]) for k in (0, 1)]
    options = FittingOptions(fit="micro-f1")
    counts = held_out(options, NO_CATEGORY, halves, None)
    assert counts is not None
    expected = TagCounts(12)
    for one, other in ((0, 1), (1, 0)):
        thresholds = fit(halves[one], options, NO_CATEGORY).values
        expected.update(scores[other::2] >= thresholds, targets[other::2])
    np.testing.assert_array_equal(counts.true_positives, expected.true_positives)
    np.testing.assert_array_equal(counts.false_positives, expected.false_positives)
    assert counts.true_negatives.sum() + counts.support.sum() + counts.false_positives.sum() == 6000
    empty = ScoreHistograms(12)
    assert held_out(options, NO_CATEGORY, [halves[0], empty], None) is None


def test_what_is_written_is_what_models_read(tmp_path):
    scores, targets = made_up(500, 12, spread=2.0)
    names = tuple(f"tag,{i}" for i in range(12))
    vocabulary = Vocabulary(("other", *names), ("", *"aaabbbcccddd"), {"precise": (0.9,) * 13})
    options = FittingOptions(fit="macro-f1", per="tag", shrinkage=1.0)
    found = fit(histograms_of(scores, targets), options, tuple("aaabbbcccddd"))
    path = tmp_path / "thresholds.csv"
    path.write_text(thresholds_text(names, found.values))
    chosen = thresholds_of(
        Vocabulary(vocabulary.names, vocabulary.categories),
        TaggingOptions(tag_thresholds=path),
        "m",
    )
    np.testing.assert_array_equal(chosen[1:], found.values)
    (tmp_path / "tags.csv").write_text(tags_text(vocabulary, np.arange(1, 13), found))
    again = read_vocabulary(tmp_path)
    assert again.names == vocabulary.names
    np.testing.assert_allclose(again.thresholds["balanced"][1:], found.values, rtol=1e-6)
    assert again.thresholds["balanced"][0] == pytest.approx(found.pooled, rel=1e-6)
    assert again.thresholds["precise"] == (0.9,) * 13
    with pytest.raises(ValueError, match="single tags"):
        card_text(found)
    by_category = fit(
        histograms_of(scores, targets),
        FittingOptions(fit="macro-f1", per="category"),
        tuple("aaabbbcccddd"),
    )
    table = tomllib.loads(card_text(by_category))["thresholds"]["balanced"]
    assert set(table) == {"a", "b", "c", "d", "*"}
    assert table["b"] == pytest.approx(by_category.groups["b"], rel=1e-6)
    filled = Vocabulary(names, tuple("aaabbbcccddd")).with_thresholds({"balanced": table})
    np.testing.assert_allclose(filled.thresholds["balanced"], by_category.values, rtol=1e-6)


def test_options_that_make_no_sense_are_refused():
    for wrong in ({"fit": "best"}, {"per": "image"}, {"fit_support": -1}, {"shrinkage": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FittingOptions(**wrong)
    histograms = ScoreHistograms(2)
    with pytest.raises(ValueError, match="rule"):
        fit(histograms, FittingOptions(), ("", ""))
    with pytest.raises(ValueError, match="no image"):
        fit(histograms, FittingOptions(fit="p=r"), ("", ""))
