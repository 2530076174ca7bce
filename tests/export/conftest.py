"""Small taggers that can be exported, and photos to calibrate them with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TAGS = 12
SIZE = 32


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 pictures with edges, areas and grain, one file that is none, and a text."""
    folder = tmp_path_factory.mktemp("calibration")
    generator = np.random.default_rng(0)
    for number in range(24):
        small = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((64, 48), Image.Resampling.BICUBIC)
        grain = generator.normal(0, 12, (48, 64, 3))
        pixels = np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG and nothing else")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="session")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tagger that is a small convolutional network with a pooling and a linear head, in fp32."""
    onnx = pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("models") / "convolutional"
    folder.mkdir()
    generator = np.random.default_rng(1)
    weights = {
        "first": generator.normal(0, 0.3, (8, 3, 3, 3)),
        "first_bias": generator.normal(0, 0.1, 8),
        "each": generator.normal(0, 0.4, (8, 1, 3, 3)),
        "each_bias": generator.normal(0, 0.1, 8),
        "second": generator.normal(0, 0.4, (16, 8, 1, 1)),
        "second_bias": generator.normal(0, 0.1, 16),
        "head": generator.normal(0, 0.8, (16, TAGS)),
        "head_bias": generator.normal(-0.5, 0.5, TAGS),
    }
    make = onnx.helper.make_node
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        make("Conv", ["image", "first", "first_bias"], ["a"], strides=[2, 2], **conv),
        make("Clip", ["a", "zero", "six"], ["b"]),
        make("Conv", ["b", "each", "each_bias"], ["c"], group=8, **conv),
        make("Clip", ["c", "zero", "six"], ["d"]),
        make("Conv", ["d", "second", "second_bias"], ["e"], kernel_shape=[1, 1]),
        make("Relu", ["e"], ["f"]),
        make("GlobalAveragePool", ["f"], ["g"]),
        make("Flatten", ["g"], ["pooled"]),
        make("Gemm", ["pooled", "head", "head_bias"], ["logits"]),
    ]
    value = onnx.helper.make_tensor_value_info
    stored = [
        onnx.numpy_helper.from_array(array.astype(np.float32), name)
        for name, array in {**weights, "zero": np.array(0.0), "six": np.array(6.0)}.items()
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "convolutional",
        [value("image", onnx.TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [value("logits", onnx.TensorProto.FLOAT, ["n", TAGS])],
        stored,
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "model.onnx"
    )
    names = (f"tag {i},{'odd' if i % 2 else 'even'},0.{3 + i % 4}" for i in range(TAGS))
    (folder / "tags.csv").write_text("name,category,balanced\n" + "\n".join(names) + "\n")
    (folder / "card.toml").write_text(
        'name = "convolutional"\nversion = "2.0"\nfamily = "onnx_tagger"\nlicence = "Apache-2.0"\n'
        'description = "Twelve tags."\nactivation = "sigmoid"\n'
        f"[preprocess]\nsize = [{SIZE}, {SIZE}]\nmean = [120.0, 110.0, 100.0]\nstd = [60.0, 60.0, 60.0]\n"
    )
    return folder


@pytest.fixture(scope="session")
def joytag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny JoyTag for torch."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from annotary.models._joytag_vit import JoyTagConfig, JoyTagViT

    folder = tmp_path_factory.mktemp("models") / "joytag"
    folder.mkdir()
    config = {
        "class": "ViT",
        "num_blocks": 2,
        "patch_size": 8,
        "d_model": 32,
        "mlp_dim": 64,
        "num_heads": 2,
        "image_size": SIZE,
        "n_tags": TAGS,
        "loss_type": "focal2",
        "use_sine": True,
        "stochdepth_rate": 0.0,
        "cnn_stem": "conv:c=8;ln;relu;conv:c=16;ln;gelu;conv:c=32",
    }
    torch.manual_seed(0)
    network = JoyTagViT(JoyTagConfig.from_json(config))
    torch.nn.init.normal_(network.head.weight, std=0.5)
    save_file(dict(network.state_dict()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "top_tags.txt").write_text("\n".join(f"tag_{i}" for i in range(TAGS)))
    return folder
