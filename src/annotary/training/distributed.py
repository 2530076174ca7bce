"""The processes of a training run: one, or those that torchrun started, which share each batch.

Nothing in a recipe says how many there are: torchrun tells by its environment variables, and each process then takes
its part of every batch. On GPUs they talk by NCCL, on processors by gloo; nothing but the addresses that torchrun names
is spoken to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from annotary.errors import UsageError

Thing = TypeVar("Thing")

_NUMBERS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: Which this is, 0..count-1.
        count: How many there are.
        device: Where this one computes.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and tells."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, on each of them."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def told(self, thing: Thing) -> Thing:
        """What the first process holds, on each of them."""
        if self.count == 1:
            return thing
        held = [thing]
        dist.broadcast_object_list(held, src=0, device=self.device)
        return held[0]

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def running_processes(device: str = "auto") -> Iterator[Processes]:
    """This process among those of its run, while the context lasts.

    Args:
        device: `auto` takes a GPU where there is one; or `cpu`, `cuda`, `mps`.

    Raises:
        UsageError: There is no such device, or torchrun started more processes than there are GPUs.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    place = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if count == 1 or dist.is_initialized():
        rank = dist.get_rank() if dist.is_initialized() else 0
        yield Processes(rank, dist.get_world_size() if dist.is_initialized() else 1, place)
        return
    if place.type == "cuda":
        dist.init_process_group("nccl", device_id=place)
    else:
        dist.init_process_group("gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), place)
    finally:
        dist.destroy_process_group()


def distributed(
    network: nn.Module,
    processes: Processes,
    strategy: Literal["ddp", "fsdp"] = "ddp",
    numbers: Literal["fp32", "fp16", "bf16"] = "fp32",
) -> nn.Module:
    """A network that computes its gradients over all processes; one process has it as it is.

    Args:
        network: It, on the device; with `fsdp` it is changed in place.
        processes: Who shares the work.
        strategy: `ddp` keeps the whole network in each process; `fsdp` a part of each tensor (FSDP2).
        numbers: Of the passes. With `fsdp` the blocks' weights travel in these.
    """
    if processes.count == 1:
        return network
    if strategy == "ddp":
        devices = [processes.device] if processes.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(processes.device.type, (processes.count,))
    policy = MixedPrecisionPolicy(param_dtype=_NUMBERS.get(numbers), reduce_dtype=torch.float32)
    for blocks in (one for one in network.modules() if isinstance(one, nn.ModuleList)):
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh)
    return network


def unwrapped(network: nn.Module) -> nn.Module:
    """The network in what `distributed` and `torch.compile` have put around it."""
    while True:
        if isinstance(network, DistributedDataParallel):
            network = network.module
        elif hasattr(network, "_orig_mod"):
            network = cast(nn.Module, network._orig_mod)
        else:
            return network


def accumulating(network: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    """Where a part of a batch is computed: the processes add up their gradients with the last part alone."""
    inner = network
    while hasattr(inner, "_orig_mod"):
        inner = cast(nn.Module, inner._orig_mod)
    if isinstance(inner, DistributedDataParallel):
        return nullcontext() if is_last else inner.no_sync()
    set_sync = getattr(inner, "set_requires_gradient_sync", None)
    if set_sync is not None:
        set_sync(is_last)
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may hold a part, as one, on the processor. All processes must ask."""
    held = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return held.detach().to("cpu", copy=True)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; it shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def put(target: Tensor, values: Tensor) -> None:
    """Give a tensor, of which each process may hold a part, the values of a whole one."""
    with torch.no_grad():
        target.copy_(_like(values, target))


def network_state(network: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers of a network, whole and on the processor. All processes must ask."""
    return {name: whole(tensor) for name, tensor in unwrapped(network).state_dict().items()}


def optimiser_state(
    optimiser: torch.optim.Optimizer, network: nn.Module
) -> dict[str, dict[str, Any]]:
    """What an optimiser keeps, by the names of the weights, whole and on the processor. All processes must ask."""
    return {
        name: {
            key: whole(value) if isinstance(value, Tensor) else value
            for key, value in optimiser.state[weight].items()
        }
        for name, weight in unwrapped(network).named_parameters()
        if weight in optimiser.state
    }


def load_optimiser_state(
    optimiser: torch.optim.Optimizer, network: nn.Module, state: Mapping[str, Mapping[str, Any]]
) -> None:
    """Give an optimiser what `optimiser_state` told; also where other processes share the network."""
    optimiser.state.clear()
    for name, weight in unwrapped(network).named_parameters():
        if name in state:
            optimiser.state[weight] = {
                key: _like(value, weight)
                if isinstance(value, Tensor) and value.shape == weight.shape
                else _counted(value)
                for key, value in state[name].items()
            }


def _counted(value: Any) -> Any:
    """A number of an optimiser, such as its step: those in tensors stay where torch keeps them, on the processor."""
    return value.clone() if isinstance(value, Tensor) else value


def _like(values: Tensor, target: Tensor) -> Tensor:
    """A whole tensor as another is held: on its device, in its layout, and this process's part of it."""
    if isinstance(target, DTensor):
        return distribute_tensor(
            values.to(target.device, copy=True), target.device_mesh, target.placements
        )
    return torch.empty_like(target, dtype=values.dtype, requires_grad=False).copy_(values)


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise UsageError("no GPU of NVIDIA's is to be had here; say --device cpu")
        if local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"torchrun started more processes than the {torch.cuda.device_count()} GPUs of this machine"
            )
        return torch.device("cuda", local_rank)
    if name == "mps" and not torch.backends.mps.is_available():
        raise UsageError("no GPU of Apple's is to be had here; say --device cpu")
    return torch.device(name)
