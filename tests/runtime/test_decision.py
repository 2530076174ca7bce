"""Which library, device and precision a run uses: every rule, without the libraries themselves."""

from __future__ import annotations

import importlib.util
from itertools import product

import numpy as np
import pytest

from annotary.errors import UsageError
from annotary.runtime import (
    CannotRun,
    Choice,
    Offer,
    RuntimeOptions,
    decide,
    offers,
    open_onnx,
    processor_features,
)
from annotary.runtime import _decision as decision_module
from annotary.runtime._options import best_batch
from annotary.runtime._processor import precision_of

ORT = Offer("onnxruntime", "cpu", ("fp32",), "what the file computes in")
ORT_INT8 = Offer("onnxruntime", "cpu", ("int8",), "what the file computes in")
ORT_GPU = Offer("onnxruntime", "cuda", ("fp32",), "what the file computes in")
NO_GPU = Offer("onnxruntime", "cuda", (), "ONNX Runtime 1.0 as installed offers no CUDA")
OPENVINO = Offer("openvino", "cpu", ("bf16", "fp32"), "this processor computes in bf16")
OPENVINO_PLAIN = Offer("openvino", "cpu", ("fp32",), "this processor has no bf16")
OPENVINO_INT8 = Offer("openvino", "cpu", ("int8",), "what the file computes in")
OPENVINO_SECOND = Offer("openvino", "cpu", ("int8",), "what the file computes in", is_second=True)
NO_OPENVINO = Offer(
    *("openvino", "cpu", (), "OpenVINO is not installed: pip install 'annotary[openvino]'")
)
TORCH = Offer("torch", "cpu", ("bf16", "fp32"), "this processor computes in bf16")
TORCH_PLAIN = Offer("torch", "cpu", ("fp32",), "this processor has no bf16")
TORCH_GPU = Offer("torch", "cuda", ("fp16", "bf16", "fp32"), "torch finds a GPU")
NO_TORCH = Offer("torch", "cpu", (), "there are no weights of it for torch")


@pytest.mark.parametrize(
    ("there", "asked", "expected"),
    [
        ([ORT], {}, ("onnxruntime", "cpu", "fp32")),
        ([ORT, OPENVINO], {}, ("openvino", "cpu", "bf16")),
        ([ORT, OPENVINO_PLAIN], {}, ("openvino", "cpu", "fp32")),
        ([ORT, TORCH], {}, ("torch", "cpu", "bf16")),
        ([ORT, TORCH_PLAIN], {}, ("onnxruntime", "cpu", "fp32")),
        ([ORT, OPENVINO, TORCH], {}, ("openvino", "cpu", "bf16")),
        ([ORT, OPENVINO, TORCH], {"precision": "fp32"}, ("openvino", "cpu", "fp32")),
        ([ORT, TORCH], {"precision": "fp32"}, ("onnxruntime", "cpu", "fp32")),
        ([ORT, NO_OPENVINO, TORCH], {"precision": "bf16"}, ("torch", "cpu", "bf16")),
        ([ORT, OPENVINO, TORCH], {"runtime": "torch"}, ("torch", "cpu", "bf16")),
        ([ORT, OPENVINO], {"runtime": "onnxruntime"}, ("onnxruntime", "cpu", "fp32")),
        ([ORT_INT8, OPENVINO_INT8], {}, ("openvino", "cpu", "int8")),
        ([ORT_INT8, OPENVINO_SECOND], {}, ("onnxruntime", "cpu", "int8")),
        ([ORT_INT8, OPENVINO_SECOND], {"runtime": "openvino"}, ("openvino", "cpu", "int8")),
        ([ORT_INT8, NO_OPENVINO], {"precision": "int8"}, ("onnxruntime", "cpu", "int8")),
        ([ORT_GPU, ORT, OPENVINO], {}, ("onnxruntime", "cuda", "fp32")),
        ([ORT_GPU, ORT, OPENVINO], {"device": "cpu"}, ("openvino", "cpu", "bf16")),
        ([ORT_GPU, ORT, TORCH_GPU, TORCH], {}, ("torch", "cuda", "fp16")),
        ([ORT_GPU, TORCH_GPU], {"precision": "fp32"}, ("torch", "cuda", "fp32")),
        ([ORT_GPU, ORT, OPENVINO], {"precision": "bf16"}, ("openvino", "cpu", "bf16")),
    ],
)
def test_the_fastest_that_is_there_and_fits_is_taken(there, asked, expected):
    for order in (there, there[::-1]):
        made = decide(RuntimeOptions(**asked), order)
        assert (made.library, made.device, made.precision) == expected
        assert made.reason


