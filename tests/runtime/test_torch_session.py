"""Networks of torch as sessions."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from annotary.errors import ModelError, UsageError  # noqa: E402
from annotary.runtime import RuntimeOptions, processor_features  # noqa: E402
from annotary.runtime.torch_runtime import TorchSession  # noqa: E402


class Twice(torch.nn.Module):
    """The mean of every channel times a weight, and that mean; notes how it was called."""

    def __init__(self, *, has_second: bool = True) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((3,), 2.0))
        self.has_second = has_second
        self.seen: list[tuple[object, ...]] = []

    def forward(self, image):
        self.seen.append((image.dtype, torch.get_num_threads(), torch.is_inference_mode_enabled()))
        mean = image.mean(dim=(2, 3))
        return mean * self.weight, mean if self.has_second else None


def session(
    precision: str = "fp32", threads: int | None = None, **more
) -> tuple[TorchSession, Twice]:
    module = Twice(**more)
    options = RuntimeOptions(precision=precision, device="cpu", threads=threads)
    return TorchSession(module, ("scores", "features"), options, (3, 448, 448)), module


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, 3, 8, 8), dtype=np.float32)


def test_outputs_are_told_apart_by_name():
    made, module = session()
    batch = images(4)
    assert made.run(batch, "scores") == pytest.approx(2 * batch.mean(axis=(2, 3)), abs=1e-6)
    assert made.run(batch, "features") == pytest.approx(batch.mean(axis=(2, 3)), abs=1e-6)
    assert (made.outputs, made.fixed_batch) == (("scores", "features"), None)
    assert module.seen[0][2] is True


def test_half_precision_comes_back_as_float32():
    if "bf16" not in processor_features():
        pytest.skip("this processor has no bf16")
    made, module = session("bf16")
    scores = made.run(images(2), "scores")
    assert module.seen[0][0] is torch.bfloat16
    assert scores.dtype == np.float32
    assert scores == pytest.approx(2 * images(2).mean(axis=(2, 3)), abs=0.02)
    assert made.choice.precision == "bf16"


def test_the_choice_is_told():
    made, _ = session(threads=3)
    assert made.choice.library == f"torch {torch.__version__}"
    assert (made.choice.streams, made.choice.threads, made.choice.batch_size) == (1, 3, 1)
    assert "3 cores, as asked, one stream" in made.choice.reason


def test_threads_are_as_asked_and_afterwards_as_before():
    before = torch.get_num_threads()
    made, module = session(threads=before + 1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: made.run(images(1), "scores"), range(12)))
    assert {threads for _, threads, _ in module.seen} == {before + 1}
    assert torch.get_num_threads() == before
    other: list[int] = []
    thread = threading.Thread(target=lambda: other.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert other == [before]


def test_what_is_not_there_is_told():
    made, _ = session(has_second=False)
    with pytest.raises(ModelError, match="the network has no output 'nothing'"):
        made.run(images(1), "nothing")
    with pytest.raises(ModelError, match="the network gives no features"):
        made.run(images(1), "features")
    with pytest.raises(ModelError, match="torch cannot run the network: ") as raised:
        made.run(np.zeros((1, 5), np.float32), "scores")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_precisions_of_other_devices_are_refused(precision):
    with pytest.raises(UsageError, match=f"cannot run in {precision} here"):
        session(precision)


def test_a_gpu_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError, match=r"cannot run on cuda here: torch .* finds no CUDA"):
        TorchSession(Twice(), ("scores",), RuntimeOptions(device="cuda"))


def test_integers_stay_integers():
    made, module = session()
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8).numpy()
    with pytest.raises(
        ModelError
    ):  # a mean of integers does not exist; the network is to convert them
        made.run(pixels, "scores")
    assert module.seen[0][0] is torch.uint8
