"""What is read of an ONNX file without a library, and the output that is added to one."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from annotary.errors import ModelError  # noqa: E402
from annotary.models._onnx_graph import (  # noqa: E402
    external_files,
    head_input,
    read_graph,
    with_output,
)
from tests.taggers import move_weights_out  # noqa: E402

WEIGHTS = np.arange(12, dtype=np.float32).reshape(3, 4)

HEADS = {
    "gemm": [("Gemm", ["mean", "w", "b"], ["output"])],
    "product": [("MatMul", ["mean", "w"], ["output"])],
    "product and bias": [("MatMul", ["mean", "w"], ["p"]), ("Add", ["p", "b"], ["output"])],
    "bias and product": [("MatMul", ["mean", "w"], ["p"]), ("Add", ["b", "p"], ["output"])],
    "renamed": [("Gemm", ["mean", "w", "b"], ["o"]), ("Identity", ["o"], ["output"])],
    "mean last": [("Gemm", ["mean", "w", "b"], ["o"]), ("ReduceMean", ["o"], ["output"])],
    "sigmoid": [("Gemm", ["mean", "w", "b"], ["o"]), ("Sigmoid", ["o"], ["output"])],
}


def write(path, head="gemm", *, shape=("N", 3, 8, 8), ir_version=8):
    nodes = [helper.make_node("GlobalAveragePool", ["input"], ["pooled"])]
    nodes.append(helper.make_node("Flatten", ["pooled"], ["mean"]))
    nodes += [helper.make_node(*node) for node in HEADS[head]]
    weights = [
        numpy_helper.from_array(WEIGHTS, "w"),
        numpy_helper.from_array(np.ones(4, np.float32), "b"),
    ]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)]
    if ir_version < 4:  # then the weights are inputs, too
        inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 4]))
        inputs.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [4]))
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 13 if ir_version >= 4 else 7)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=ir_version), path)
    return path


@pytest.mark.parametrize("ir_version", [3, 8])
def test_inputs_and_outputs(tmp_path, ir_version):
    graph = read_graph(write(tmp_path / "m.onnx", ir_version=ir_version))
    (image,) = graph.inputs
    assert (image.name, image.shape, image.element) == ("input", (None, 3, 8, 8), 1)
    assert [(value.name, value.shape) for value in graph.outputs] == [("output", (None, 4))]
    assert graph.makers["output"].operator == "Gemm"


@pytest.mark.parametrize("head", [head for head in HEADS if head not in ("mean last", "sigmoid")])
def test_the_embedding_is_what_the_last_linear_layer_reads(tmp_path, head):
    path = write(tmp_path / "m.onnx", head)
    assert head_input(path, "output") == "mean"
    with_output(path, "mean", tmp_path / "more.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "more.onnx"))
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "more.onnx")
    images = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    output, mean = session.run(["output", "mean"], {"input": images})
    assert mean == pytest.approx(images.mean(axis=(2, 3)), abs=1e-6)
    bias = 0 if head == "product" else 1
    assert output == pytest.approx(mean @ WEIGHTS + bias, abs=1e-4)


@pytest.mark.parametrize(("head", "made_by"), [("mean last", "ReduceMean"), ("sigmoid", "Sigmoid")])
def test_other_ends_have_no_embedding(tmp_path, head, made_by):
    path = write(tmp_path / "m.onnx", head)
    with pytest.raises(
        ModelError, match=f"gives no features: its output 'output' is made by {made_by}"
    ):
        head_input(path, "output")


def outside(name, location):
    """Weights in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_files_with_weights_are_found_wherever_they_are_named(tmp_path):
    path = write(tmp_path / "m.onnx")
    assert external_files(path) == ()
    model = onnx.load(path)
    branch = helper.make_graph([], "branch", [], [], [outside("a", "branch.data")])
    constant = helper.make_node("Constant", [], ["c"], value=outside("b", "constant.data"))
    function = helper.make_function("mine", "f", [], ["c"], [constant], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch))
    model.functions.append(function)
    model.graph.initializer.extend([outside("d", "m.data"), outside("e", "m.data")])
    told = outside("f", "only told")
    told.data_location = TensorProto.DEFAULT
    model.graph.initializer.append(told)
    onnx.save(model, path)
    assert set(external_files(path)) == {"branch.data", "m.data", "constant.data"}


@pytest.mark.parametrize("location", ["../m.data", "/etc/passwd", "sub/m.data", ""])
def test_weights_are_taken_from_the_same_folder_alone(tmp_path, location):
    path = write(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.initializer.append(outside("d", location))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="must be in files directly beside it"):
        external_files(path)


def test_a_copy_with_an_output_has_its_weights(tmp_path):
    import onnxruntime

    path = write(tmp_path / "m.onnx")
    beside = move_weights_out(path, least=64)
    (tmp_path / "copy").mkdir()
    with_output(path, "mean", tmp_path / "copy" / "more.onnx")
    assert (tmp_path / "copy" / beside.name).read_bytes() == beside.read_bytes()
    session = onnxruntime.InferenceSession(tmp_path / "copy" / "more.onnx")
    (output,) = session.run(["output"], {"input": np.ones((1, 3, 8, 8), np.float32)})
    assert output == pytest.approx(WEIGHTS.sum(axis=0, keepdims=True) + 1)


@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"no network", b"\x08\x08", b"\x3a\xff\xff", b"\x08" + b"\xff" * 20]
)
def test_files_that_are_none(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is no ONNX file") as caught:
        read_graph(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(ModelError, match="cannot read"):
        read_graph(tmp_path / "m.onnx")


@given(st.binary(max_size=300), st.integers(0, 400), st.booleans())
def test_any_damage_is_one_error(tmp_path_factory, junk, place, is_cut):
    folder = tmp_path_factory.mktemp("graph")
    content = write(folder / "m.onnx").read_bytes()
    place = min(place, len(content))
    damaged = content[:place] + junk + (b"" if is_cut else content[place + len(junk) :])
    (folder / "m.onnx").write_bytes(damaged)
    with contextlib.suppress(ModelError):
        external_files(folder / "m.onnx")
    with contextlib.suppress(ModelError):
        read_graph(folder / "m.onnx")
