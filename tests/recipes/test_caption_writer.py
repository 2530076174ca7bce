"""The recipe's writer of captions: words, prompts, batches and drawing, with a small decoder of random weights."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

from annotary.errors import ModelError, UsageError  # noqa: E402
from annotary.models._generation import Decoding  # noqa: E402
from annotary.runtime import RuntimeOptions  # noqa: E402
from annotary.training.captioner import CaptionDecoder, CaptionerOptions, Words  # noqa: E402

ROOT = Path(__file__).parents[2]
ONE_CORE = RuntimeOptions(threads=1, runtime="onnxruntime")
SEARCH = Decoding(beams=3)
NAMES = ("a", "man", "dog", "two", "dogs", "on", "the", "grass", "runs", "sits", "red", "ball")


@pytest.fixture(scope="module")
def recipe() -> dict[str, ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        return {
            name: importlib.import_module(f"recipes.starter.{name}")
            for name in ("caption_export", "caption_writer", "captions", "caption_inputs")
        }


@pytest.fixture(scope="module")
def folder(recipe, tmp_path_factory) -> Path:
    torch.manual_seed(4)
    words = Words(("<padding>", "<start>", "<end>", "<unknown>", *NAMES))
    options = CaptionerOptions(width=16, heads=2, prefix=2)
    decoder = CaptionDecoder(6, len(words.names), options).eval()
    with torch.no_grad():
        decoder.enter.weight *= 20
        decoder.words.weight *= 4
    path = tmp_path_factory.mktemp("decoder")
    recipe["caption_export"].write(decoder, (torch.zeros(6), 0.5), words, path)
    return path


@pytest.fixture(scope="module")
def writer(recipe, folder) -> Any:
    return recipe["caption_writer"].CaptionWriter(
        folder / "caption.onnx", folder / "caption_words.txt", ONE_CORE
    )


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    found = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def write(writer: Any, vectors: np.ndarray, prompts: list[str], decoding: Decoding) -> Any:
    beginnings = [writer.beginning(prompt, decoding) for prompt in prompts]
    return writer.write(vectors, beginnings, decoding, [v.tobytes() for v in vectors])


def test_it_writes_its_words_for_every_image(writer, vectors):
    found = write(writer, vectors, [""] * 4, replace(SEARCH, count=3))
    assert len({own[0].text for own in found}) > 1
    for own in found:
        assert 1 <= len({one.text for one in own}) == len(own) <= 3
        for one in own:
            assert set(one.text.split()) <= set(NAMES)
            assert 3 <= len(one.text.split()) <= 19
            assert 0 < one.score < 1


def test_prompts_of_several_lengths_are_continued_and_left_out(writer, vectors):
    prompts = ["", "a man", "Two dogs", "A man runs"]
    found = write(writer, vectors, prompts, SEARCH)
    for place, prompt in enumerate(prompts):
        (alone,) = write(writer, vectors[[place]], [prompt], SEARCH)
        assert [one.text for one in alone] == [one.text for one in found[place]]
        np.testing.assert_allclose(alone[0].score, found[place][0].score, rtol=1e-4)
    spelt = [write(writer, vectors[:1], [prompt], SEARCH) for prompt in ("TWO DOGS,", "two dogs")]
    assert spelt[0] == spelt[1]


def test_prompts_that_cannot_be_continued_are_one_line(writer):
    with pytest.raises(UsageError, match=r"none of them: zebra, and$"):
        writer.beginning("a zebra and a zebra", SEARCH)
    with pytest.raises(UsageError, match=r"takes 20 tokens .* max_length is 20"):
        writer.beginning("a man " * 9 + "a", SEARCH)


def test_drawing_is_by_image_and_seed(writer, vectors):
    drawn = Decoding(nucleus=0.9, count=2, seed=3)
    together = write(writer, vectors, [""] * 4, drawn)
    (alone,) = write(writer, vectors[[2]], [""], drawn)
    assert [one.text for one in alone] == [one.text for one in together[2]]
    other = write(writer, vectors, [""] * 4, replace(drawn, seed=4))
    assert [own[0].text for own in other] != [own[0].text for own in together]


def test_files_that_are_no_decoder_are_one_line(recipe, folder, tmp_path):
    open_writer = recipe["caption_writer"].CaptionWriter
    with pytest.raises(ModelError, match="is missing"):
        open_writer(folder / "caption.onnx", tmp_path / "words.txt", ONE_CORE)
    with pytest.raises(ModelError, match="is missing"):
        open_writer(tmp_path / "caption.onnx", folder / "caption_words.txt", ONE_CORE)


def test_words_that_people_used_are_counted(recipe):
    photo = recipe["caption_inputs"].Photo(
        Path("a.jpg"), "flickr", ("A dog runs .", "the dog runs fast", "grass"), is_held_aside=True
    )
    other = replace(photo, captions=("a man sits", "a man"))
    found = recipe["captions"].scores(["a dog on the grass", "a red ball"], [photo, other])
    assert found["precision"] == 0.5  # both of two words, none of two
    assert found["recall"] == 0.25  # dog of dog and runs; not man
    assert found["different"] == 2
