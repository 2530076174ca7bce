"""LAMB against a slow implementation of its own, groups of parameters, AdamW, and states that go on."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import pytest

torch = pytest.importorskip("torch")

from torch import multiprocessing, nn  # noqa: E402

from annotary.training import optimisers  # noqa: E402
from annotary.training.optimisers import (  # noqa: E402
    Lamb,
    build_optimiser,
    depth_by_name,
    parameter_groups,
    set_learning_rate,
)
from annotary.training.recipe import OptimiserRecipe  # noqa: E402

SHAPES = ((7, 5), (5,), (3, 2, 3, 3), (1,), (4,))
NORMS = (0.3, 5.0, 1e-3, 40.0, 0.0, 1.0, 0.9, 2.0, 1e3, 0.5)
"""Lengths of all gradients together in ten steps: shorter and longer than what LAMB clips them to."""


@dataclass
class SlowLamb:
    """NVLAMB as its description reads, number by number, in Python's double precision."""

    weights: list[list[float]]
    learning_rate: float
    decay: float = 0.05
    epsilon: float = 1e-6
    first: list[list[float]] = field(default_factory=list)
    second: list[list[float]] = field(default_factory=list)
    steps: int = 0

    def step(self, gradients: list[list[float]]) -> None:
        if not self.steps:
            self.first = [[0.0] * len(one) for one in self.weights]
            self.second = [[0.0] * len(one) for one in self.weights]
        self.steps += 1
        norm = math.sqrt(math.fsum(g * g for one in gradients for g in one))
        clip = norm / 1.0 if norm > 1.0 else 1.0
        for tensor, weight in enumerate(self.weights):
            update = []
            for i, w in enumerate(weight):
                g = gradients[tensor][i] / clip
                m = self.first[tensor][i] = 0.9 * self.first[tensor][i] + (1 - 0.9) * g
                v = self.second[tensor][i] = 0.999 * self.second[tensor][i] + (1 - 0.999) * g * g
                m_hat, v_hat = m / (1 - 0.9**self.steps), v / (1 - 0.999**self.steps)
                update.append(m_hat / (math.sqrt(v_hat) + self.epsilon) + self.decay * w)
            lengths = [math.sqrt(math.fsum(x * x for x in one)) for one in (weight, update)]
            ratio = lengths[0] / lengths[1] if all(lengths) else 1.0
            for i, u in enumerate(update):
                weight[i] -= self.learning_rate * ratio * u


