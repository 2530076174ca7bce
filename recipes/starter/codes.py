"""Rows of a table as a few bytes each: product codes, in the directions that matter to what reads the rows.

A row has a length, which is one of 256, and a shape. The shapes are turned into the main directions of a space in which
distances are as far as the reader notices them, the directions are dealt out to groups of about the same weight, and a
byte says which of 256 centres each group of a row is nearest to (Jégou et al., 2011; the dealing out is that of Ge et
al., 2013). The first rows, which are the most frequent, have as many bytes again for what the first bytes leave.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CENTRES = 256
"""What a byte chooses from."""

_SAMPLE = 16_000
"""Rows that the centres are fitted on."""

_ROUNDS = 8
"""Of k-means."""

_AT_ONCE = 16_384


@dataclass
class CodedRows:
    """Rows in bytes: ``row = length[lengths] · (centres[codes] + extra_centres[extra_codes]) @ turn + middle``.

    The middle belongs to the shape: it is multiplied by the length, too.
    """

    codes: Tensor
    """uint8 ``[rows, groups]``."""

    extra_codes: Tensor
    """uint8 ``[first rows, groups]``."""

    lengths: Tensor
    """uint8 ``[rows]``."""

    centres: Tensor
    """``[groups, 256, width]``."""

    extra_centres: Tensor
    """``[groups, 256, width]``."""

    length: Tensor
    """``[256]``."""

    turn: Tensor
    """``[groups · width, d]``."""

    middle: Tensor
    """``[d]``."""

    def rows(self, places: Tensor) -> Tensor:
        """The rows ``[..., d]`` of some places, int64 ``[...]``."""
        group = torch.arange(self.codes.shape[1])
        found = self.centres[group, self.codes[places].long()]
        first = places.clamp(max=len(self.extra_codes) - 1)
        extra = self.extra_centres[group, self.extra_codes[first].long()]
        is_first = (places < len(self.extra_codes)).to(extra.dtype)
        found = found + extra * is_first[..., None, None]
        shape = found.flatten(-2) @ self.turn + self.middle
        return shape * self.length[self.lengths[places].long()][..., None]


def encode(
    table: Tensor, metric: Tensor, groups: int, width: int, first: int, seed: int = 0
) -> CodedRows:
    """Find the codes of a table.

    Args:
        table: ``[rows, d]``, the most frequent rows first.
        metric: ``[d, d]``, how much the reader notices a change of a shape: the mean of the squared changes of its
            output that a small change ``x`` brings is ``x @ metric @ x``.
        groups: Bytes of a row.
        width: Directions of a group; ``groups · width`` is at most d.
        first: How many rows have as many bytes again.
        seed: Of k-means.
    """
    norms = table.norm(dim=1)
    shape = table / norms[:, None].clamp(min=1e-6)
    middle = shape.mean(0)
    root, inverse = _roots(metric)
    seen = (shape - middle) @ root
    variance, directions = torch.linalg.eigh(seen.T @ seen / len(seen))
    order = _dealt(variance, groups, width)
    placed = (seen @ directions)[:, order].unflatten(1, (groups, width))
    centres, codes = _encode(placed, seed)
    left = placed[:first] - centres[torch.arange(groups), codes[:first].long()]
    extra_centres, extra_codes = _encode(left, seed + groups)
    length = torch.quantile(norms.sort().values[:: max(1, len(norms) // 100_000)], _SPACED)
    return CodedRows(
        codes,
        extra_codes,
        torch.bucketize(norms, (length[1:] + length[:-1]) / 2).to(torch.uint8),
        centres,
        extra_centres,
        length,
        (directions.T @ inverse)[order],
        middle,
    )


_SPACED = torch.linspace(0, 1, CENTRES)


def _roots(metric: Tensor) -> tuple[Tensor, Tensor]:
    """The root of the metric, and its inverse."""
    values, vectors = torch.linalg.eigh(metric)
    root = values.clamp(min=1e-9).sqrt()
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def _dealt(variance: Tensor, groups: int, width: int) -> Tensor:
    """The strongest directions, so ordered that the variances of each group have about the same product."""
    strongest = variance.argsort(descending=True)[: groups * width].tolist()
    logs = (variance.clamp(min=1e-12) / variance.clamp(min=1e-12).min()).log().tolist()
    members: list[list[int]] = [[] for _ in range(groups)]
    weights = [0.0] * groups
    for direction in strongest:
        free = [group for group in range(groups) if len(members[group]) < width]
        lightest = min(free, key=lambda group: weights[group])
        members[lightest].append(direction)
        weights[lightest] += logs[direction]
    return torch.tensor(members).flatten()


def _encode(placed: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Centres ``[groups, 256, width]`` and codes uint8 ``[rows, groups]`` of ``[rows, groups, width]``."""
    centres, codes = [], []
    for group in range(placed.shape[1]):
        points = placed[:, group].contiguous()
        centres.append(_means(points, seed + group))
        codes.append(_nearest(points, centres[-1]).to(torch.uint8))
    return torch.stack(centres), torch.stack(codes, 1)


def _means(points: Tensor, seed: int) -> Tensor:
    """k-means on a sample; a centre that loses all points takes a random one."""
    generator = torch.Generator().manual_seed(seed)
    some = points[torch.randperm(len(points), generator=generator)[:_SAMPLE]]
    centres = some[torch.randint(len(some), (CENTRES,), generator=generator)].clone()
    for _ in range(_ROUNDS):
        nearest = _nearest(some, centres)
        counts = torch.bincount(nearest, minlength=CENTRES)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, nearest, some)
        other = some[torch.randint(len(some), (CENTRES,), generator=generator)]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), other)
    return centres


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    squares = (centres * centres).sum(1)
    return torch.cat(
        [(squares - 2 * part @ centres.T).argmin(1) for part in torch.split(points, _AT_ONCE)]
    )
