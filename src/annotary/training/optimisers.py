"""Optimisers of a tagger's training: LAMB as JoyTag's runs had it, AdamW, and groups of parameters.

LAMB is You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes" (2020), in NVIDIA's
variant NVLAMB, which clips by the norm of all gradients itself, corrects the bias of the means, adds the weight decay
of every parameter to its update, and never limits the trust ratio.

What differs from the usual loop over tensors: the means of Adam come from torch's fused step, which reads and writes
each of them once, and the tensors of a GPU are handled together. Nothing waits for NVIDIA's GPUs. Parameters that
several processes share in parts (FSDP2) have the norms of the whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from annotary.training.recipe import OptimiserRecipe

RATIO = "learning_rate_ratio"
"""Key of a group: what `set_learning_rate` multiplies the learning rate by."""

_FUSED_ON = frozenset({"cpu", "cuda"})
"""Devices for which torch has a fused Adam in all versions that are supported."""

_TOGETHER = 2**26
"""Numbers of parameters that a GPU changes together at most; their updates are memory that is held in between."""

_BLOCK = re.compile(r"(?:^|\.)(?:blocks?|layers?|h)\.(\d+)\.")
_BEFORE_BLOCKS = re.compile(r"embed|(?:^|[._])stem|cls_token|mask_token|register_tokens")


class Lamb(torch.optim.Optimizer):
    """NVLAMB.

    A step: all gradients are divided by their norm over all parameters, where it is above `max_norm` (they stay so).
    With the means of the gradients and of their squares, corrected for beginning at 0, the update of a tensor is
    ``u = mean / (sqrt(mean square) + epsilon) + weight_decay * w``, and ``w -= lr * |w| / |u| * u``; where a norm is 0,
    their ratio counts as 1.

    Args:
        parameters: What is trained, or groups with their own `lr` and `weight_decay`.
        lr: Learning rate, 0 or more.
        betas: How slowly the two means change, 0..1 (below 1).
        eps: Added to the root of the mean square.
        weight_decay: How strongly weights are drawn to 0, 0 or more.
        max_norm: Longest that all gradients together may be, above 0; infinite for no limit.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 4e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.05,
        max_norm: float = 1.0,
    ) -> None:
        if lr < 0 or eps <= 0 or weight_decay < 0 or max_norm <= 0:
            raise ValueError("eps and max_norm must be above 0, and lr and weight_decay 0 or more")
        if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas must be two numbers in 0..1 (below 1), but got {betas}")
        self._max_norm = max_norm
        super().__init__(
            parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change the parameters that have a gradient.

        Args:
            closure: Computes the loss and the gradients again; its loss is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [
            (group, [weight for weight in group["params"] if weight.grad is not None])
            for group in self.param_groups
        ]
        shortening = self._shortening([weight for _, weights in groups for weight in weights])
        spaces = _Spaces()
        for group, weights in groups:
            for together in _batches(weights):
                self._change(group, together, shortening, spaces)
        return loss

    def _shortening(self, weights: Sequence[Tensor]) -> dict[torch.device, Tensor]:
        """What gradients are divided by, on each device that has some; empty where it is known to be 1."""
        if math.isinf(self._max_norm):
            return {}
        squares = [
            _norms([cast(Tensor, weight.grad) for weight in together]).square().sum()
            for together in _batches(weights)
        ]
        if not squares:
            return {}
        norm = torch.stack([one.to(squares[0].device) for one in squares]).sum().sqrt()
        if norm.device.type == "cpu" and norm.item() <= self._max_norm:
            return {}
        divisor = (norm / self._max_norm).clamp(min=1.0)
        return {device: divisor.to(device) for device in {one.device for one in squares}}

    def _change(
        self,
        group: dict[str, Any],
        weights: Sequence[Tensor],
        shortening: dict[torch.device, Tensor],
        spaces: _Spaces,
    ) -> None:
        """Change some parameters of a group that are of one device and type."""
        states = [self._state_of(weight) for weight in weights]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        own = [_own_part(weight) for weight in weights]
        gradients = [_own_part(cast(Tensor, weight.grad)) for weight in weights]
        if own[0].device in shortening:
            torch._foreach_div_(gradients, shortening[own[0].device])
        first, second = (
            [_own_part(state[name]) for state in states] for name in ("exp_avg", "exp_avg_sq")
        )
        updates = _decays(own, group["weight_decay"], spaces)
        _subtract_adam(updates, gradients, first, second, steps, group)
        lengths, changes = _norms(weights, own), _norms(weights, updates)
        is_any_zero = (lengths == 0) | (changes == 0)
        rates = torch.where(is_any_zero, 1.0, lengths / changes) * group["lr"]
        if rates.device.type == "cpu":
            for part, update, rate in zip(own, updates, rates.tolist(), strict=True):
                part.add_(update, alpha=rate)
        else:
            torch._foreach_mul_(updates, list(rates.unbind()))
            torch._foreach_add_(own, updates)

    def _state_of(self, weight: Tensor) -> dict[str, Any]:
        """Steps and means of a parameter, laid out in memory as the parameter is."""
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=_own_part(weight).device)
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        # Of a checkpoint, the count is where it was loaded to, and the means lie as they were saved.
        state["step"] = state["step"].to(_own_part(weight).device, torch.float32)
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = _laid_out_as(state[name], weight)
        return cast(dict[str, Any], state)


