"""BLIP's text networks in torch: BERT with attention to an image, which reads texts or writes them.

The weights are in the modules of transformers. What is here goes through them with two kinds of memory: what the layers
look at of an image is computed once and shared by all texts about it, however many beams or answers there are, and is
never copied; what they look at of the text so far is small, and follows the beams.

Texts are never filled up to the same length, so that nothing depends on which texts are in a batch together:
transformers' cross-attention does not get the mask that it is given (5.24, `BlipTextAttention.forward`), so that there
an answer depends on what fills up its question.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from annotary.errors import ModelError

Numbers = npt.NDArray[np.int64]

Memory: TypeAlias = list[tuple[Tensor, Tensor]]
"""What the layers look at beside the text: for each layer keys and values [1, heads, s, d]."""


class TextLayers:
    """The layers of a text network.

    Args:
        bert: A `BlipTextModel`. It is moved to where it runs.
        device: Where that is.
        numbers: What it computes in.
    """

    def __init__(self, bert: Any, device: str, numbers: torch.dtype) -> None:
        self._bert = bert.to(device, numbers).eval()
        self._device = device
        self._numbers = numbers
        self.places = int(bert.config.max_position_embeddings)

    def memories(self, states: Sequence[Tensor]) -> list[Memory]:
        """What the layers look at of each of some images or texts, of their states [s, d]."""
        found: list[Memory] = []
        for one in states:
            moved = one.to(self._numbers)[None]
            memory: Memory = []
            for layer in self._layers:
                cross = layer.crossattention.self
                # They are gone through at every step, which is faster in the order of memory.
                key = _heads(cross, cross.key(moved)).contiguous()
                memory.append((key, _heads(cross, cross.value(moved)).contiguous()))
            found.append(memory)
        return found

    def read(
        self,
        tokens: Tensor,
        memories: Sequence[Memory | None],
        *,
        past: Past | None = None,
        is_written: bool = False,
    ) -> Tensor:
        """The states [r, l, d] of texts.

        Args:
            tokens: int64[r, l].
            memories: What each of the r texts looks at beside itself; texts with the same memory stand side by side.
            past: What the texts were before, which grows: with it there is one token of each text, or nothing before.
            is_written: Whether a token looks at those before it alone.
        """
        before = past.length if past is not None else 0
        embeddings = self._bert.embeddings
        words = embeddings.word_embeddings(tokens)
        places = embeddings.position_embeddings.weight[before : before + tokens.shape[1]]
        states: Tensor = embeddings.LayerNorm(words + places)
        spans = _spans(memories)
        for number, layer in enumerate(self._layers):
            states = self._in_itself(layer, states, number, past, is_written and not before)
            if spans[0][0] is not None:
                states = self._beside(layer, states, number, spans)
            states = layer.feed_forward_chunk(states)
        if past is not None:
            past.length += tokens.shape[1]
        return states

    def tensor(self, tokens: Numbers | Sequence[Sequence[int]]) -> Tensor:
        """Tokens where the network runs."""
        return torch.from_numpy(np.asarray(tokens, np.int64)).to(self._device)

    @property
    def _layers(self) -> Any:
        return self._bert.encoder.layer

    def _in_itself(
        self, layer: Any, states: Tensor, number: int, past: Past | None, is_causal: bool
    ) -> Tensor:
        own = layer.attention.self
        query = _heads(own, own.query(states))
        key, value = _heads(own, own.key(states)), _heads(own, own.value(states))
        if past is not None:
            key, value = past.grown(number, key, value)
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
        output: Tensor = layer.attention.output(_together(found), states)
        return output

    def _beside(
        self, layer: Any, states: Tensor, number: int, spans: list[tuple[Memory | None, int, int]]
    ) -> Tensor:
        cross = layer.crossattention.self
        query = cross.query(states)
        _, length, d = query.shape
        found = torch.empty_like(query)
        for memory, start, stop in spans:
            assert memory is not None
            key, value = memory[number]
            # All texts of an image are one long row of queries.
            asked = _heads(cross, query[start:stop].reshape(1, (stop - start) * length, d))
            answered = functional.scaled_dot_product_attention(asked, key, value)
            found[start:stop] = _together(answered).view(stop - start, length, d)
        output: Tensor = layer.crossattention.output(found, states)
        return output


class Past:
    """What some texts were so far: keys and values [r, heads, l, d] of each layer.

    Attributes:
        length: l, in tokens.
    """

    def __init__(self) -> None:
        self.length = 0
        self._layers: list[tuple[Tensor, Tensor]] = []

    def grown(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer with new ones behind them."""
        if layer == len(self._layers):
            self._layers.append((key, value))
        else:
            before = self._layers[layer]
            self._layers[layer] = torch.cat([before[0], key], 2), torch.cat([before[1], value], 2)
        return self._layers[layer]

    def follow(self, rows: Tensor) -> None:
        """Go on with some of the texts, each as often as it is named: int64[r]."""
        self._layers = [
            (key.index_select(0, rows), value.index_select(0, rows)) for key, value in self._layers
        ]


