"""Changes to ONNX graphs keep what the networks compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from annotary import weights  # noqa: E402
from annotary.errors import ModelError  # noqa: E402
from annotary.export._graphs import (  # noqa: E402
    drop_clips,
    make_unsigned,
    name_outputs,
    read_model,
    store_biases,
    tail_of,
    without_integers,
)
from annotary.runtime import RuntimeOptions, is_transformer  # noqa: E402
from annotary.runtime.onnx_runtime import OnnxSession  # noqa: E402

LOW, HIGH = 0.0, 2.0


def quantised(kind: type[np.generic] = np.int8) -> onnx.ModelProto:
    """A convolution between quantisers, with a limit before the second; the weights have one scale a channel."""
    generator = np.random.default_rng(3)
    zero = np.array(-10 if kind is np.int8 else 118, kind)
    stored = {
        "in_scale": np.array(0.02, np.float32),
        "in_zero": zero,
        "weights": generator.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        "weight_scale": generator.uniform(0.001, 0.01, 4).astype(np.float32),
        "weight_zero": np.zeros(4, np.int8),
        "bias": generator.normal(0, 0.5, 4).astype(np.float32),
        "low": np.array(LOW, np.float32),
        "high": np.array(HIGH, np.float32),
        "out_scale": np.array(HIGH / 255, np.float32),
        "out_zero": np.array(-128 if kind is np.int8 else 0, kind),
    }
    make = helper.make_node
    nodes = [
        make("QuantizeLinear", ["image", "in_scale", "in_zero"], ["q"]),
        make("DequantizeLinear", ["q", "in_scale", "in_zero"], ["dq"]),
        make("DequantizeLinear", ["weights", "weight_scale", "weight_zero"], ["w"], axis=0),
        make("Conv", ["dq", "w", "bias"], ["conv"], kernel_shape=[3, 3]),
        make("Clip", ["conv", "low", "high"], ["limited"]),
        make("QuantizeLinear", ["limited", "out_scale", "out_zero"], ["q2"]),
        make("DequantizeLinear", ["q2", "out_scale", "out_zero"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 4, 6, 6])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def scores(model: onnx.ModelProto, folder: Path) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    batch = np.random.default_rng(0).normal(0, 1, (3, 3, 8, 8)).astype(np.float32)
    return OnnxSession(folder / "model.onnx", RuntimeOptions(threads=1)).run(batch, "scores")


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_what_onnx_runtime_wants_changes_no_value(kind, tmp_path):
    model = quantised(kind)
    before = scores(model, tmp_path)
    for change in (make_unsigned, drop_clips, store_biases):
        change(model)
        # A bias is rounded to the 32-bit step of its layer; a value on the edge may fall on the other side.
        assert np.abs(scores(model, tmp_path) - before).max() <= HIGH / 255 + 1e-6
        assert np.abs(scores(model, tmp_path) - before).mean() < 1e-4
    operators = [node.op_type for node in model.graph.node]
    assert "Clip" not in operators
    assert operators.count("DequantizeLinear") == 4
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert stored["conv_bias_integers"] == TensorProto.INT32
    zeros = {stored[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    assert zeros == {TensorProto.UINT8}


def test_a_limit_that_the_quantiser_has_not_stays(tmp_path):
    model = quantised()
    for tensor in model.graph.initializer:
        if tensor.name == "high":
            tensor.CopyFrom(numpy_helper.from_array(np.array(1.0, np.float32), "high"))
    drop_clips(model)
    assert "Clip" in [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_without_integers_only_the_rounding_goes(kind, tmp_path):
    before = scores(quantised(kind), tmp_path)
    model = without_integers(quantised(kind))
    assert not [n for n in model.graph.node if n.op_type.endswith("Linear")]
    after = scores(model, tmp_path)
    assert np.abs(after - before).max() < 0.1
    assert np.abs(after - before).mean() < 0.01
    assert after.min() == LOW
    assert after.max() == pytest.approx(HIGH, abs=1e-5)


def test_integers_of_another_form_are_refused():
    node = helper.make_node("MatMulInteger", ["a", "b"], ["scores"])
    graph = helper.make_graph([node], "g", [], [])
    with pytest.raises(ModelError, match="networks with MatMulInteger cannot be made fp32"):
        without_integers(helper.make_model(graph))


def test_the_tail_is_what_follows_the_last_pooling(convolutional):
    model = read_model(convolutional / "model.onnx")
    operators = {node.name: node.op_type for node in model.graph.node}
    assert not any(operators)  # without names, as written
    tail = tail_of(model)
    operators = {node.name: node.op_type for node in model.graph.node}
    assert sorted(operators[name] for name in tail) == ["Flatten", "Gemm"]


def test_the_tail_without_a_pooling_is_the_last_linear_layer():
    make = helper.make_node
    nodes = [
        make("Conv", ["image", "w"], ["a"]),
        make("Relu", ["a"], ["b"]),
        make("Flatten", ["b"], ["c"]),
        make("MatMul", ["c", "m"], ["d"]),
        make("Add", ["d", "bias"], ["e"]),
        make("Sigmoid", ["e"], ["scores"]),
    ]
    value = helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph(nodes, "g", [], [value]))
    tail = tail_of(model)
    operators = {node.name: node.op_type for node in model.graph.node}
    assert sorted(operators[name] for name in tail) == ["Add", "MatMul", "Sigmoid"]


def test_outputs_get_their_names_though_others_have_them(tmp_path):
    model = quantised()
    model.graph.node[3].output[0] = (
        "features"  # a value inside has a name that an output is to have
    )
    model.graph.node[4].input[0] = "features"
    name_outputs(model, "scores", "q2")
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.INT8
    onnx.checker.check_model(model)
    assert [output.name for output in model.graph.output] == ["scores", "features"]
    assert [n.input[0] for n in model.graph.node if n.output[0] == "features"] == ["q2"]


def test_the_starter_is_no_transformer_and_joytag_is(joytag, tmp_path):
    pytest.importorskip("onnxscript")
    from annotary.export._graphs import write_torch
    from annotary.models._joytag_vit import load_network

    assert not is_transformer(weights.shipped()["starter"] / "model.onnx")
    write_torch(load_network(joytag), ("scores", "features"), (32, 32), tmp_path / "model.onnx")
    assert is_transformer(tmp_path / "model.onnx")
    assert not is_transformer(tmp_path / "missing")


def test_a_file_that_is_no_network_is_one_line(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x00\xff" * 50)
    with pytest.raises(ModelError) as raised:
        read_model(tmp_path / "model.onnx")
    assert "\n" not in str(raised.value)
