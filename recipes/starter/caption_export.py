"""Writes the caption decoder as ONNX: an image's vector and the words so far to the logits of the next word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto

from annotary.training.captioner import CaptionDecoder, Words
from recipes.starter import joint_export
from recipes.starter.graph import GraphBuilder
from recipes.starter.text_tower import add_product

CAPTION_FILE, WORDS_FILE = "caption.onnx", "caption_words.txt"

IMAGE, NUMBERS, OUTPUT = "image_embeds", "numbers", "logits"

Floats = npt.NDArray[np.float32]


@torch.no_grad()
def build(decoder: CaptionDecoder, mean: torch.Tensor, scale: float) -> onnx.ModelProto:
    """The decoder with matrices in 8 bits and words in 16, for images of one region.

    Args:
        decoder: As trained.
        mean: ``[d]``: what was subtracted from an image's vector.
        scale: What it was divided by.
    """
    options = decoder.options
    state = {name: value.numpy() for name, value in decoder.state_dict().items()}
    state["enter.weight"] = state["enter.weight"] / np.float32(scale)
    state["enter.bias"] = state["enter.bias"] - state["enter.weight"] @ mean.numpy()
    graph = GraphBuilder()
    read = _product(graph, IMAGE, state, "enter")
    shape = _whole(graph, [0, decoder.prefix, options.width])
    read = _norm(graph, graph.node("Reshape", read, shape), state, "enter_norm")
    words = graph.wide(state["words.weight"].astype(np.float16))
    tokens = graph.node("Concat", read, graph.node("Gather", words, NUMBERS), axis=1)
    length = graph.node("Gather", graph.node("Shape", NUMBERS), _whole(graph, [1]))
    count = graph.node("Add", length, _whole(graph, [decoder.prefix]))
    zero = _whole(graph, [0])
    places = graph.node("Slice", graph.constant(state["places"]), zero, count, zero)
    tokens = graph.node("Add", tokens, places)
    unseen = _add_unseen(graph, count, decoder.prefix)
    for number in range(options.layers):
        tokens = _add_block(graph, tokens, unseen, state, f"blocks.{number}", options.heads)
    last = graph.node("Gather", tokens, graph.constant(np.array(-1, np.int64)), axis=1)
    last = _norm(graph, last, state, "norm")
    product = graph.node("MatMul", last, graph.node("Transpose", words, perm=[1, 0]))
    graph.node("Add", product, graph.constant(state["offset"]), name=OUTPUT)
    inputs: dict[str, tuple[int, list[Any]]] = {
        NUMBERS: (int(TensorProto.INT64), ["n", "t"]),
        IMAGE: (int(TensorProto.FLOAT), ["n", decoder.enter.in_features]),
    }
    return graph.model(inputs, {OUTPUT: len(state["offset"])})


def write(
    decoder: CaptionDecoder, standard: tuple[torch.Tensor, float], words: Words, folder: Path
) -> None:
    """Write `caption.onnx` and `caption_words.txt`; `standard` is the mean and the scale of the images' vectors."""
    joint_export.write(build(decoder, *standard), folder / CAPTION_FILE)
    (folder / WORDS_FILE).write_text("\n".join(words.names) + "\n", encoding="utf-8")


def _add_unseen(graph: GraphBuilder, count: str, prefix: int) -> str:
    """``[t, t]``: 0 where a token sees another, a very low number where not."""
    scalar = graph.node("Squeeze", count)
    start, one = (graph.constant(np.array(value, np.int64)) for value in (0, 1))
    place = graph.node("Range", start, scalar, one)
    reach = graph.node("Max", place, graph.constant(np.array(prefix - 1, np.int64)))
    later = graph.node("Greater", place, graph.node("Unsqueeze", reach, _whole(graph, [1])))
    return graph.node("Mul", graph.node("Cast", later, to=TensorProto.FLOAT), _number(graph, -1e9))


def _add_block(
    graph: GraphBuilder, tokens: str, unseen: str, state: dict[str, Floats], name: str, heads: int
) -> str:
    width = state[f"{name}.answer.weight"].shape[0]
    asked = _product(
        graph, _norm(graph, tokens, state, f"{name}.attention_norm"), state, f"{name}.ask"
    )
    parts = [f"{name}.{part}" for part in ("query", "key", "value")]
    graph.split(asked, parts, [width] * 3, axis=2)
    split = _whole(graph, [0, 0, heads, width // heads])
    query, key, value = (graph.node("Reshape", part, split) for part in parts)
    query = graph.node("Transpose", query, perm=[0, 2, 1, 3])
    key = graph.node("Transpose", key, perm=[0, 2, 3, 1])
    value = graph.node("Transpose", value, perm=[0, 2, 1, 3])
    scores = graph.node(
        "Mul", graph.node("MatMul", query, key), _number(graph, (width // heads) ** -0.5)
    )
    shares = graph.node("Softmax", graph.node("Add", scores, unseen), axis=-1)
    found = graph.node("Transpose", graph.node("MatMul", shares, value), perm=[0, 2, 1, 3])
    joined = graph.node("Reshape", found, _whole(graph, [0, 0, width]))
    tokens = graph.node("Add", tokens, _product(graph, joined, state, f"{name}.answer"))
    grown = _product(
        graph, _norm(graph, tokens, state, f"{name}.hidden_norm"), state, f"{name}.grow"
    )
    half = graph.node("Mul", grown, _number(graph, 0.5))
    bent = graph.node("Erf", graph.node("Mul", grown, _number(graph, 0.5**0.5)))
    bent = graph.node("Mul", half, graph.node("Add", bent, _number(graph, 1.0)))
    return graph.node("Add", tokens, _product(graph, bent, state, f"{name}.shrink"))


def _product(graph: GraphBuilder, rows: str, state: dict[str, Floats], name: str) -> str:
    product = add_product(graph, rows, state[f"{name}.weight"])
    return graph.node("Add", product, graph.constant(state[f"{name}.bias"]))


def _norm(graph: GraphBuilder, rows: str, state: dict[str, Floats], name: str) -> str:
    gain, offset = (graph.constant(state[f"{name}.{part}"]) for part in ("weight", "bias"))
    return graph.node("LayerNormalization", rows, gain, offset, axis=-1, epsilon=1e-5)


def _whole(graph: GraphBuilder, values: list[int]) -> str:
    return graph.constant(np.array(values, np.int64))


def _number(graph: GraphBuilder, value: float) -> str:
    return graph.constant(np.array(value, np.float32))