def _decays(own: list[Tensor], weight_decay: float, spaces: _Spaces) -> list[Tensor]:
    """What weight decay alone changes: minus it times the parameters."""
    if own[0].device.type != "cpu":
        return list(torch._foreach_mul(own, -weight_decay))
    return [torch.mul(part, -weight_decay, out=spaces.like(part)) for part in own]


class _Spaces:
    """Memory for updates of one tensor at a time: asking the system for it costs more than the arithmetic in it."""

    def __init__(self) -> None:
        self._held: dict[torch.dtype, Tensor] = {}

    def like(self, tensor: Tensor) -> Tensor:
        """A tensor of the same shape and layout whose numbers are of no meaning; it is valid until the next call."""
        held = self._held.get(tensor.dtype)
        if held is None or held.numel() < tensor.numel():
            held = self._held[tensor.dtype] = tensor.new_empty(tensor.numel())
        return held.as_strided(tensor.shape, tensor.stride())


def _subtract_adam(
    updates: list[Tensor],
    gradients: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    steps: list[Tensor],
    group: dict[str, Any],
) -> None:
    """Subtract Adam's step of a learning rate of 1, and bring the means up to date."""
    beta1, beta2 = group["betas"]
    if updates[0].device.type in _FUSED_ON:
        laid_out = [_laid_out_as(one, like) for one, like in zip(gradients, updates, strict=True)]
        torch._fused_adam_(
            updates,
            laid_out,
            first,
            second,
            [],
            steps,
            lr=1.0,
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=None,
            found_inf=None,
        )
        return
    torch._foreach_lerp_(first, gradients, 1 - beta1)
    torch._foreach_mul_(second, beta2)
    torch._foreach_addcmul_(second, gradients, gradients, value=1 - beta2)
    for update, mean, square, step in zip(updates, first, second, steps, strict=True):
        done = step.item()  # for the exact power, which not every device has
        root = (square / (1 - beta2**done)).sqrt_().add_(group["eps"])
        update.sub_((mean / (1 - beta1**done)).div_(root))


