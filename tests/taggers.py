"""Small taggers of the families, in the layout in which they are published; their weights are not trained."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WD_TAGS = (
    ("general", 9),
    ("sensitive", 9),
    ("questionable", 9),
    ("explicit", 9),
    ("1girl", 0),
    ("^_^", 0),
    ("fate/grand_order", 0),
    ("saber_(fate)", 4),
)
"""Names and categories of a WD tagger, in the order of its outputs."""

SMALL_JOYTAG: Mapping[str, Any] = {
    "class": "ViT",
    "num_blocks": 2,
    "patch_size": 16,
    "d_model": 32,
    "mlp_dim": 64,
    "num_heads": 4,
    "stochdepth_rate": 0.05,
    "use_sine": True,
    "cnn_stem": "conv:c=8;ln;relu;conv:c=8;ln;relu;conv:c=16;ln;relu;conv:c=16;ln;relu;conv:c=32,s=1,k=1,p=0",
    "image_size": 64,
    "n_tags": 5,
    "loss_type": "focal2",
}
"""The tiny network whose outputs the reference's own code was run for."""

SMALL_TAGS = ("1girl", "^_^", "steins;gate", "saber_(fate)", "no_humans")


def make_wd(
    directory: Path, *, size: int = 16, fixed_batch: int | None = None, is_logit: bool = False
) -> Path:
    """A WD tagger whose scores are the sigmoid of the mean blue, green and red pixel value less 128, over 64, and so on
    through its tags; `is_logit` leaves the sigmoid out."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    directory.mkdir(parents=True)
    count = len(WD_TAGS)
    weights = np.zeros((3, count), np.float32)
    for tag in range(count):
        weights[tag % 3, tag] = 1 / 64
    nodes = [
        helper.make_node("ReduceMean", ["input_1:0", "axes"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "weights", "bias"], ["logits"]),
        helper.make_node(
            "Identity" if is_logit else "Sigmoid", ["logits"], ["predictions_sigmoid"]
        ),
    ]
    batch: int | str = fixed_batch or "N"
    graph = helper.make_graph(
        nodes,
        "wd",
        [helper.make_tensor_value_info("input_1:0", TensorProto.FLOAT, [batch, size, size, 3])],
        [helper.make_tensor_value_info("predictions_sigmoid", TensorProto.FLOAT, [batch, count])],
        [
            helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.full(count, -2, np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, directory / "model.onnx")
    rows = "".join(f"{i},{name},{category},100\n" for i, (name, category) in enumerate(WD_TAGS))
    (directory / "selected_tags.csv").write_text("tag_id,name,category,count\n" + rows)
    return directory


def move_weights_out(path: Path, least: int = 128) -> Path:
    """Put the weights of an ONNX file in another one beside it, as exporters do with large ones; gives that one.

    Shapes must stay where they are: `least` is the size from which on tensors go, as Python's object of their bytes.
    """
    import onnx

    beside = path.with_name(path.name + ".data")
    onnx.save(
        *(onnx.load(path), path),
        save_as_external_data=True,
        location=beside.name,
        size_threshold=least,
    )
    return beside


def make_joytag(
    directory: Path,
    config: Mapping[str, Any] = SMALL_JOYTAG,
    *,
    forms: tuple[str, ...] = ("model.safetensors",),
) -> Path:
    """A JoyTag directory with the weights that the specification's golden numbers belong to.

    Args:
        directory: Where.
        config: What `config.json` holds.
        forms: Which files of weights: `model.safetensors`, `model.pt`, `model.onnx`.
    """
    torch = pytest.importorskip("torch")
    from annotary.models._joytag_vit import JoyTagConfig, JoyTagViT

    directory.mkdir(parents=True)
    network = JoyTagViT(JoyTagConfig.from_json(config)).eval()
    state = {}
    for i, (name, tensor) in enumerate(network.state_dict().items()):
        if not tensor.is_floating_point():
            state[name] = tensor
            continue
        count = tensor.numel()
        values = torch.sin(0.7 * torch.arange(count, dtype=torch.float64) + i) * 0.2
        if "norm" in name and name.endswith("weight"):
            values = values + 1.0
        if name.endswith("running_var"):
            values = values.abs() + 0.5
        state[name] = values.float().reshape(tensor.shape)
    network.load_weights(state)
    (directory / "top_tags.txt").write_text("\n".join(SMALL_TAGS[: config["n_tags"]]))
    if "model.safetensors" in forms:
        from safetensors.torch import save_file

        save_file(state, directory / "model.safetensors")
    if "model.pt" in forms:
        torch.save({"model": state}, directory / "model.pt")
    if "model.safetensors" in forms or "model.pt" in forms:
        (directory / "config.json").write_text(json.dumps(dict(config), indent="\t"))
    if "model.onnx" in forms:
        export_joytag(network, directory / "model.onnx", config["image_size"])
    return directory


def export_joytag(network: Any, path: Path, size: int) -> None:
    """Export as the published file is: input `input`, one output `output` of logits, any number of images."""
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Any) -> Any:
            return self.network(image)[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Logits().eval(),
            (torch.zeros(2, 3, size, size),),
            path,
            input_names=["input"],
            output_names=["output"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            external_data=False,
            verbose=False,
        )