class Words:
    """The head that makes logits of words of states.

    It computes in float32 whatever the layers compute in, because the few digits of a half make many words equal.

    Args:
        head: A `BlipTextOnlyMLMHead`.
        device: Where it runs.
        name: Of the model, for messages.
    """

    def __init__(self, head: Any, device: str, name: str) -> None:
        self._head = head.to(device, torch.float32).eval()
        self._name = name

    def logits(self, states: Tensor) -> Tensor:
        """float32[..., v] of states [..., d].

        Raises:
            ModelError: They are no numbers.
        """
        found: Tensor = self._head(states.float())
        if not bool(torch.isfinite(found.amax())):
            raise ModelError(
                f"{self._name} gives words that are no numbers; does it need --precision fp32?"
            )
        return found


class Writer:
    """A network that writes: layers and a head.

    Args:
        decoder: A `BlipTextLMHeadModel`.
        device: Where it runs.
        numbers: What its layers compute in.
        name: Of the model, for messages.
    """

    def __init__(self, decoder: Any, device: str, numbers: torch.dtype, name: str) -> None:
        # Head and layers share the matrix of words, and would share its rounding.
        head = decoder.cls if numbers == torch.float32 else copy.deepcopy(decoder.cls)
        self.words = Words(head, device, name)
        self.layers = TextLayers(decoder.bert, device, numbers)

    def steps(self, memories: Sequence[Memory]) -> Steps:
        """What writes about some images, a text or more about each."""
        return Steps(self, memories)

    def log_probabilities(self, tokens: Numbers, memory: Memory) -> npt.NDArray[np.float64]:
        """How likely texts are from their second token on: float64[r].

        Args:
            tokens: int64[r, l]; with what begins and ends them.
            memory: What all of them look at.
        """
        read = self.layers.tensor(tokens)
        states = self.layers.read(read[:, :-1], [memory] * len(tokens), is_written=True)
        found = self.words.logits(states).log_softmax(dim=-1)
        each = found.gather(2, read[:, 1:, None])[..., 0]
        return np.asarray(each.double().sum(dim=1).cpu().numpy())


class Steps:
    """A `Step` of annotary.models._decoding: one token after the other, with what was read remembered.

    Args:
        writer: The network.
        memories: What the texts of each image look at.
    """

    def __init__(self, writer: Writer, memories: Sequence[Memory]) -> None:
        self._writer = writer
        self._memories = list(memories)
        self._past = Past()

    def begin(self, tokens: Numbers) -> npt.NDArray[np.float32]:
        """Read the beginnings int64[n, l]; gives float32[n, v]."""
        return self._read(tokens)

    def follow(self, tokens: Numbers, earlier: Numbers) -> npt.NDArray[np.float32]:
        """Read the tokens int64[r], each behind an earlier row int64[r]; gives float32[r, v]."""
        self._memories = [self._memories[row] for row in earlier]
        self._past.follow(self._writer.layers.tensor(earlier))
        return self._read(tokens[:, None])

    def _read(self, tokens: Numbers) -> npt.NDArray[np.float32]:
        layers = self._writer.layers
        states = layers.read(
            layers.tensor(tokens), self._memories, past=self._past, is_written=True
        )
        return np.asarray(self._writer.words.logits(states[:, -1]).cpu().numpy(), np.float32)


def _spans(memories: Sequence[Memory | None]) -> list[tuple[Memory | None, int, int]]:
    """The memories, each with the rows that look at it."""
    found: list[tuple[Memory | None, int, int]] = []
    start = 0
    for _, same in groupby(memories, key=id):
        rows = list(same)
        found.append((rows[0], start, start + len(rows)))
        start += len(rows)
    return found


def _heads(attention: Any, states: Tensor) -> Tensor:
    """[r, l, d] as [r, heads, l, d / heads]."""
    rows, length, _ = states.shape
    return states.view(rows, length, attention.num_attention_heads, -1).transpose(1, 2)


def _together(states: Tensor) -> Tensor:
    """[r, heads, l, d / heads] as [r, l, d]."""
    rows, _, length, _ = states.shape
    return states.transpose(1, 2).reshape(rows, length, -1)
