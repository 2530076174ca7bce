"""Two processes on the loopback address learn what one does with the same batches: DDP, and FSDP2."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pyarrow")

from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402

from annotary.errors import UsageError  # noqa: E402
from annotary.training._averaging import RunningMean  # noqa: E402
from annotary.training.distributed import (  # noqa: E402
    Processes,
    load_optimiser_state,
    optimiser_state,
    running_processes,
    unwrapped,
)
from annotary.training.plan import plan_stages  # noqa: E402
from annotary.training.trainer import Trainer  # noqa: E402
from tests.conftest import child_environment  # noqa: E402
from tests.training.small_dataset import make_dataset, small_recipe  # noqa: E402

CHANGED = (
    "network.stochastic_depth=0.0",
    "averaging.decay=0.9",
    "data.batch_size=8",
    # 11 images to measure on: the processes do not get the same number.
    "stages=[{image_size=16, samples=40, device_batch_size=2}]",
)

CHILD = """
import sys, torch
from pathlib import Path
from annotary.training.dataset.index import TagDataset
from annotary.training.distributed import running_processes
from annotary.training.trainer import Trainer
from tests.training.small_dataset import small_recipe

torch.set_num_threads(1)
data, output, *changed = sys.argv[1:]
dataset = TagDataset(Path(data))
with running_processes("cpu") as processes:
    assert processes.count == 2
    for strategy in ("ddp", "fsdp"):
        recipe = small_recipe(*changed, f"precision.strategy={strategy}")
        result = Trainer(recipe, dataset, Path(output) / strategy, processes, quiet=True).run()
        assert result.last.name == "samples_40"
"""


def start(rank: int, port: int, *arguments: str) -> subprocess.Popen[str]:
    environment = {
        **child_environment(),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    root = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join((root, environment["PYTHONPATH"]))
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rows(path: Path) -> list[list[float]]:
    """The numbers of a table but for how long things took."""
    with path.open(encoding="utf-8") as file:
        return [[float(value) for value in row[:6]] for row in list(csv.reader(file))[1:]]


@pytest.mark.skipif(sys.platform != "linux", reason="the loopback device has another name")
@pytest.mark.parametrize("is_partial", [False, True], ids=["whole", "partial"])
def test_two_processes_learn_what_one_does(is_partial, tmp_path):
    torch.set_num_threads(1)
    data = make_dataset(tmp_path / "data", validation=11, is_partial=is_partial)
    # One process takes 4 images at a time, and two take 2 each.
    one = Trainer(
        small_recipe(*CHANGED, "stages.1.device_batch_size=4"), data, tmp_path / "one", quiet=True
    ).run()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [
        start(rank, port, str(data.folder), str(tmp_path / "two"), *CHANGED) for rank in range(2)
    ]
    told = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], told
    expected = load_file(one.last / "model.safetensors")
    for strategy in ("ddp", "fsdp"):
        output = tmp_path / "two" / strategy
        found = load_file(output / "checkpoints" / one.last.name / "model.safetensors")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5, msg=name)
        for table in ("steps.csv", "validation.csv"):
            wanted = rows(tmp_path / "one" / table)
            for own, other in zip(rows(output / table), wanted, strict=True):
                assert own == pytest.approx(other, rel=1e-3, abs=1e-4)
        # What two processes have begun, one goes on with: nothing is left to do, and it loads.
        again = Trainer(small_recipe(*CHANGED), data, output, quiet=True).run()
        assert again.was_done


def test_one_process_needs_no_network():
    with running_processes("cpu") as processes:
        assert (processes.rank, processes.count, processes.is_first) == (0, 1, True)
        assert processes.total(torch.tensor(3.0)).item() == 3.0
        assert processes.told("x") == "x"
        processes.wait()
    assert not torch.distributed.is_initialized()


def test_a_device_that_is_not_there_is_refused():
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no GPU of NVIDIA's"), running_processes("cuda"):
            pass


def test_batches_are_shared_evenly_or_refused():
    recipe = small_recipe("data.batch_size=24", "data.device_batch_size=5")
    told = {1: (5, 5), 2: (3, 4), 3: (2, 4), 8: (1, 3), 24: (1, 1)}  # 5 5 5 5 4 in one process
    for processes, parts in told.items():
        (stage, _) = plan_stages(recipe, processes)
        assert (stage.parts, stage.part_size) == parts
        assert stage.share * processes == 24
    with pytest.raises(UsageError, match="a batch of 24 cannot be shared evenly by 5 processes"):
        plan_stages(recipe, 5)


def test_a_batch_that_is_more_than_its_stage_is_refused():
    recipe = small_recipe("data.batch_size=100000000000")
    with pytest.raises(UsageError, match="stage 1: a batch of 100,000,000,000 is more than the 48"):
        plan_stages(recipe)
    assert plan_stages(small_recipe("data.batch_size=32"))[1].steps == 1


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_the_state_of_an_optimiser_goes_by_the_names_of_weights(kind):
    def made(seed):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
        network = network.to(memory_format=torch.channels_last)
        # Groups in another order than the weights.
        groups = [{"params": [weight]} for weight in reversed(list(network.parameters()))]
        options = {"lr": 0.1} if kind is torch.optim.AdamW else {"lr": 0.1, "momentum": 0.9}
        return network, kind(groups, **options)

    def step(network, optimiser):
        optimiser.zero_grad()
        network(torch.ones(2, 3, 4, 4)).square().sum().backward()
        optimiser.step()

    network, optimiser = made(0)
    step(network, optimiser)
    other, second = made(1)
    other.load_state_dict(network.state_dict())
    load_optimiser_state(second, other, optimiser_state(optimiser, network))
    for _ in range(2):
        step(network, optimiser)
        step(other, second)
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_running_mean_follows_the_weights():
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(0.0)
    mean = RunningMean(network, 0.5)
    expected, weights = 0.0, []
    for step in range(6):
        network.weight.data.fill_(float(step))
        mean.update()
        stays = min(0.5, (1 + step) / (10 + step))
        expected = stays * expected + (1 - stays) * step
        weights.append(network.weight.item())
    with mean.in_place():
        assert network.weight.item() == pytest.approx(expected, rel=1e-6)
    assert network.weight.item() == 5.0
    other = RunningMean(nn.Linear(1, 1, bias=False), 0.5)
    other.load(mean.state(), mean.steps)
    assert other.state()["weight"].item() == mean.state()["weight"].item()


def test_wrappers_are_taken_off():
    network = nn.Linear(1, 1)
    assert unwrapped(network) is network
    assert unwrapped(torch.compile(network, backend="eager")) is network
    assert Processes().device == torch.device("cpu")
