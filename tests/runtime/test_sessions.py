"""The three libraries run the same networks with the same results, from several threads, and tell what is wrong."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from annotary import weights
from annotary.errors import ModelError, UsageError
from annotary.runtime import RuntimeOptions, onnx_runtime, open_onnx, processor_features
from annotary.runtime.onnx_runtime import OnnxSession
from tests.conftest import child_environment
from tests.taggers import make_wd, move_weights_out

LIBRARIES = ("onnxruntime", "openvino")


@pytest.fixture(params=LIBRARIES)
def library(request):
    pytest.importorskip(request.param)
    return request.param


def exact(library: str, **more) -> RuntimeOptions:
    return RuntimeOptions(runtime=library, precision="fp32", device="cpu", **more)


def pictures(count: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_scores_are_right(library, colours):
    session = open_onnx(colours / "model.onnx", exact(library))
    batch = pictures(3)
    scores = session.run(batch, "scores")
    assert scores.dtype == np.float32
    assert scores == pytest.approx(batch.mean(axis=(1, 2)) / 255, abs=1e-5)
    assert session.run(batch, "features") == pytest.approx(batch.mean(axis=(1, 2)), abs=1e-3)
    assert session.outputs == ("scores", "features")
    assert session.fixed_batch is None


def test_the_choice_is_told(library, colours):
    choice = open_onnx(colours / "model.onnx", exact(library, threads=2)).choice
    assert choice.library.replace(" ", "").lower().startswith(library)
    assert (choice.device, choice.precision) == ("cpu", "fp32")
    assert (choice.streams, choice.threads, choice.batch_size) == (2, 1, 4)
    assert "2 cores, as asked" in choice.reason


def test_many_streams_share_the_cores(colours):
    pytest.importorskip("openvino")
    choice = open_onnx(colours / "model.onnx", exact("openvino", threads=16)).choice
    assert (choice.streams, choice.threads) == (8, 2)


def test_few_cores_are_left_over():
    from annotary.runtime.openvino_runtime import streams_of

    shares = {1: 1, 2: 2, 3: 3, 8: 8, 9: 8, 10: 5, 12: 6, 13: 6, 16: 8, 64: 8}
    assert {cores: streams_of(cores) for cores in shares} == shares
    assert all(
        streams_of(cores) * (cores // streams_of(cores)) > 0.85 * cores for cores in range(1, 300)
    )


def test_threads_do_not_disturb_each_other(library, colours):
    session = open_onnx(colours / "model.onnx", exact(library, threads=2))
    batches = [pictures(1 + i % 5) + np.uint8(i) for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda batch: session.run(batch, "scores"), batches))
    for batch, scores in zip(batches, results, strict=True):
        assert scores == pytest.approx(batch.mean(axis=(1, 2)) / 255, abs=1e-5)


def test_results_stay_as_they_are_when_the_session_goes_on(library, colours):
    session = open_onnx(colours / "model.onnx", exact(library, threads=1))
    first = session.run(pictures(2), "scores")
    kept = first.copy()
    session.run(255 - pictures(2), "scores")
    assert np.array_equal(first, kept)


def fixed(path: Path, batch: int = 1) -> Path:
    """A network that takes so many images at a time: the sum of their pixels."""
    onnx = pytest.importorskip("onnx")
    make = onnx.helper
    graph = make.make_graph(
        [make.make_node("ReduceSum", ["image", "axes"], ["scores"], keepdims=0)],
        "fixed",
        [make.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [batch, 3, 4, 4])],
        [make.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [batch, 3])],
        [make.make_tensor("axes", onnx.TensorProto.INT64, [2], [2, 3])],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, path)
    return path


def test_outputs_have_the_names_of_the_file(library, tmp_path):
    onnx = pytest.importorskip("onnx")
    make = onnx.helper
    names = ("scores", "embedding", "features")
    graph = make.make_graph(
        [
            make.make_node("Relu", ["image"], ["embedding"]),
            make.make_node("Identity", ["embedding"], ["scores"]),
            make.make_node("Identity", ["embedding"], ["features"]),
        ],
        "names",
        [make.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["n", 3])],
        [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3]) for name in names],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    session = open_onnx(tmp_path / "model.onnx", exact(library))
    assert session.outputs == names
    batch = np.array([[1, -2, 3]], np.float32)
    for name in names:
        assert session.run(batch, name).tolist() == [[1, 0, 3]]


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_a_network_for_a_number_of_images_gets_so_many(library, tmp_path, size):
    session = open_onnx(fixed(tmp_path / "model.onnx", size), exact(library))
    assert session.fixed_batch == size
    for count in (1, 4, 5):
        batch = np.random.default_rng(0).random((count, 3, 4, 4), dtype=np.float32)
        assert session.run(batch, "scores") == pytest.approx(batch.sum(axis=(2, 3)), abs=1e-4)


def test_other_numbers_than_the_networks_are_refused(library, tmp_path):
    session = open_onnx(fixed(tmp_path / "model.onnx"), exact(library))
    with pytest.raises(ModelError, match="cannot run"):
        session.run(np.zeros((1, 3, 4, 4), np.uint8), "scores")


def test_a_gpu_that_was_asked_for_and_cannot_be_used_is_an_error(colours, monkeypatch):
    if onnx_runtime.offers_cuda()[0]:
        pytest.skip("this ONNX Runtime has CUDA")
    monkeypatch.setattr(onnx_runtime, "offers_cuda", lambda: (True, ""))
    path = colours / "model.onnx"
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):  # of this build
        choice = OnnxSession(path, RuntimeOptions(threads=1)).choice
    assert choice.device == "cpu"
    assert choice.reason.startswith("cuda cannot be used here, although it is offered")
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(UsageError, match="offers cuda, but cannot use it here"),
    ):
        OnnxSession(path, RuntimeOptions(device="cuda"))


def test_messages_name_the_file_that_was_copied(library, colours, tmp_path):
    copy = tmp_path / "copy.onnx"
    copy.write_bytes((colours / "model.onnx").read_bytes())
    session = open_onnx(copy, exact(library), origin=colours / "model.onnx")
    copy.unlink()
    with pytest.raises(ModelError) as raised:
        session.run(np.zeros((1, 9, 16, 3), np.uint8), "scores")
    assert str(colours / "model.onnx") in str(raised.value)


def test_weights_behind_links_are_left_to_onnx_runtime(tmp_path):
    """As the hub's cache has them: OpenVINO does not follow links out of the folder."""
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    folder, cache = make_wd(tmp_path / "wd"), tmp_path / "blobs"
    move_weights_out(folder / "model.onnx")
    assert open_onnx(folder / "model.onnx", RuntimeOptions()).choice.library.startswith("OpenVINO")
    cache.mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (folder / name).rename(cache / name.replace(".", "-"))
        (folder / name).symlink_to(cache / name.replace(".", "-"))
    session = open_onnx(folder / "model.onnx", RuntimeOptions(device="cpu"))
    assert session.choice.library.startswith("ONNX Runtime")
    assert session.run(np.zeros((1, 16, 16, 3), np.float32), session.outputs[0]).shape == (1, 8)
    with pytest.raises(UsageError, match="OpenVINO follows no links"):
        open_onnx(folder / "model.onnx", RuntimeOptions(runtime="openvino"))


