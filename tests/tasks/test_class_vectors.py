"""Labels as vectors: the mean of their prompts, each embedded once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from annotary.errors import ModelError
from annotary.tasks import class_vectors as module
from annotary.tasks.class_vectors import class_vectors
from annotary.tasks.encoding import Texts
from annotary.tasks.label_sets import LabelClass, LabelSet, read_templates
from annotary.tasks.text_cache import TextCache
from tests.small_encoder import DIMENSIONS, SmallEncoder


def label(name: str, *prompts: str) -> LabelClass:
    return LabelClass(name, prompts or (name,))


def test_a_label_is_the_normalised_mean_of_its_normalised_prompts():
    model = SmallEncoder()
    labels = LabelSet.of("red bus, dog, 猫", read_templates("imagenet")).classes
    found = class_vectors(model, labels)
    assert found.vectors.dtype == np.float32
    assert found.vectors.shape == (3, DIMENSIONS)
    for one, vector in zip(labels, found.vectors, strict=True):
        prompts = model.embed_texts(one.prompts).vectors.astype(np.float64)
        prompts /= np.linalg.norm(prompts, axis=1, keepdims=True)
        mean = prompts.mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=2e-7)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)


def test_a_label_with_one_prompt_is_that_prompt():
    model = SmallEncoder()
    found = class_vectors(model, [label("cat", "a cat"), label("dog")])
    expected = model.embed_texts(["a cat", "dog"]).vectors
    np.testing.assert_allclose(found.vectors, expected, atol=1e-7)


def test_the_order_of_prompts_does_not_matter():
    prompts = read_templates("imagenet")
    one = class_vectors(SmallEncoder(), [label("x", *prompts)]).vectors
    other = class_vectors(SmallEncoder(), [label("x", *reversed(prompts))]).vectors
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_labels_of_different_numbers_of_prompts_are_not_mixed_up():
    model = SmallEncoder()
    labels = [label(f"{i}", *(f"prompt {i} {j}" for j in range(1 + i % 4))) for i in range(20)]
    together = class_vectors(model, labels).vectors
    alone = [class_vectors(model, [one]).vectors[0] for one in labels]
    np.testing.assert_allclose(together, alone, atol=1e-7)


def test_the_same_prompts_are_embedded_once():
    model = SmallEncoder()
    labels = [label("cat", "a pet"), label("dog", "a pet"), label("bus"), label("coach", "bus")]
    found = class_vectors(model, labels)
    assert sorted(text for call in model.calls for text in call) == ["a pet", "bus"]
    np.testing.assert_array_equal(found.vectors[0], found.vectors[1])
    np.testing.assert_array_equal(found.vectors[2], found.vectors[3])


def test_the_model_is_given_a_bounded_number_of_prompts_at_a_time():
    class Counting(SmallEncoder):
        def embed_texts(self, texts: Sequence[str]) -> Texts:
            self.calls.append(tuple(texts))
            vectors = np.zeros((len(texts), 2), dtype=np.float32)
            for row, text in enumerate(texts):
                angle = int(text.split()[0]) / 20_000
                vectors[row] = np.cos(angle), np.sin(angle)
            return Texts(vectors, np.zeros(len(texts), dtype=np.bool_))

    model = Counting()
    labels = [label(f"{i}", *(f"{i} {j}" for j in range(5))) for i in range(20_000)]
    found = class_vectors(model, labels)
    assert max(map(len, model.calls)) <= 4096
    assert model.texts == 100_000
    assert len(model.calls) == -(-20_000 // (4096 // 5))  # no more than are needed
    angles = np.arange(20_000) / 20_000
    expected = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(found.vectors, expected, atol=1e-6)


def test_a_label_with_more_prompts_than_the_bound_is_still_one_vector(monkeypatch):
    monkeypatch.setattr(module, "_PROMPTS_AT_ONCE", 3)
    model = SmallEncoder()
    labels = [
        label("n", *"12345"),
        label("a"),
        label("b", *"vwxyz"),
        label("c", "c", "d"),
        label("e"),
    ]
    found = class_vectors(model, labels)
    assert [len(call) for call in model.calls] == [5, 1, 5, 3]
    monkeypatch.undo()
    np.testing.assert_allclose(found.vectors, class_vectors(model, labels).vectors, atol=1e-7)


def test_truncation_is_told_by_label():
    model = SmallEncoder(most_words=4)
    long = "a photo of a very long thing"
    labels = [label("cat"), label("long", "short", long, "short too"), label("dog"), label(long)]
    assert class_vectors(model, labels).is_truncated.tolist() == [False, True, False, True]


@pytest.mark.parametrize("kind", ["opposite", "nan", "infinite"])
def test_prompts_without_a_direction_are_an_error_that_names_the_label(kind: str):
    class Broken(SmallEncoder):
        def embed_texts(self, texts: Sequence[str]) -> Texts:
            vectors = np.tile(np.float32([1, 0]), (len(texts), 1))
            vectors[2] = {"opposite": -vectors[2], "nan": np.nan, "infinite": np.inf}[kind]
            return Texts(vectors, np.zeros(len(texts), dtype=np.bool_))

    labels = [label("fine"), label("odd", "x", "y"), label("also fine")]
    with pytest.raises(ModelError, match=r"small@1\.0 makes nothing of the prompts of 'odd'"):
        class_vectors(Broken(), labels, TextCache("broken", Path("cache")))
    assert TextCache("broken", Path("cache")).get([b"", module.key_of(["x", "y"])]) == {}


# With a cache


def test_a_second_run_embeds_nothing_and_gives_the_same_bits():
    labels = [label("cat", "a cat", "a kitten"), label("long", " ".join("abcdefghijklmnopqrst"))]
    first, second = SmallEncoder(), SmallEncoder()
    found = class_vectors(first, labels, TextCache("m", Path("cache")))
    again = class_vectors(second, labels, TextCache("m", Path("cache")))
    assert (first.texts, second.texts) == (3, 0)
    assert found.vectors.tobytes() == again.vectors.tobytes()
    assert again.vectors.dtype == np.float32
    assert again.is_truncated.tolist() == [False, True]
    assert again.is_truncated.dtype == np.bool_


def test_what_is_known_depends_on_prompts_alone():
    class_vectors(SmallEncoder(), [label("cat", "a", "b")], TextCache("m", Path("cache")))
    model = SmallEncoder()
    cache = TextCache("m", Path("cache"))
    class_vectors(model, [label("another name", "a", "b")], cache)
    assert model.texts == 0
    class_vectors(model, [label("cat", "ab"), label("dog", "a")], cache)
    assert sorted(text for call in model.calls for text in call) == ["a", "ab"]


def test_only_what_is_lacking_is_embedded_and_the_order_is_that_of_the_labels():
    labels = [label(f"label {i}") for i in range(50)]
    class_vectors(SmallEncoder(), labels[::3], TextCache("m", Path("cache")))
    model = SmallEncoder()
    found = class_vectors(model, labels, TextCache("m", Path("cache")))
    assert model.texts == 50 - 17
    np.testing.assert_allclose(
        found.vectors, class_vectors(SmallEncoder(), labels).vectors, atol=1e-7
    )


def test_vectors_of_another_length_are_not_believed():
    cache = TextCache("m", Path("cache"))
    wrong = np.float32([[0.6, 0.8]])
    cache.put([module.key_of(["cat"])], Texts(wrong, np.array([False])))
    labels = [label("cat"), label("dog")]
    model = SmallEncoder()
    found = class_vectors(model, labels, cache)
    assert found.vectors.tobytes() == class_vectors(SmallEncoder(), labels).vectors.tobytes()
