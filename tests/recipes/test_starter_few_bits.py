"""Matrices in 2 and 4 bits: what comes back, in NumPy and in a graph."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("onnx")

import onnxruntime

from recipes.starter.few_bits import FewBits, middle
from recipes.starter.graph import GraphBuilder, TensorProto


@pytest.mark.parametrize(("bits", "left"), [(2, 0.13), (4, 0.013)])
def test_little_of_a_bell_curve_is_lost(bits: int, left: float) -> None:
    matrix = np.random.default_rng(0).normal(size=(3000, 7)) * np.logspace(-6, 3, 7)
    found = FewBits.of(matrix, bits)
    assert found.codes.max() == 2**bits - 1
    error = ((found.values() - matrix) ** 2).sum(0) / (matrix**2).sum(0)
    assert (error < left).all()
    assert (error > left / 2).all()


@given(
    st.sampled_from([2, 4]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 1e-30, 1.0, 1e4]),
)
def test_the_graph_gives_what_numpy_gives(
    bits: int, inputs: int, outputs: int, seed: int, size: float
) -> None:
    random = np.random.default_rng(seed)
    matrix = FewBits.of(random.normal(size=(inputs, outputs)) * size, bits)
    assert np.isfinite(matrix.values()).all()
    rows = random.normal(size=(3, inputs)).astype(np.float32)
    graph = GraphBuilder()
    product = graph.node("MatMul", "rows", graph.matrix(matrix))
    graph.node("Mul", product, graph.constant(matrix.scale), name="product")
    model = graph.model({"rows": (TensorProto.FLOAT, ["n", inputs])}, {"product": outputs})
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {"rows": rows})
    np.testing.assert_allclose(found, matrix.multiply(rows), rtol=1e-4, atol=1e-5 * size)
    np.testing.assert_allclose(
        rows @ matrix.values(), matrix.multiply(rows), rtol=1e-4, atol=1e-4 * size
    )
    half = matrix.times(np.full(outputs, 0.5))
    np.testing.assert_allclose(half.values(), matrix.values() / 2, rtol=1e-6)


def test_zero_lies_between_the_levels() -> None:
    assert (middle(2), middle(4)) == (1.5, 7.5)
    found = FewBits.of(np.array([[-3.0], [3.0], [1.0], [-1.0]]), 2).values()[:, 0]
    np.testing.assert_allclose(found, [-3, 3, 1, -1], rtol=0.05)
