"""The arena's table is the reference's arithmetic, and what is said to be certain is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.errors import UsageError
from annotary.evaluation import average_precision
from annotary.evaluation.arena import Arena, ArenaResult, Contender
from annotary.evaluation.tag_matching import match_tags
from annotary.evaluation.tagging_files import mean_rates

TAGS = 8


def made_up(images: int, noises: tuple[float, ...], seed: int = 0) -> tuple[list, np.ndarray]:
    """Scores of models that see the same images with more and less noise, and the truth."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-1.5, 2, (images, TAGS))
    targets = generator.random((images, TAGS)) < 1 / (1 + np.exp(-logits))
    scores = [
        (1 / (1 + np.exp(-(logits + generator.normal(0, noise, logits.shape))))).astype(np.float32)
        for noise in noises
    ]
    return scores, targets


def contenders(count: int, thresholds: tuple[float, ...] = (0.4, 0.35, 0.5)) -> list[Contender]:
    return [
        Contender(
            f"model {k}", f"threshold {thresholds[k]}", np.full(TAGS, thresholds[k], np.float32)
        )
        for k in range(count)
    ]


def run(scores: list, targets: np.ndarray, *, keeps: int = 1 << 20, **options: int) -> ArenaResult:
    arena = Arena(contenders(len(scores)), keeps=keeps)
    for start in range(0, len(targets), 90):
        rows = slice(start, start + 90)
        arena.update([own[rows] for own in scores], targets[rows])
    return arena.result([f"tag{i}" for i in range(TAGS)], **options)


def reference(scores: np.ndarray, targets: np.ndarray, threshold: float) -> np.ndarray:
    """What the reference's script computes, with its small addend."""
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rows = []
    for tag in range(TAGS):
        given, true = scores[:, tag] >= np.float32(threshold), targets[:, tag]
        hits = (given & true).sum()
        precision = hits / (given.sum() + 1e-8)
        recall = hits / (true.sum() + 1e-8)
        f1 = 2 * precision * recall / (precision + recall + 1e-8)
        precise = sklearn_metrics.average_precision_score(true, scores[:, tag])
        rows.append((precision, recall, f1, precise))
    return np.array(rows)


def test_the_table_is_the_references():
    scores, targets = made_up(400, (0.5, 1.5))
    result = run(scores, targets, rounds=0)
    assert result.images == 400
    for one, own, threshold in zip(result.standings, scores, (0.4, 0.35), strict=True):
        expected = reference(own, targets, threshold)
        np.testing.assert_allclose(one.rates.T, expected, atol=1e-7)
        np.testing.assert_allclose(list(one.macro.values()), expected.mean(axis=0), atol=1e-7)
        assert one.intervals == {}
    assert [one.name for one in result.ranked] == ["model 0", "model 1"]
    means = mean_rates(result.detailed())
    assert means["model 1"].f1 == pytest.approx(result.standings[1].macro["f1"])
    (duel,) = result.duels
    apart = result.standings[0].rates[2] - result.standings[1].rates[2]
    assert duel[:5] == ("model 0", "model 1", (apart > 0).sum(), (apart < 0).sum(), 0)
    assert duel.interval is None
    assert sum(result.wins("f1").values()) == TAGS


def test_equal_models_are_equal():
    (scores,), targets = made_up(200, (1.0,))
    arena = Arena([Contender(name, "half", np.full(TAGS, 0.5, np.float32)) for name in ("a", "b")])
    arena.update([scores, scores], targets)
    result = arena.result([str(i) for i in range(TAGS)], rounds=40)
    (duel,) = result.duels
    assert (duel.f1_wins, duel.f1_losses, duel.f1_ties) == (0, 0, TAGS)
    assert (duel.ap_wins, duel.ap_losses, duel.ap_ties) == (0, 0, TAGS)
    assert duel.interval == [0.0, 0.0]
    assert result.wins("ap") == {"a": 0, "b": 0, "": TAGS}


def test_rare_tags_are_left_out():
    scores, targets = made_up(300, (0.5, 1.0))
    targets[:, 2] = False
    targets[:9, 2] = True
    result = run(scores, targets, rounds=0)
    assert "tag2" not in result.tags
    assert len(result.tags) == TAGS - 1
    assert (result.support >= 10).all()
    with pytest.raises(ValueError, match="no tag has 1000 images"):
        run(scores, targets, minimum_support=1000)


def test_drawing_is_what_a_loop_over_drawn_images_gives():
    scores, targets = made_up(120, (0.5, 1.5))
    result = run(scores, targets, rounds=64, seed=3, minimum_support=1)
    generator = np.random.default_rng(3)
    drawn = []
    for _ in range(2):  # rounds are drawn 32 at a time
        drawn += list(generator.multinomial(120, np.full(120, 1 / 120), size=32))
    found: dict[str, list[float]] = {"f1": [], "precision": [], "micro_f1": [], "ap": []}
    for weights in drawn:
        rows = np.repeat(np.arange(120), weights)
        own, true = scores[0][rows], targets[rows]
        given = own >= np.float32(0.4)
        hits, called, had = (given & true).sum(axis=0), given.sum(axis=0), true.sum(axis=0)
        found["f1"].append((2 * hits / (called + had)).mean())
        found["precision"].append((hits / called).mean())
        found["micro_f1"].append(2 * hits.sum() / (called.sum() + had.sum()))
        found["ap"].append(average_precision(own, true).mean())
    for name, values in found.items():
        low, high = np.quantile(values, [0.025, 0.975])
        assert result.standings[0].intervals[name] == pytest.approx([low, high]), name