@pytest.mark.parametrize(
    ("there", "asked", "told"),
    [
        (
            [ORT, NO_OPENVINO],
            {"runtime": "openvino"},
            "mine cannot run in OpenVINO: OpenVINO is not installed: pip install 'annotary[openvino]'",
        ),
        (
            [ORT, NO_TORCH],
            {"runtime": "torch"},
            "mine cannot run in torch: there are no weights of it for torch",
        ),
        (
            [NO_GPU, ORT],
            {"device": "cuda"},
            "mine cannot run on cuda here: ONNX Runtime 1.0 as installed offers no CUDA",
        ),
        (
            [ORT, OPENVINO],
            {"precision": "int8"},
            "annotary export mine --precision int8 --calibrate PHOTOS makes a model that runs in int8",
        ),
        (
            [ORT_INT8],
            {"precision": "fp32"},
            "annotary export mine --precision fp32 makes a model that runs in fp32",
        ),
        (
            [ORT, NO_OPENVINO],
            {"precision": "bf16"},
            "ONNX Runtime runs it in fp32 on cpu; OpenVINO is not installed: pip install",
        ),
        (
            [ORT, OPENVINO],
            {"runtime": "onnxruntime", "precision": "bf16"},
            "mine cannot run in bf16 here: ",
        ),
        ([ORT, OPENVINO], {"precision": "fp16"}, "OpenVINO runs it in bf16 or fp32 on cpu"),
        (
            [ORT, OPENVINO],
            {"precision": "int8", "device": "cuda", "runtime": "openvino"},
            "mine cannot run on cuda here: OpenVINO runs on cpu alone",
        ),
    ],
)
def test_what_cannot_be_had_says_what_can(there, asked, told):
    with pytest.raises(UsageError) as raised:
        decide(RuntimeOptions(**asked), there, name="mine")
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_processor_without_bf16_says_so(monkeypatch):
    monkeypatch.setattr(decision_module, "processor_features", frozenset)
    with pytest.raises(UsageError, match="this processor has no arithmetic in bf16"):
        decide(RuntimeOptions(precision="bf16"), [ORT, OPENVINO_PLAIN])
    (openvino,) = [o for o in offers("fp32", has_torch=False) if o.library == "openvino"]
    assert openvino.precisions[:1] in ((), ("fp32",))


def test_every_request_is_answered_or_refused_in_one_line():
    kinds = product(
        ("auto", "cpu", "cuda"),
        ("auto", "fp32", "bf16", "fp16", "int8"),
        ("auto", "onnxruntime", "openvino", "torch"),
        ("fp32", "int8", None),
        (False, True),
    )
    for device, precision, runtime, file, has_torch in kinds:
        options = RuntimeOptions(device=device, precision=precision, runtime=runtime)
        try:
            made = decide(options, offers(file, has_torch=has_torch))
        except UsageError as error:
            told = str(error)
            assert told.startswith("NAME cannot run ")
            continue
        assert device in ("auto", made.device)
        assert precision in ("auto", made.precision)
        assert runtime in ("auto", made.library)


def test_offers_say_what_is_installed():
    found = {(o.library, o.device): o for o in offers("fp32", has_torch=True)}
    assert found["onnxruntime", "cpu"].precisions == ("fp32",)
    for library in ("openvino", "torch"):
        there = importlib.util.find_spec(library) is not None
        assert bool(found[library, "cpu"].precisions) == there
        assert there or f"annotary[{library}]" in found[library, "cpu"].reason
    assert not any(o.precisions for o in offers(None, has_torch=False))
    assert not any(o.precisions for o in offers(None, has_torch=False, is_convertible=True))
    found = {(o.library, o.device): o for o in offers(None, has_torch=True)}
    assert found["openvino", "cpu"].reason == "there is no ONNX file of it"
    found = {(o.library, o.device): o for o in offers(None, has_torch=True, is_convertible=True)}
    both = all(importlib.util.find_spec(library) for library in ("openvino", "torch"))
    assert bool(found["openvino", "cpu"].precisions) == both
    assert both or "annotary[" in found["openvino", "cpu"].reason
    small = decide(
        RuntimeOptions(device="cpu"), offers("int8", has_torch=False, is_transformer=False)
    )
    assert small.library == "onnxruntime"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 avx512_vnni\n", {"bf16", "vnni"}),
        ("flags : amx_tile amx_bf16 amx_int8 avx512_fp16\n", {"amx", "bf16", "fp16"}),
        ("processor : 0\nFeatures\t: fp asimd i8mm bf16\n", {"bf16", "vnni"}),
        ("flags : sse avx2 avx_vnni\n", {"vnni"}),
        ("model name : bf16\nflags : sse2\n", set()),
        ("", set()),
    ],
)
def test_the_processor_is_read_from_the_system(tmp_path, text, expected):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert processor_features(path) == expected