def make_weights(kind: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    """Parameters of some shapes: the last is 0, and the convolution's lies channels last."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    weights[2] = weights[2].contiguous(memory_format=torch.channels_last)
    weights[-1].zero_()
    return [nn.Parameter(weight.to(kind)) for weight in weights]


def make_gradients(step: int, kind: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    found = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    norm = torch.cat([one.flatten() for one in found]).norm()
    return [(one * NORMS[step] / norm).to(kind) for one in found]


def numbers(tensors) -> list[list[float]]:
    return [one.detach().double().flatten().tolist() for one in tensors]


@pytest.mark.parametrize("has_fused", [True, False])
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_ten_steps_of_lamb_are_those_of_a_slow_one(
    has_fused: bool, kind: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_fused:
        monkeypatch.setattr(optimisers, "_FUSED_ON", frozenset())
    weights = make_weights(kind)
    slow = SlowLamb(numbers(weights), 0.01)
    fast = Lamb(weights, 0.01)
    for step in range(10):
        gradients = make_gradients(step, kind)
        slow.step(numbers(gradients))
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        fast.step()
        for found, expected in zip(numbers(weights), slow.weights, strict=True):
            assert found == pytest.approx(expected, rel=tolerance, abs=tolerance), step
    assert weights[2].is_contiguous(memory_format=torch.channels_last)


def test_every_tensor_moves_by_the_learning_rate_times_its_length() -> None:
    weights = make_weights()
    before = [weight.detach().clone() for weight in weights]
    for weight, gradient in zip(weights, make_gradients(0), strict=True):
        weight.grad = gradient
    Lamb(weights, 0.02).step()
    moved = [(new - old).norm().item() for new, old in zip(weights, before, strict=True)]
    assert moved[:-1] == pytest.approx([0.02 * old.norm().item() for old in before[:-1]], rel=1e-4)
    # Adam's first step is 1 in every number; a length of 0 makes the ratio 1.
    assert moved[-1] == pytest.approx(0.02 * 2.0, rel=1e-3)


def test_gradients_are_clipped_together_over_all_groups() -> None:
    weights = make_weights(torch.float64)
    for weight, gradient in zip(weights, make_gradients(3, torch.float64), strict=True):
        weight.grad = gradient
    Lamb([{"params": weights[:2]}, {"params": weights[2:], "weight_decay": 0.0}]).step()
    found = torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])
    assert found.norm().item() == pytest.approx(1.0, rel=1e-12)


def test_groups_have_their_own_decay_and_learning_rate() -> None:
    weights = make_weights(torch.float64)
    alone = [SlowLamb(numbers(weights[:2]), 0.1, decay=0.0), SlowLamb(numbers(weights[2:]), 0.02)]
    fast = Lamb(
        [{"params": weights[:2], "weight_decay": 0.0}, {"params": weights[2:], "lr": 0.02}], 0.1
    )
    for step in (0, 2, 5):  # short, so that clipping together is clipping apart
        gradients = make_gradients(step, torch.float64)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient / NORMS[step] / 2
        halved = [[g / NORMS[step] / 2 for g in one] for one in numbers(gradients)]
        alone[0].step(halved[:2])
        alone[1].step(halved[2:])
        fast.step()
    for found, expected in zip(numbers(weights), alone[0].weights + alone[1].weights, strict=True):
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_parameters_without_a_gradient_stay() -> None:
    weights = make_weights()
    before = [weight.detach().clone() for weight in weights]
    optimiser = Lamb(weights)
    optimiser.step()
    weights[1].grad = torch.ones(5)
    assert optimiser.step(lambda: 2.5) == 2.5
    same = [torch.equal(new, old) for new, old in zip(weights, before, strict=True)]
    assert same == [True, False, True, True, True]
    assert set(optimiser.state) == {weights[1]}


def test_a_saved_state_goes_on_with_the_same_bits(tmp_path) -> None:
    def steps(weights, optimiser, numbers: range) -> None:
        for step in numbers:
            for weight, gradient in zip(weights, make_gradients(step), strict=True):
                weight.grad = gradient
            optimiser.step()

    whole = make_weights()
    optimiser = Lamb(whole)
    steps(whole, optimiser, range(4))
    torch.save((optimiser.state_dict(), whole), tmp_path / "state.pt")
    steps(whole, optimiser, range(4, 10))
    state, _ = torch.load(tmp_path / "state.pt", weights_only=False)
    again = [
        nn.Parameter(one.detach().clone())
        for one in torch.load(tmp_path / "state.pt", weights_only=False)[1]
    ]
    # Means that were saved in another layout, as a network in another memory format has them.
    state["state"][2] = {
        name: value.contiguous() if value.ndim else value
        for name, value in state["state"][2].items()
    }
    other = Lamb(again)
    other.load_state_dict(copy.deepcopy(state))
    steps(again, other, range(4, 10))
    assert all(torch.equal(one, two) for one, two in zip(whole, again, strict=True))


@pytest.mark.parametrize(
    "wrong",
    [{"lr": -1.0}, {"eps": 0.0}, {"weight_decay": -1.0}, {"max_norm": 0.0}, {"betas": (0.9, 1.0)}],
)
def test_what_is_out_of_range_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"must be above 0|must be two numbers"):
        Lamb(make_weights(), **wrong)


class Tiny(nn.Module):
    """A network whose parameters have the names of a vision transformer's."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embeddings = nn.Conv2d(3, 4, 2)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.patch_embeddings(image).flatten(2).mean(2)
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return self.head(self.norm(tokens))


def test_groups_leave_out_what_is_frozen_and_decay_matrices_alone() -> None:
    network = Tiny()
    network.patch_embeddings.requires_grad_(requires_grad=False)
    groups = parameter_groups(network.named_parameters(), weight_decay=0.1, decay_all=False)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    expected = {id(p): 0.1 if p.ndim > 1 else 0.0 for p in network.parameters() if p.requires_grad}
    assert decays == expected
    (all_alike,) = parameter_groups(network.named_parameters(), weight_decay=0.1)
    assert len(all_alike["params"]) == 8
    network.requires_grad_(requires_grad=False)
    with pytest.raises(ValueError, match="nothing to train"):
        parameter_groups(network.named_parameters(), weight_decay=0.1)


def test_deeper_parameters_learn_faster() -> None:
    network = Tiny()
    recipe = OptimiserRecipe("adamw", layer_decay=0.5, decay_all=False)
    optimiser = build_optimiser(recipe, network)
    set_learning_rate(optimiser, 0.8)
    names = {id(p): name for name, p in network.named_parameters()}
    rates = {names[id(p)]: g["lr"] for g in optimiser.param_groups for p in g["params"]}
    assert rates["patch_embeddings.bias"] == pytest.approx(0.1)
    assert rates["blocks.0.weight"] == pytest.approx(0.2)
    assert rates["blocks.1.bias"] == pytest.approx(0.4)
    assert rates["norm.weight"] == rates["head.weight"] == pytest.approx(0.8)
    network.depth_of = lambda name: int(name.startswith("head"))  # type: ignore[assignment]
    optimiser = build_optimiser(recipe, network)
    set_learning_rate(optimiser, 0.8)
    rates = {names[id(p)]: g["lr"] for g in optimiser.param_groups for p in g["params"]}
    assert (rates["blocks.0.weight"], rates["head.bias"]) == (0.4, 0.8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("embeddings.patch_embeddings.projection.weight", 0),
        ("embeddings.cls_token", 0),
        ("vision_model.embeddings.position_embedding.weight", 0),
        ("encoder.layer.0.attention.output.dense.weight", 1),
        ("vision_model.encoder.layers.2.mlp.fc1.bias", 3),
        ("backbone.blocks.11.norm1.weight", 12),
        ("layernorm.weight", 13),
        ("head.weight", 13),
    ],
)
def test_names_tell_depths(name: str, expected: int) -> None:
    depth = depth_by_name(f"blocks.{number}.weight" for number in range(12))
    assert depth(name) == expected
    assert depth_by_name(["embeddings.weight", "head.weight"])("head.weight") == 1