def test_differences_of_paired_models_are_surer_than_either():
    scores, targets = made_up(300, (0.6, 0.9))
    result = run(scores, targets, rounds=200)
    (duel,) = result.duels
    low, high = duel.interval
    own = result.standings[0].intervals["f1"]
    assert low < duel.f1_difference < high
    assert high - low < own[1] - own[0]
    again = run(scores, targets, rounds=200)
    assert again.duels == result.duels
    assert run(scores, targets, rounds=200, seed=1).duels != result.duels


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    """Of many small samples of one population, most intervals of micro F1 hold that of the whole."""
    scores, targets = made_up(20_000, (0.8,), seed=9)
    whole = run(scores, targets, rounds=0).standings[0].micro["f1"]
    held = 0
    for start in range(0, 20_000, 500):
        rows = slice(start, start + 500)
        result = run([scores[0][rows]], targets[rows], rounds=100)
        low, high = result.standings[0].intervals["micro_f1"]
        held += low <= whole <= high
    assert 33 <= held <= 40


def test_without_room_average_precision_is_of_bins_and_has_no_interval():
    scores, targets = made_up(300, (0.5, 1.0))
    exact, rounded = run(scores, targets, rounds=20), run(scores, targets, rounds=20, keeps=0)
    assert "ap" not in rounded.standings[0].intervals
    assert not rounded.standings[0].is_exact
    assert rounded.standings[0].macro["ap"] == pytest.approx(
        exact.standings[0].macro["ap"], abs=0.01
    )
    low, high = rounded.to_json()["models"][0]["ap_bounds"]
    assert low <= exact.standings[0].macro["ap"] <= high


def test_what_is_not_known_counts_nowhere():
    (scores,), targets = made_up(300, (1.0,))
    known = np.random.default_rng(1).random(targets.shape) < 0.5
    arena = Arena(contenders(1))
    arena.update([scores[:120]], targets[:120], known[:120])
    arena.update([scores[120:]], targets[120:], known[120:])
    found = arena.result([f"tag{i}" for i in range(TAGS)], rounds=200)
    (standing,) = found.standings
    assert found.support.tolist() == (targets & known).sum(0).tolist()
    given = scores >= np.float32(0.4)
    hits = (given & targets & known).sum(0)
    precision = hits / (given & known).sum(0)
    np.testing.assert_allclose(standing.rates[0], precision)
    np.testing.assert_allclose(standing.rates[3], average_precision(scores, targets, known))
    for name, value in (("precision", precision.mean()), ("ap", standing.macro["ap"])):
        low, high = standing.intervals[name]
        assert low < value < high


def test_two_of_one_name_are_refused():
    one = Contender("a", "r", np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="different"):
        Arena([one, one])


def test_tags_are_matched_by_name():
    match = match_tags(
        ("Long hair", "^_^", "cat", "kitty", "only here", "steins;gate"),
        {
            "a": ("steins;gate", "long_hair", "^_^", "cats", "only_a"),
            "b": ("LONG_HAIR", "feline", "^_^", "steins;gate", "cat"),
        },
        {"kitty": "cat", "cats": "kitty", "feline": "cat"},
    )
    assert match.names == ("Long hair", "^_^", "cat", "steins;gate")
    assert match.dataset.unmatched.tolist() == [4]
    assert match.models[0].unmatched.tolist() == [4]
    scores = np.array([[0.1, 0.2, 0.3, 0.4, 0.5]], np.float32)
    np.testing.assert_allclose(match.models[0].scores(scores), [[0.2, 0.3, 0.4, 0.1]])
    np.testing.assert_allclose(match.models[1].scores(scores), [[0.1, 0.3, 0.5, 0.4]])
    np.testing.assert_allclose(match.models[1].thresholds(scores[0]), [0.1, 0.3, 0.2, 0.4])
    targets = match.targets([(0, 3), (2, 4), ()])
    np.testing.assert_array_equal(targets, [[1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]])


def test_a_tag_is_known_where_one_of_its_names_is():
    match = match_tags(["cat", "kitty", "dog"], {"m": ["cat", "dog"]}, {"kitty": "cat"})
    mask = np.array([[True, False, False], [False, True, True], [False, False, True]])
    assert match.names == ("cat", "dog")
    assert match.known(mask).tolist() == [[True, False], [True, True], [False, True]]
    assert match.known(None) is None


def test_tags_that_cannot_be_matched_are_told():
    with pytest.raises(UsageError, match="no tag in common"):
        match_tags(("a",), {"m": ("b",)})
    with pytest.raises(UsageError, match="in circles"):
        match_tags(("a",), {"m": ("a",)}, {"a": "b", "b": "a"})


@given(st.lists(st.text("ab_ ^", min_size=1), min_size=1, max_size=6, unique=True))
def test_every_tag_of_a_dataset_is_matched_or_left_out_once(names):
    try:
        match = match_tags(names, {"m": names[: max(1, len(names) // 2)]})
    except UsageError:
        return
    places = [
        *match.dataset.first.tolist(),
        *(place for _, place in match.dataset.more),
        *match.dataset.unmatched.tolist(),
    ]
    assert sorted(places) == list(range(len(names)))