def test_a_system_that_does_not_tell_has_no_features(tmp_path):
    assert processor_features(tmp_path / "missing") == frozenset()


def test_options_are_checked():
    for name in ("device", "precision", "runtime"):
        with pytest.raises(ValueError, match=f"{name} must be one of auto, .* but got 'gpu'"):
            RuntimeOptions(**{name: "gpu"})
    with pytest.raises(ValueError, match="threads must be at least 1, but got 0"):
        RuntimeOptions(threads=0)


def test_large_images_go_one_by_one_on_a_processor():
    assert best_batch("cpu", (None, 3, 448, 448)) == 1
    assert best_batch("cpu", (None, 448, 448, 3)) == 1
    assert best_batch("cpu", (None, 260, 260, 3)) == 4
    assert best_batch("cpu", (None, 3, None, None)) == 4
    assert best_batch("cuda", (None, 3, 448, 448)) == 32
    assert Choice("x", "cpu", "fp32", 1, 1, "why").batch_size >= 1


@pytest.mark.parametrize(
    "asked",
    [
        {"runtime": "openvino", "device": "cuda"},
        {"runtime": "openvino", "precision": "fp16"},
        {"runtime": "openvino", "precision": "int8"},
    ],
)
def test_reasons_are_those_of_the_library_that_was_asked_for(asked):
    there = [NO_GPU, ORT, OPENVINO, Offer("torch", "cuda", (), "torch finds no CUDA"), TORCH]
    with pytest.raises(CannotRun) as raised:
        decide(RuntimeOptions(**asked), there, name="mine")
    assert "OpenVINO" in str(raised.value)
    assert "torch" not in str(raised.value)
    assert "ONNX" not in str(raised.value)


def test_a_message_can_name_the_model_as_the_user_does():
    with pytest.raises(CannotRun) as raised:
        decide(RuntimeOptions(precision="int8"), [ORT], name="card")
    told = raised.value.told("dir:my models/x")
    assert told.startswith("dir:my models/x cannot run in int8 here")
    assert "annotary export 'dir:my models/x' --precision int8" in told


@pytest.mark.parametrize("to", ["FLOAT16", "FLOAT"])
def test_a_file_that_casts_to_halves_computes_in_them(tmp_path, to):
    onnx = pytest.importorskip("onnx")
    make, kinds = onnx.helper, onnx.TensorProto
    # Weights that are stored in halves are no matter of the arithmetic.
    weights = make.make_tensor("w", kinds.FLOAT16, [3], [1.0, 2.0, 3.0])
    names = ("x", "w") if to == "FLOAT16" else ("w", "x")
    nodes = [
        make.make_node("Cast", [names[0]], ["cast"], to=getattr(kinds, to)),
        make.make_node("Mul", ["cast", names[1]], ["product"]),
        make.make_node("Cast", ["product"], ["y"], to=kinds.FLOAT),
    ]
    inputs = [make.make_tensor_value_info("x", kinds.FLOAT, ["n", 3])]
    outputs = [make.make_tensor_value_info("y", kinds.FLOAT, ["n", 3])]
    graph = make.make_graph(nodes, "g", inputs, outputs, [weights])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    precision = "fp16" if to == "FLOAT16" else "fp32"
    assert precision_of(tmp_path / "m.onnx") == precision
    session = open_onnx(tmp_path / "m.onnx", RuntimeOptions(runtime="onnxruntime", device="cpu"))
    assert session.choice.precision == precision
    assert session.run(np.ones((1, 3), np.float32), "y").tolist() == [[1, 2, 3]]


def test_the_starter_computes_in_int8(colours, tmp_path):
    from annotary import weights

    assert precision_of(weights.shipped()["starter"] / "model.onnx") == "int8"
    assert precision_of(colours / "model.onnx") == "fp32"
    (tmp_path / "empty").write_bytes(b"")
    assert precision_of(tmp_path / "empty") == "fp32"
    assert precision_of(tmp_path / "missing") == "fp32"