def test_what_does_not_fit_is_one_line(library, colours, tmp_path):
    session = open_onnx(colours / "model.onnx", exact(library))
    wrong = (np.zeros((1, 9, 16, 3), np.uint8), np.zeros((1, 16, 16, 3), np.float64)[0])
    for batch in wrong:
        with pytest.raises(ModelError) as raised:
            session.run(batch, "scores")
        assert "\n" not in str(raised.value)
        assert "model.onnx" in str(raised.value)
    with pytest.raises(ModelError):
        session.run(pictures(1), "nothing")
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(ModelError, match=r"cannot load .*broken\.onnx: ") as raised:
        open_onnx(tmp_path / "broken.onnx", exact(library))
    assert "\n" not in str(raised.value)
    with pytest.raises(ModelError, match=r"missing\.onnx is missing"):
        open_onnx(tmp_path / "missing.onnx", exact(library))
    # It still works.
    assert session.run(pictures(2), "scores").shape == (2, 3)


def test_the_starter_gives_nearly_the_same_scores_everywhere():
    pytest.importorskip("openvino")
    path = weights.shipped()["starter"] / "model.onnx"
    batch = np.repeat(pictures(4, 26).repeat(10, axis=1), 10, axis=2)
    found = {}
    for library in LIBRARIES:
        session = open_onnx(path, RuntimeOptions(runtime=library, device="cpu"))
        assert session.choice.precision == "int8"
        found[library] = session.run(batch, "scores")
    difference = np.abs(found["onnxruntime"] - found["openvino"])
    assert difference.mean() < 0.003
    assert difference.max() < 0.3


