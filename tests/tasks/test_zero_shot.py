"""Zero-shot classification: scores, thresholds and labels, each against the formula written out again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.cards import Similarity
from annotary.errors import UsageError
from annotary.records import Decision, Item
from annotary.tasks.calibration import Calibration
from annotary.tasks.encoding import Texts, dual_encoder, image_encoder
from annotary.tasks.label_sets import (
    DEFAULT_BACKGROUND,
    LabelClass,
    LabelSet,
    read_templates,
)
from annotary.tasks.zero_shot import (
    MOST_LABELS,
    ZeroShot,
    ZeroShotOptions,
)
from tests.pictures import seen
from tests.small_encoder import COLOURS, SmallEncoder, plain

COLOUR_LABELS = LabelSet.of(list(COLOURS))
PICTURES = np.concatenate([plain(colour) for colour in COLOURS.values()])
ITEMS = [Item(name, pixels=np.zeros((1, 1, 3), np.uint8)) for name in COLOURS]


class Told:
    """A model whose cosines are told: the vector of a text is an axis, that of an image its cosines."""

    streams = 1
    batch_size = 8

    def __init__(
        self,
        cosines: Mapping[str, float],
        kind: str = "softmax",
        *,
        scale: float = 10.0,
        bias: float = 0.0,
        card: Any = None,
    ) -> None:
        self.similarity = Similarity(kind, scale, bias)  # type: ignore[arg-type]
        self.card = card or SmallEncoder().card
        self._cosines = dict(cosines)

    def embed_texts(self, texts: Sequence[str]) -> Texts:
        places = [list(self._cosines).index(text) for text in texts]
        axes = np.eye(len(self._cosines), dtype=np.float32)[places]
        return Texts(axes, np.zeros(len(texts), dtype=np.bool_))

    def embed_images(self, batch: np.ndarray) -> np.ndarray:
        return np.tile(np.float32(list(self._cosines.values())), (len(batch), 1))


def labels_of(task: ZeroShot, item: Item = ITEMS[0]) -> dict[str, float]:
    (parts,) = task.annotate(seen([item]), PICTURES[:1])
    assert list(parts) == ["labels"]
    assert isinstance(parts["labels"], tuple)
    return {label.name: label.score for label in parts["labels"]}


def told_task(
    cosines: Mapping[str, float], options: ZeroShotOptions | None = None, **more: Any
) -> ZeroShot:
    model_options = {key: more.pop(key) for key in ("kind", "scale", "bias", "card") if key in more}
    background = more.pop("background", ())
    names = [name for name in cosines if name not in background]
    labels = LabelSet.of(
        names, "{}", none_label=more.pop("none_label", None), background=background
    )
    return ZeroShot(Told(cosines, **model_options), labels, options, **more)


def softmax(logits: Sequence[float]) -> list[float]:
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / math.fsum(powers) for power in powers]


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0


def log_mean_exp(logits: Sequence[float]) -> float:
    return math.log(math.fsum(map(math.exp, logits)) / len(logits))


# Scores


def test_labels_compete_in_a_softmax():
    cosines = {"cat": 0.3, "dog": 0.25, "bus": -0.1}
    expected = softmax([3.0, 2.5, -1.0])
    assert list(labels_of(told_task(cosines)).values()) == pytest.approx(expected, abs=1e-6)
    assert sum(labels_of(told_task(cosines)).values()) == pytest.approx(1, abs=1e-6)


def test_one_label_alone_has_all_of_it():
    assert labels_of(told_task({"cat": -0.5})) == {"cat": 1.0}


def test_backgrounds_compete_and_are_no_labels():
    cosines = {"cat": 0.3, "dog": 0.25, "any": 0.1, "thing": 0.2}
    expected = softmax([3.0, 2.5, 1.0, 2.0])
    found = labels_of(told_task(cosines, background=("any", "thing")))
    assert found == pytest.approx({"cat": expected[0], "dog": expected[1]}, abs=1e-6)


def test_none_is_the_share_of_all_backgrounds_and_has_its_place_in_the_order():
    cosines = {"cat": 0.3, "dog": 0.05, "any": 0.1, "thing": 0.2}
    expected = softmax([3.0, 0.5, 1.0, 2.0])
    found = labels_of(told_task(cosines, background=("any", "thing"), none_label="none"))
    assert list(found) == ["cat", "none", "dog"]
    assert found["none"] == pytest.approx(expected[2] + expected[3], abs=1e-6)
    assert sum(found.values()) == pytest.approx(1, abs=1e-6)


def test_without_a_told_background_none_is_compared_with_sentences_for_any_image():
    model = SmallEncoder()
    task = ZeroShot(model, LabelSet.of("red, blue", none_label="none"))
    prompts = ["a photo of a red.", "a photo of a blue.", *DEFAULT_BACKGROUND]
    texts = SmallEncoder().embed_texts(prompts).vectors.astype(np.float64)
    (image,) = model.embed_images(plain((90, 90, 90))).astype(np.float64)
    expected = softmax(list(20 * texts @ image))
    (parts,) = task.annotate(seen(ITEMS[:1]), plain((90, 90, 90)))
    found = {label.name: label.score for label in parts["labels"]}
    assert found == pytest.approx(
        {"red": expected[0], "blue": expected[1], "none": sum(expected[2:])}, abs=1e-5
    )


def test_several_labels_are_each_compared_with_the_background_alone():
    cosines = {"cat": 0.3, "dog": 0.28, "bus": -0.1, "any": 0.1, "thing": 0.2}
    options = ZeroShotOptions(multi_label=True)
    task = told_task(cosines, options, background=("any", "thing"), none_label="none")
    level = log_mean_exp([1.0, 2.0])
    expected = {name: sigmoid(10 * cosines[name] - level) for name in ("cat", "dog", "bus")}
    none = math.prod(1 - score for score in expected.values())
    found = labels_of(task)
    assert found == pytest.approx({**expected, "none": none}, abs=1e-6)
    assert list(found) == ["cat", "dog", "bus", "none"]
    # What one label scores does not depend on the others.
    alone = told_task({"cat": 0.3, "any": 0.1, "thing": 0.2}, options, background=("any", "thing"))
    assert labels_of(alone)["cat"] == found["cat"]


@pytest.mark.parametrize("multi_label", [False, True])
def test_sigmoid_weights_score_each_label_by_itself(multi_label: bool):
    cosines = {"cat": 0.9, "dog": 0.85, "bus": -0.5}
    options = ZeroShotOptions(multi_label=multi_label)
    task = told_task(cosines, options, kind="sigmoid", bias=-8.5, none_label="none")
    expected = {name: sigmoid(10 * cosine - 8.5) for name, cosine in cosines.items()}
    none = math.prod(1 - score for score in expected.values())
    found = labels_of(task)
    assert found == pytest.approx({**expected, "none": none}, abs=1e-6)
    assert sum(found.values()) > 1.1  # nothing makes them sum to one


def test_sigmoid_weights_take_no_background():
    with pytest.raises(UsageError, match="--background is for models whose labels compete"):
        told_task({"cat": 0.1, "any": 0.2}, kind="sigmoid", background=("any",))


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("temperature", [1.0, 1e-3, 1e6])
def test_extreme_logits_are_scores_still(kind, multi_label, sign, temperature):
    cosines = {"cat": 1.0 * sign, "dog": -1.0 * sign, "bus": 0.0, "tie": 1.0 * sign, "any": 0.5}
    is_softmax = kind == "softmax"
    if not is_softmax:
        del cosines["any"]
    options = ZeroShotOptions(multi_label=multi_label)
    task = told_task(
        cosines,
        options,
        kind=kind,
        scale=1e4,
        none_label="none",
        background=("any",) if is_softmax else (),
        calibration=Calibration("small@1.0", multi_label, temperature),
    )
    with np.errstate(all="raise", under="ignore"):
        found = labels_of(task)
    assert len(found) == 5
    assert all(0 <= score <= 1 for score in found.values())
    assert list(found.values()) == sorted(found.values(), reverse=True)
    if is_softmax and not multi_label:
        assert sum(found.values()) == pytest.approx(1, abs=5e-6)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=30), st.booleans())
def test_any_logits_are_scores(logits: list[float], multi_label: bool):
    names = {f"{i}": 0.0 for i in range(len(logits))}
    options = ZeroShotOptions(multi_label=multi_label)
    task = told_task({**names, "any": 0.0}, options, background=("any",))
    scores, none = task.scores(np.float32([*logits, 0.0]))
    if multi_label:
        expected = [sigmoid(logit) for logit in logits]
        assert none == pytest.approx(math.prod(1 - sigmoid(logit) for logit in logits), abs=1e-6)
    else:
        *expected, last = softmax([*logits, 0.0])
        assert none == pytest.approx(last, abs=1e-6)
        assert scores.sum(dtype=np.float64) + none == pytest.approx(1, abs=1e-5)
    assert scores.dtype == np.float32
    assert scores.tolist() == pytest.approx(expected, abs=1e-6)


def test_scores_of_a_batch_are_those_of_single_images():
    task = ZeroShot(SmallEncoder(), COLOUR_LABELS, ZeroShotOptions(top=3))
    together = task.annotate(seen(ITEMS), PICTURES)
    alone = [
        task.annotate(seen(ITEMS[i : i + 1]), PICTURES[i : i + 1])[0] for i in range(len(ITEMS))
    ]
    for one, other in zip(together, alone, strict=True):
        names, other_names = ([label.name for label in parts["labels"]] for parts in (one, other))
        assert names == other_names
        assert [label.score for label in one["labels"]] == pytest.approx(
            [label.score for label in other["labels"]], abs=1e-5
        )


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_pictures_of_a_colour_get_its_name(kind, multi_label):
    options = ZeroShotOptions(top=1, multi_label=multi_label)
    task = ZeroShot(SmallEncoder(kind), COLOUR_LABELS, options)
    found = [parts["labels"][0].name for parts in task.annotate(seen(ITEMS), PICTURES)]
    assert found == list(COLOURS)


def test_templates_are_averaged_before_the_image_is_asked():
    templates = read_templates("imagenet")
    labels = LabelSet.of(list(COLOURS), templates)
    task = ZeroShot(SmallEncoder(), labels)
    model = SmallEncoder()
    images = model.embed_images(PICTURES).astype(np.float64)
    classes = []
    for colour in COLOURS:
        vectors = model.embed_texts([text.format(colour) for text in templates]).vectors
        mean = vectors.astype(np.float64).mean(axis=0)
        classes.append(mean / np.linalg.norm(mean))
    expected = [softmax(list(row)) for row in 20 * images @ np.array(classes).T]
    for parts, row in zip(task.annotate(seen(ITEMS), PICTURES), expected, strict=True):
        found = {label.name: label.score for label in parts["labels"]}
        assert found == pytest.approx(dict(zip(COLOURS, row, strict=True)), abs=1e-5)


# Which labels an image gets


def test_equal_scores_stay_in_the_order_of_the_user():
    names = [f"label {i}" for i in (5, 3, 9, 1, 7)]
    assert list(labels_of(told_task(dict.fromkeys(names, 0.5)))) == names
    found = labels_of(told_task({**dict.fromkeys(names, 0.5), "best": 0.6}))
    assert list(found) == ["best", *names]


def test_without_top_an_image_gets_a_hundred_labels():
    cosines = {f"{i}": i / 1000 for i in range(300)}
    assert list(labels_of(told_task(cosines))) == [f"{299 - i}" for i in range(MOST_LABELS)]
    assert len(labels_of(told_task(cosines, ZeroShotOptions(top=150)))) == 150
    assert list(labels_of(told_task(cosines, ZeroShotOptions(top=1)))) == ["299"]
    assert len(labels_of(told_task({"a": 0, "b": 0}, ZeroShotOptions(top=9)))) == 2


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=80),
    st.integers(1, 12),
    st.integers(0, 12),
)
def test_the_best_of_many_are_those_of_a_full_sort(grades: list[int], top: int, least: int):
    cosines = {f"{i}": grade / 10 for i, grade in enumerate(grades)}
    options = ZeroShotOptions(top=top, threshold=sigmoid(least - 6.5))
    found = labels_of(told_task(cosines, options, kind="sigmoid", bias=-6.0))
    kept = [name for name in cosines if 10 * cosines[name] - 6 > least - 6.5]
    expected = sorted(kept, key=lambda name: -cosines[name])[:top]
    assert list(found) == expected


def test_twenty_thousand_labels_give_what_a_full_sort_gives():
    generator = np.random.default_rng(0)
    words = [f"thing {i}" for i in range(20_000)]
    model = SmallEncoder()
    task = ZeroShot(model, LabelSet.of(words), ZeroShotOptions(top=50))
    assert max(map(len, model.calls)) <= 4096
    assert model.texts == 20_000
    pictures = generator.random((4, 3, 8, 8), dtype=np.float32)
    logits = task.logits(model.embed_images(pictures)).astype(np.float64)
    assert logits.shape == (4, 20_000)
    for parts, row in zip(task.annotate(seen(ITEMS[:4]), pictures), logits, strict=True):
        scores = np.exp(row - row.max())
        scores /= scores.sum()
        order = np.argsort(-scores.astype(np.float32), kind="stable")[:50]
        assert [label.name for label in parts["labels"]] == [words[i] for i in order]
        assert [label.score for label in parts["labels"]] == pytest.approx(scores[order], rel=1e-5)


def test_labels_at_the_threshold_are_kept():
    options = ZeroShotOptions(threshold=0.5)
    cosines = {"above": 0.1, "at": 0.0, "below": -0.001}
    assert list(labels_of(told_task(cosines, options, kind="sigmoid"))) == ["above", "at"]
    assert labels_of(told_task({"low": -0.5}, options, kind="sigmoid")) == {}
    zero = ZeroShotOptions(threshold=0.0)
    assert list(labels_of(told_task({"low": -1.0}, zero, kind="sigmoid", scale=1e4))) == ["low"]


def test_of_several_thresholds_the_nearest_to_the_user_holds():
    classes = tuple(
        LabelClass(name, (name,), own)
        for name, own in zip("abcd", (0.2, 0.2, None, None), strict=True)
    )
    learned = Calibration("small@1.0", thresholds=dict.fromkeys("abcd", 0.4))
    model = Told(dict.fromkeys("abcd", 0.0), "sigmoid", scale=1.0)

    def kept(score: float, options: ZeroShotOptions, **more: Any) -> str:
        model.similarity = Similarity("sigmoid", 1.0, math.log(score / (1 - score)))
        return "".join(labels_of(ZeroShot(model, LabelSet(classes), options, **more)))

    none, general = ZeroShotOptions(), ZeroShotOptions(threshold=0.3)
    told = {"a": 0.1}
    for score, expected in [(0.05, ""), (0.15, "a"), (0.25, "ab"), (0.35, "abcd")]:
        assert kept(score, general, thresholds=told, calibration=learned) == expected
    for score, expected in [(0.25, "ab"), (0.35, "ab"), (0.45, "abcd")]:
        assert kept(score, none, thresholds=told, calibration=learned) == expected
    for score, expected in [(0.05, "cd"), (0.15, "acd"), (0.25, "abcd")]:
        assert kept(score, none, thresholds=told) == expected
    # A threshold of 0 that was told is one, too.
    assert kept(0.01, general, thresholds={"a": 0.0, "c": 0.0}) == "ac"


def test_the_label_for_none_has_a_threshold_as_well():
    cosines = {"cat": 0.3, "any": 0.2}
    share = softmax([3.0, 2.0])[1]

    def has_none(threshold: float | None = None, **more: Any) -> bool:
        options = ZeroShotOptions(threshold=threshold)
        task = told_task(cosines, options, background=("any",), none_label="none", **more)
        return "none" in labels_of(task)

    assert has_none()
    assert has_none(share - 0.01)
    assert not has_none(share + 0.01)
    assert not has_none(thresholds={"none": share + 0.01})
    assert has_none(0.9, thresholds={"none": share - 0.01})
    learned = Calibration("small", thresholds={"none": 0.9})
    assert not has_none(calibration=learned)
    assert has_none(0.0, calibration=learned)


def test_a_label_that_is_as_probable_as_none_comes_first():
    task = told_task({"cat": 0.2, "any": 0.2}, background=("any",), none_label="none")
    assert list(labels_of(task).items()) == [("cat", 0.5), ("none", 0.5)]


def test_the_label_for_none_counts_in_top():
    cosines = {"cat": 0.1, "dog": 0.0, "any": 0.9}
    for top, expected in ((1, ["none"]), (2, ["none", "cat"]), (3, ["none", "cat", "dog"])):
        options = ZeroShotOptions(top=top)
        task = told_task(cosines, options, background=("any",), none_label="none")
        assert list(labels_of(task)) == expected


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"bird": 0.5}, "a threshold is for 'bird', which is no label"),
        ({"": 0.5}, "a threshold is for '', which is no label"),
        ({"cat": 1.5}, "the threshold of 'cat' must be in 0..1, but is 1.5"),
        ({"cat": math.nan}, "the threshold of 'cat' must be in 0..1, but is nan"),
    ],
)
def test_thresholds_that_make_no_sense_are_told(thresholds, message):
    with pytest.raises(UsageError, match=message):
        told_task({"cat": 0.5}, thresholds=thresholds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -0.1}, "^threshold must be in 0..1"),
        ({"threshold": math.nan}, "^threshold must be in 0..1"),
        ({"top": 0}, "^top must be whole and at least 1"),
    ],
)
def test_options_that_make_no_sense_begin_with_their_name(options, message):
    with pytest.raises(ValueError, match=message):
        ZeroShotOptions(**options)


# Calibration


def test_temperature_divides_and_bias_is_added_for_single_labels():
    cosines = {"cat": 0.3, "dog": -0.1, "any": 0.1}
    found = labels_of(
        told_task(
            cosines,
            background=("any",),
            calibration=Calibration("small@1.0", temperature=2.5, bias=7.0),
        )
    )
    expected = softmax([3.0 / 2.5, -1.0 / 2.5, 1.0 / 2.5])
    assert found == pytest.approx({"cat": expected[0], "dog": expected[1]}, abs=1e-6)

    multi = ZeroShotOptions(multi_label=True)
    learned = Calibration("small@1.0", multi_label=True, temperature=2.5, bias=-0.5)
    found = labels_of(told_task(cosines, multi, background=("any",), calibration=learned))
    expected = [sigmoid((3.0 - 1.0) / 2.5 - 0.5), sigmoid((-1.0 - 1.0) / 2.5 - 0.5)]
    assert list(found.values()) == pytest.approx(expected, abs=1e-6)

    model = {"kind": "sigmoid", "bias": -2.0}
    found = labels_of(told_task({"cat": 0.3}, multi, calibration=learned, **model))
    assert found["cat"] == pytest.approx(sigmoid((3.0 - 2.0) / 2.5 - 0.5), abs=1e-6)


def test_the_calibration_of_another_model_is_refused():
    for other in ("other@1.0", "smaller@1.0", "smal", "@1.0"):
        with pytest.raises(
            UsageError, match=r"--calibration is of .*, but the model is small@1\.0"
        ):
            told_task({"cat": 0.1}, calibration=Calibration(other))
    for same in ("small", "small@1.0", "small@2.0"):
        told_task({"cat": 0.1}, calibration=Calibration(same))
    with pytest.raises(UsageError, match="--calibration was made with --multi-label"):
        told_task({"cat": 0.1}, calibration=Calibration("small", multi_label=True))
    with pytest.raises(UsageError, match="--calibration was made without --multi-label"):
        told_task({"cat": 0.1}, ZeroShotOptions(multi_label=True), calibration=Calibration("small"))


def test_a_card_may_have_any_name():
    card = SmallEncoder(name="clip@home").card
    assert labels_of(told_task({"cat": 0.1}, card=card)) == {"cat": 1.0}
    with pytest.raises(UsageError, match=r"--calibration is of clip@1\.0"):
        told_task({"cat": 0.1}, card=card, calibration=Calibration("clip@1.0"))


# The rest


class AtLeast:
    """A judge that blocks what is red."""

    names = ("red",)

    def decide(self, scores: Mapping[str, float]) -> Decision:
        assert all(isinstance(score, float) for score in scores.values())
        return Decision("block" if scores.get("red", 0.0) > 0.5 else "allow")

    def settings(self) -> Mapping[str, Any]:
        return {"red": 0.5}


def test_a_judge_sees_the_scores_of_all_labels_also_of_those_that_are_not_kept():
    options = ZeroShotOptions(top=1, threshold=1.0)
    task = ZeroShot(SmallEncoder(), COLOUR_LABELS, options, judge=AtLeast())
    found = task.annotate(seen(ITEMS), PICTURES)
    assert [parts["decision"].action for parts in found] == ["block", *["allow"] * 5]
    assert all(parts["labels"] == () for parts in found)
    labels = LabelSet(COLOUR_LABELS.classes, of_image={"red": (0, 2), "green": (1,)})
    own = ZeroShot(SmallEncoder(), labels, judge=AtLeast())
    assert [parts["decision"].action for parts in own.annotate(seen(ITEMS[:3]), PICTURES[:3])] == [
        "block",
        "allow",
        "allow",
    ]


def test_settings_change_with_all_that_labels_depend_on():
    def settings(
        labels: LabelSet | None = None, options: ZeroShotOptions | None = None, **more: Any
    ) -> str:
        task = ZeroShot(SmallEncoder(), labels or LabelSet.of("a, b"), options, **more)
        return json.dumps(task.settings(), sort_keys=True)

    same = [settings(), settings(LabelSet.of(["a", "b"])), settings(options=ZeroShotOptions())]
    assert len(set(same)) == 1
    others = [
        settings(LabelSet.of("b, a")),
        settings(LabelSet.of("a, b, c")),
        settings(LabelSet.of("a, b", "{}")),
        settings(LabelSet.of("a, b", none_label="none")),
        settings(LabelSet.of("a, b", background=["x"])),
        settings(
            LabelSet((LabelClass("a", ("a photo of a a.",), 0.5), LabelSet.of("b").classes[0]))
        ),
        settings(options=ZeroShotOptions(threshold=0.1)),
        settings(options=ZeroShotOptions(top=3)),
        settings(options=ZeroShotOptions(multi_label=True)),
        settings(thresholds={"a": 0.3}),
        settings(thresholds={"b": 0.3}),
        settings(calibration=Calibration("small", temperature=2.0)),
        settings(calibration=Calibration("small", bias=2.0)),
        settings(calibration=Calibration("small", thresholds={"a": 0.4})),
        settings(judge=AtLeast()),
        settings(LabelSet(LabelSet.of("a, b").classes, of_image={"x": (0,), "y": (1,)})),
        settings(LabelSet(LabelSet.of("a, b").classes, of_image={"x": (0, 1)})),
    ]
    assert len({*same, *others}) == 1 + len(others)


def test_a_task_says_what_it_works_with():
    model = SmallEncoder(batch_size=5)
    task = ZeroShot(model, COLOUR_LABELS)
    assert (task.part, task.source) == ("labels", "small@1.0")
    assert task.inputs == (model.card.preprocess,)
    assert (task.streams, task.batch_size) == (1, 5)


def test_models_without_the_ability_are_refused():
    class Tagger:
        card = SmallEncoder().card

    class Images(Tagger):
        embed_images = SmallEncoder.embed_images

    with pytest.raises(UsageError, match=r"small@1\.0 does not embed images"):
        image_encoder(Tagger())  # type: ignore[arg-type]
    for model in (Tagger(), Images()):
        with pytest.raises(UsageError, match=r"small@1\.0 does not know texts"):
            dual_encoder(model)  # type: ignore[arg-type]
    whole = SmallEncoder()
    assert dual_encoder(whole) is image_encoder(whole) is whole