def build_optimiser(recipe: OptimiserRecipe, network: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a recipe for all parameters of a network that are trained.

    Args:
        recipe: Which, and with what.
        network: May say with `depth_of(name)` how deep a parameter lies, from 0 on; otherwise its name tells.
    """
    named = list(network.named_parameters())
    depth_of = getattr(network, "depth_of", None)
    groups = parameter_groups(
        named,
        weight_decay=recipe.weight_decay,
        decay_all=recipe.decay_all,
        layer_decay=recipe.layer_decay,
        depth_of=depth_of if depth_of is not None else depth_by_name(name for name, _ in named),
    )
    first, second = recipe.betas
    if recipe.kind == "lamb":
        # The learner has clipped by then: the same limit here changes nothing but the rounding, which it always did.
        limit = recipe.clip_norm or math.inf
        return Lamb(groups, recipe.learning_rate, (first, second), recipe.epsilon, max_norm=limit)
    weights = [weight for group in groups for weight in group["params"]]
    return torch.optim.AdamW(
        groups,
        recipe.learning_rate,
        (first, second),
        recipe.epsilon,
        # On processors it is many times faster; on GPUs handling all tensors together, the default, is as good as.
        fused=all(weight.device.type == "cpu" for weight in weights) or None,
    )


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    weight_decay: float,
    decay_all: bool = True,
    layer_decay: float = 1.0,
    depth_of: Callable[[str], int] | None = None,
) -> list[dict[str, Any]]:
    """Parameters that are treated alike, as an optimiser takes them.

    Args:
        named: Of a network; those that are not trained are left out.
        weight_decay: 0 or more.
        decay_all: Whether parameters of one dimension (biases, gains, scales) decay, too.
        layer_decay: Factor of the learning rate from one depth to the one below it, 0..1 (not 0).
        depth_of: How deep a parameter lies, by its name; the deepest learns fastest. None treats all alike.

    Raises:
        ValueError: Nothing is trained.
    """
    found: dict[tuple[int, float], list[nn.Parameter]] = {}
    for name, weight in named:
        if weight.requires_grad:
            depth = depth_of(name) if depth_of is not None and layer_decay != 1.0 else 0
            decay = weight_decay if decay_all or weight.ndim > 1 else 0.0
            found.setdefault((depth, decay), []).append(weight)
    if not found:
        raise ValueError("all parameters are frozen, so that there is nothing to train")
    deepest = max(depth for depth, _ in found)
    return [
        {"params": weights, "weight_decay": decay, RATIO: layer_decay ** (deepest - depth)}
        for (depth, decay), weights in found.items()
    ]


def depth_by_name(names: Iterable[str]) -> Callable[[str], int]:
    """How deep parameters of a transformer lie, told by their names: embeddings 0, blocks from 1 on, then all else.

    Args:
        names: Of all parameters.
    """
    numbers = [int(found[1]) for name in names if (found := _BLOCK.search(name))]
    deepest = max(numbers, default=-1) + 2

    def depth(name: str) -> int:
        found = _BLOCK.search(name)
        if found:
            return int(found[1]) + 1
        return 0 if _BEFORE_BLOCKS.search(name) else deepest

    return depth


def set_learning_rate(optimiser: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of the next steps; groups keep their ratios to each other."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate * group.get(RATIO, 1.0)


def _batches(weights: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters that are changed together: on a processor one at a time, as its cache may hold what is read again."""

    def kind(weight: Tensor) -> tuple[Any, ...]:
        mesh = getattr(weight, "device_mesh", None)
        return weight.device, weight.dtype, mesh, getattr(weight, "placements", None)

    for (device, *_), alike in groupby(weights, kind):
        together: list[Tensor] = []
        count = 0
        for weight in alike:
            if together and (device.type == "cpu" or count + weight.numel() > _TOGETHER):
                yield together
                together, count = [], 0
            together.append(weight)
            count += weight.numel()
        yield together


def _norms(whole: Sequence[Tensor], parts: list[Tensor] | None = None) -> Tensor:
    """Lengths of tensors, one a tensor; each counts all parts that processes hold of it.

    Args:
        whole: Tensors of one device, type and distribution.
        parts: This process's part of each; those of `whole` when None.
    """
    norms = torch.stack(
        torch._foreach_norm(parts if parts is not None else [_own_part(one) for one in whole])
    )
    mesh = getattr(whole[0], "device_mesh", None)
    if mesh is None:
        return norms
    squares = norms.square()
    for axis, placement in enumerate(whole[0].placements):  # type: ignore[attr-defined]
        if placement.is_shard():
            dist.all_reduce(squares, group=mesh.get_group(axis))
    return squares.sqrt()


def _own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor; changing it changes the tensor."""
    return cast(Tensor, tensor.to_local()) if hasattr(tensor, "to_local") else tensor


def _laid_out_as(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor, or a copy whose numbers lie in memory as those of another do: fused steps go by that."""
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like).copy_(tensor)