def test_precisions_that_a_file_has_not_are_refused(colours):
    starter = weights.shipped()["starter"] / "model.onnx"
    with pytest.raises(UsageError, match="annotary export starter --precision fp32 makes"):
        open_onnx(starter, RuntimeOptions(precision="fp32"), name="starter")
    with pytest.raises(UsageError, match="annotary export colours --precision int8 --calibrate"):
        open_onnx(colours / "model.onnx", RuntimeOptions(precision="int8"), name="colours")
    options = RuntimeOptions(precision="fp16", runtime="onnxruntime", device="cpu")
    with pytest.raises(UsageError, match="ONNX Runtime runs it in fp32 on cpu"):
        open_onnx(colours / "model.onnx", options)


def test_a_session_of_onnx_runtime_alone_decides_by_itself(colours):
    session = OnnxSession(colours / "model.onnx", RuntimeOptions(threads=1))
    assert session.choice.library.startswith("ONNX Runtime")
    assert session.choice.precision == "fp32"


def test_bf16_is_near(colours):
    pytest.importorskip("openvino")
    if "bf16" not in processor_features():
        pytest.skip("this processor has no bf16")
    session = open_onnx(
        colours / "model.onnx", RuntimeOptions(runtime="openvino", precision="bf16", device="cpu")
    )
    assert session.choice.precision == "bf16"
    batch = pictures(2)
    assert session.run(batch, "scores") == pytest.approx(batch.mean(axis=(1, 2)) / 255, abs=0.01)


SILENT = """
import os, socket, sys
def refuse(*_):
    raise AssertionError("a connection was opened")
socket.socket.connect = socket.socket.connect_ex = refuse
from pathlib import Path
from annotary.runtime import RuntimeOptions, open_onnx
session = open_onnx(Path(sys.argv[1]), RuntimeOptions(runtime=sys.argv[2], device="cpu"))
import numpy
session.run(numpy.zeros((1, 16, 16, 3), numpy.uint8), "scores")
assert sys.modules.get("openvino_telemetry") is None
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
print(sorted(os.listdir(os.environ["HOME"])))
"""