def test_adamw_is_torch_s_with_the_recipe_s_numbers() -> None:
    torch.manual_seed(0)
    network = Tiny()
    other = copy.deepcopy(network)
    recipe = OptimiserRecipe("adamw", 1e-2, (0.8, 0.9), 1e-5, 0.3)
    ours = build_optimiser(recipe, network)
    plain = torch.optim.AdamW(
        other.parameters(), 1e-2, (0.8, 0.9), 1e-5, weight_decay=0.3, foreach=False
    )
    assert isinstance(ours, torch.optim.AdamW)
    for step in range(5):
        set_learning_rate(ours, 1e-2)
        for one, optimiser in ((network, ours), (other, plain)):
            image = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(step))
            optimiser.zero_grad()
            one(image).square().mean().backward()
            optimiser.step()
    for found, expected in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_lamb_is_the_recipe_s() -> None:
    network = Tiny()
    optimiser = build_optimiser(OptimiserRecipe(betas=(0.8, 0.9), epsilon=1e-3), network)
    assert isinstance(optimiser, Lamb)
    (group,) = optimiser.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.9), 1e-3, 0.05)
    loss = []
    target = torch.tensor([[1.0, -1.0, 2.0]])
    image = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    set_learning_rate(optimiser, 0.03)
    for _ in range(40):
        optimiser.zero_grad()
        error = (network(image) - target).square().mean()
        error.backward()
        optimiser.step()
        loss.append(error.item())
    assert loss[-1] < 0.1 * loss[0]


@pytest.mark.parametrize(("clip_norm", "limit"), [(1.0, 1.0), (0.25, 0.25), (0.0, math.inf)])
def test_lamb_clips_where_the_recipe_says(clip_norm: float, limit: float) -> None:
    network = Tiny()
    optimiser = build_optimiser(OptimiserRecipe(clip_norm=clip_norm), network)
    weights = list(network.parameters())
    gradients = [torch.full_like(weight, 2.0) for weight in weights]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.clone()
    norm = math.sqrt(sum(float(one.square().sum()) for one in gradients))
    assert norm > 1.0
    optimiser.step()
    for weight in weights:
        shortened = 2.0 / max(norm / limit, 1.0)
        mean = optimiser.state[weight]["exp_avg"]
        torch.testing.assert_close(mean, torch.full_like(weight, 0.1 * shortened))


def _shared_steps(rank: int, folder: str, expected: list[list[float]]) -> None:
    """Ten steps of LAMB in one of two processes, each of which holds a part of every parameter."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        weights = [
            nn.Parameter(distribute_tensor(one.detach(), mesh, [Shard(0)]))
            for one in make_weights(torch.float64)
        ]
        optimiser = Lamb(weights, 0.01)
        for step in range(10):
            for weight, gradient in zip(weights, make_gradients(step, torch.float64), strict=True):
                weight.grad = distribute_tensor(gradient, mesh, [Shard(0)])
            optimiser.step()
        assert all(isinstance(optimiser.state[one]["exp_avg"], DTensor) for one in weights)
        found = numbers([weight.full_tensor() for weight in weights])
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-12, abs=1e-12)
        dist.barrier()  # who ends while another still talks to it ends that one as well
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no processes")
def test_processes_that_share_parameters_make_the_same_steps(tmp_path) -> None:
    weights = make_weights(torch.float64)
    slow = SlowLamb(numbers(weights), 0.01)
    for step in range(10):
        slow.step(numbers(make_gradients(step, torch.float64)))
    multiprocessing.spawn(_shared_steps, (str(tmp_path), slow.weights), nprocs=2)