def test_nothing_is_sent_and_nothing_is_left_at_home(library, colours, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    environment = {**child_environment(), "HOME": str(home)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    result = subprocess.run(
        [sys.executable, "-c", SILENT, str(colours / "model.onnx"), library],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_further_inputs_go_by_their_names(library, tmp_path):
    """Whatever their order in the file; what is not named gets the batch."""
    onnx = pytest.importorskip("onnx")
    make, kinds = onnx.helper, onnx.TensorProto
    graph = make.make_graph(
        [
            make.make_node("Cast", ["mask"], ["kept"], to=kinds.FLOAT),
            make.make_node("Cast", ["numbers"], ["floats"], to=kinds.FLOAT),
            make.make_node("Mul", ["floats", "kept"], ["product"]),
            make.make_node("ReduceSum", ["product", "axes"], ["sums"], keepdims=0),
        ],
        "two",
        [
            make.make_tensor_value_info("mask", kinds.INT64, ["n", "l"]),
            make.make_tensor_value_info("numbers", kinds.INT64, ["n", "l"]),
        ],
        [make.make_tensor_value_info("sums", kinds.FLOAT, ["n"])],
        [make.make_tensor("axes", kinds.INT64, [1], [1])],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    session = open_onnx(tmp_path / "model.onnx", exact(library))
    assert set(session.inputs) == {"mask", "numbers"}
    numbers = np.array([[3, 4, 5], [1, 2, 9]], np.int64)
    mask = np.array([[1, 1, 0], [0, 1, 1]], np.int64)
    assert session.run(numbers, "sums", {"mask": mask}).tolist() == [7, 11]
    with pytest.raises(ModelError, match="cannot run"):
        session.run(numbers, "sums", {"mask": mask, "other": mask})
    with pytest.raises(ModelError, match="cannot run"):
        session.run(numbers, "sums")


def test_torch_takes_one_input():
    torch = pytest.importorskip("torch")
    from annotary.runtime.torch_runtime import TorchSession

    session = TorchSession(torch.nn.Identity(), ("same",), RuntimeOptions(precision="fp32"))
    batch = np.ones((2, 3), np.float32)
    assert session.run(batch, "same").tolist() == batch.tolist()
    with pytest.raises(ModelError, match="has no input 'mask'"):
        session.run(batch, "same", {"mask": batch})


def test_a_network_of_torch_in_openvino():
    """Any number of images, and every other axis as in the example."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("openvino")
    from annotary.runtime import decide, offers
    from annotary.runtime.openvino_runtime import OpenVinoSession, convert_torch

    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 2), torch.nn.Flatten(), torch.nn.Linear(36, 5)
    )
    options = RuntimeOptions(runtime="openvino", precision="fp32")
    decision = decide(options, offers(None, has_torch=True, is_convertible=True))
    converted = convert_torch(module, torch.zeros(2, 3, 4, 4), "scores")
    session = OpenVinoSession(Path("NAME"), options, decision, converted=converted)
    assert session.outputs == ("scores",)
    assert "taken from the weights for torch" in session.choice.reason
    for count in (1, 2, 7):
        batch = np.random.default_rng(count).random((count, 3, 4, 4), dtype=np.float32)
        with torch.no_grad():
            wanted = module(torch.from_numpy(batch)).numpy()
        np.testing.assert_allclose(session.run(batch, "scores"), wanted, atol=1e-5)
    with pytest.raises(ModelError, match="cannot run"):
        session.run(np.zeros((1, 3, 5, 5), np.float32), "scores")


def test_a_network_that_openvino_cannot_take_is_one_line():
    torch = pytest.importorskip("torch")
    pytest.importorskip("openvino")
    from annotary.runtime.openvino_runtime import convert_torch

    class Breaks(torch.nn.Module):
        def forward(self, images):
            raise RuntimeError("it breaks\nin two lines")

    with pytest.raises(ModelError, match="OpenVINO cannot take the network from torch") as caught:
        convert_torch(Breaks(), torch.zeros(1, 3, 4, 4), "scores")
    assert "\n" not in str(caught.value)


def test_folding_leaves_products_and_sums_apart(tmp_path):
    """NNCF takes what is added to a product for a stored bias, once both are one operation."""
    onnx = pytest.importorskip("onnx")
    from annotary.runtime.onnx_runtime import fold_constants

    make = onnx.helper.make_node
    weights = [np.ones((4, 3), np.float32), np.full((4, 3), 2, np.float32)]
    graph = onnx.helper.make_graph(
        [
            make("MatMul", ["x", "w0"], ["a"]),
            make("Neg", ["w1"], ["w2"]),
            make("MatMul", ["x", "w2"], ["b"]),
            make("Add", ["a", "b"], ["y"]),
        ],
        "sum",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3])],
        [onnx.numpy_helper.from_array(w, f"w{number}") for number, w in enumerate(weights)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "model.onnx")
    fold_constants(tmp_path / "model.onnx", tmp_path / "folded.onnx")
    kinds = sorted(node.op_type for node in onnx.load(tmp_path / "folded.onnx").graph.node)
    assert kinds == ["Add", "MatMul", "MatMul"]
