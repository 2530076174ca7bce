"""JoyTag's network against numbers of the reference, and against a second writing of its specification."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from annotary.errors import ModelError  # noqa: E402
from annotary.models._joytag_vit import (  # noqa: E402
    JoyTagConfig,
    JoyTagViT,
    load_network,
    load_state,
    parse_stem,
    sine_positions,
)

OFFICIAL = {
    "class": "ViT",
    "num_blocks": 12,
    "patch_size": 16,
    "d_model": 768,
    "mlp_dim": 3072,
    "num_heads": 12,
    "stochdepth_rate": 0.05,
    "use_sine": True,
    "cnn_stem": "conv:c=64;ln;relu;conv:c=128;ln;relu;conv:c=256;ln;relu;conv:c=512;ln;relu;conv:c=768,s=1,k=1,p=0",
    "image_size": 448,
    "n_tags": 5813,
    "loss_type": "focal2",
}
"""The config.json of fancyfeast/joytag."""

SMALL = {
    **OFFICIAL,
    "num_blocks": 2,
    "d_model": 32,
    "mlp_dim": 64,
    "num_heads": 4,
    "image_size": 64,
    "n_tags": 5,
    "cnn_stem": "conv:c=8;ln;relu;conv:c=8;ln;relu;conv:c=16;ln;relu;conv:c=16;ln;relu;conv:c=32,s=1,k=1,p=0",
}
"""The tiny network whose outputs the reference's own code was run for."""

TINY = {**SMALL, "num_blocks": 1, "d_model": 16, "mlp_dim": 24, "num_heads": 2, "image_size": 8}
TINY |= {"patch_size": 4, "n_tags": 3, "cnn_stem": None}

VARIANTS: dict[str, dict[str, Any]] = {
    "patches": {},
    "learned": {"use_sine": False},
    "mean after": {"head_mean_after": True},
    "learned, mean after": {"use_sine": False, "head_mean_after": True},
    "deep": {"num_blocks": 3, "layerscale_init": 0.5},
    "bn and gelu": {"cnn_stem": "conv:c=6;bn;gelu;conv:c=16;bn;relu"},
    "no bias": {"cnn_stem": "conv:c=6,bias=false;ln;gelu;conv:c=16,bias=0;relu"},
    "large kernels": {"cnn_stem": "conv:c=4,k=5,s=4,p=2;relu;conv:c=16,k=3,s=1"},
    "norm first": {"cnn_stem": "bn;conv:c=16,k=4,s=4,p=0"},
    "stem and learned": {"use_sine": False, "cnn_stem": "conv:c=8;ln;relu;conv:c=16"},
}


def network(**changes: Any) -> JoyTagViT:
    made = JoyTagViT(JoyTagConfig.from_json({**TINY, **changes})).eval()
    made.load_weights(filled(made))
    return made


def filled(made: JoyTagViT) -> dict[str, torch.Tensor]:
    """The numbers of the reference's golden test: waves, around 1 for the norms' weights."""
    state = {}
    for place, (name, tensor) in enumerate(made.state_dict().items()):
        if not tensor.is_floating_point():
            state[name] = tensor
            continue
        wave = torch.sin(0.7 * torch.arange(tensor.numel(), dtype=torch.float64) + place) * 0.2
        wave = wave.float().reshape(tensor.shape)
        is_norm = "norm" in name and name.endswith("weight")
        state[name] = wave.abs() + 0.5 if "running_var" in name else wave + is_norm
    return state


def images(count: int, size: int = 8, width: int | None = None) -> torch.Tensor:
    return torch.rand(count, 3, size, width or size, generator=torch.manual_seed(0)) * 4 - 2


# Against the reference's numbers


def test_the_official_network_has_the_official_tensors():
    with torch.device("meta"):
        official = JoyTagViT(JoyTagConfig.from_json(OFFICIAL))
    shapes = {name: tuple(tensor.shape) for name, tensor in official.state_dict().items()}
    assert len(shapes) == 190
    assert sum(math.prod(shape) for shape in shapes.values()) == 91_491_509
    assert shapes["patch_embeddings.conv.0.weight"] == (64, 3, 3, 3)
    assert shapes["patch_embeddings.conv.10.norm.weight"] == (512,)
    assert shapes["patch_embeddings.conv.12.weight"] == (768, 512, 1, 1)
    assert shapes["blocks.11.qkv_proj.weight"] == (2304, 768)
    assert shapes["blocks.0.skip_init2.skip"] == (768,)
    assert shapes["blocks.0.mlp.linear2.weight"] == (768, 3072)
    assert shapes["head.weight"] == (5813, 768)
    assert not [name for name in shapes if "pos_embedding" in name]


def test_positions_have_the_golden_values():
    table = sine_positions(28, 28, 768)
    assert table.shape == (784, 768)
    golden = {(0, 0): 0.0, (0, 192): 1.0, (1, 0): 0.84147, (1, 191): 1e-4}
    for (row, column), value in (golden | {(1, 384): 0.0, (28, 384): 0.84147}).items():
        assert table[row, column].item() == pytest.approx(value, abs=1e-5)


def test_the_official_stem_has_the_golden_shapes():
    with torch.device("meta"):
        stem = JoyTagViT(JoyTagConfig.from_json(OFFICIAL)).patch_embeddings.conv
        image, shapes = torch.empty(1, 3, 448, 448), []
        for layer in stem:
            image = layer(image)
            if isinstance(layer, torch.nn.Conv2d):
                shapes.append(tuple(image.shape[1:]))
    assert shapes == [(64, 224, 224), (128, 112, 112), (256, 56, 56), (512, 28, 28), (768, 28, 28)]


def test_the_small_network_gives_the_golden_numbers():
    small = network(**SMALL)
    with torch.inference_mode():
        logits, embedding = small(torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64))
    assert logits[0].tolist() == pytest.approx(
        [0.7092, -0.9252, 0.6282, -0.1373, 0.1224], abs=5.1e-5
    )
    assert embedding.shape == (1, 32)
    golden = [-1.1947, -0.6700, -0.0034, -0.3572]
    assert embedding[0, :4].tolist() == pytest.approx(golden, abs=5.1e-5)


# Against the specification, written a second time: one image, one token, one head at a time


def by_the_specification(
    config: dict[str, Any], state: dict[str, torch.Tensor], image: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    width, patch, heads = config["d_model"], config["patch_size"], config["num_heads"]
    grid = _stem_by_the_specification(config, state, image)
    rows, columns = grid.shape[1:]
    tokens = []
    for y in range(rows):
        for x in range(columns):
            token = grid[:, y, x].double()
            if config["use_sine"]:
                quarter = width // 4
                waves = [10000.0 ** (-j / (quarter - 1)) for j in range(quarter)]
                place = [math.sin(x * w) for w in waves] + [math.cos(x * w) for w in waves]
                place += [math.sin(y * w) for w in waves] + [math.cos(y * w) for w in waves]
                token = token + torch.tensor(place, dtype=torch.float64)
            else:
                token = token + state["pos_embedding.embedding.weight"][y * columns + x]
            tokens.append(token)
    assert len(tokens) == image.shape[1] // patch * (image.shape[2] // patch)
    x = torch.stack(tokens)
    for i in range(config["num_blocks"]):
        w = {
            name.removeprefix(f"blocks.{i}."): tensor.double()
            for name, tensor in state.items()
            if name.startswith(f"blocks.{i}.")
        }
        h = _norm(x, w["norm1.weight"], w["norm1.bias"])
        q, k, v = (h @ w["qkv_proj.weight"].T + w["qkv_proj.bias"]).chunk(3, dim=1)
        size = width // heads
        seen = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            weights = torch.exp(q[:, part] @ k[:, part].T / math.sqrt(size))
            seen.append(weights / weights.sum(1, keepdim=True) @ v[:, part])
        h = torch.cat(seen, dim=1) @ w["out_proj.weight"].T + w["out_proj.bias"]
        x = x + h * w["skip_init1.skip"]
        h = _norm(x, w["norm2.weight"], w["norm2.bias"])
        h = h @ w["mlp.linear1.weight"].T + w["mlp.linear1.bias"]
        h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
        x = x + (h @ w["mlp.linear2.weight"].T + w["mlp.linear2.bias"]) * w["skip_init2.skip"]
    x = _norm(x, state["norm.weight"], state["norm.bias"])
    head, bias = state["head.weight"].double(), state["head.bias"].double()
    if config.get("head_mean_after"):
        return (x @ head.T + bias).mean(0), None
    return x.mean(0) @ head.T + bias, x.mean(0)


def _stem_by_the_specification(
    config: dict[str, Any], state: dict[str, torch.Tensor], image: torch.Tensor
) -> torch.Tensor:
    convolve = torch.nn.functional.conv2d
    x = image.double()
    if config["cnn_stem"] is None:
        weight = state["patch_embeddings.weight"].double()
        bias = state["patch_embeddings.bias"].double()
        return convolve(x[None], weight, bias, stride=config["patch_size"])[0]
    for i, segment in enumerate(config["cnn_stem"].split(";")):
        w = {
            name.removeprefix(f"patch_embeddings.conv.{i}."): tensor.double()
            for name, tensor in state.items()
            if name.startswith(f"patch_embeddings.conv.{i}.")
        }
        kind, _, rest = segment.partition(":")
        if kind == "conv":
            given = dict(part.split("=") for part in rest.split(","))
            stride, padding = int(given.get("s", 2)), int(given.get("p", 1))
            assert w["weight"].shape[2] == int(given.get("k", 3))
            x = convolve(x[None], w["weight"], w.get("bias"), stride, padding)[0]
        elif kind == "ln":
            x = _norm(x.permute(1, 2, 0), w["norm.weight"], w["norm.bias"]).permute(2, 0, 1)
        elif kind == "bn":
            scale = w["weight"] / torch.sqrt(w["running_var"] + 1e-5)
            x = (x - w["running_mean"][:, None, None]) * scale[:, None, None]
            x = x + w["bias"][:, None, None]
        elif kind == "relu":
            x = x.clamp(min=0)
        else:
            x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return x


def _norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * weight + bias


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_is_what_the_specification_says(changes):
    made = network(**changes)
    batch = images(2)
    with torch.inference_mode():
        logits, embedding = made(batch)
    for i, image in enumerate(batch):
        expected = by_the_specification({**TINY, **changes}, made.state_dict(), image)
        assert (logits[i] - expected[0]).abs().max() < 1e-5
        if expected[1] is None:
            assert embedding is None
        else:
            assert (embedding[i] - expected[1]).abs().max() < 1e-5


@pytest.mark.parametrize(("height", "width"), [(4, 4), (12, 8), (8, 20)])
def test_sine_positions_work_at_other_sizes(height, width):
    made = network()
    image = images(1, height, width)
    with torch.inference_mode():
        logits, _ = made(image)
    expected, _ = by_the_specification(TINY, made.state_dict(), image[0])
    assert (logits[0] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_an_image_has_the_same_scores_alone_and_among_others(changes):
    made = network(**changes)
    batch = images(5)
    with torch.inference_mode():
        together = made(batch)[0]
        alone = torch.cat([made(image[None])[0] for image in batch])
    assert (together - alone).abs().max() < 1e-5


@pytest.mark.parametrize(("blocks", "scale"), [(18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6)])
def test_layer_scale_starts_by_depth(blocks, scale):
    config = JoyTagConfig.from_json({**TINY, "num_blocks": blocks})
    assert config.layer_scale == scale
    assert JoyTagViT(config).blocks[0].skip_init1.skip.unique().tolist() == pytest.approx([scale])


# What is refused


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"class": "CLIPLikeModel"}, "class 'CLIPLikeModel' is not supported; supported: ViT"),
        ({"ml_decoder_head": True}, "ml_decoder_head is not supported"),
        ({"depth": 3, "heads": 2}, "unknown keys: depth, heads"),
        ({"patch_dropout": 0.5}, "patch_dropout must be 0 for use, but got 0.5"),
        ({"image_size": 10}, "image_size 10 is not a multiple of patch_size 4"),
        ({"num_heads": 3}, "d_model 16 is not a multiple of 3 heads"),
        ({"d_model": 18}, "sine positions need a d_model of 8, 12, 16, ..., but got 18"),
        ({"d_model": 4}, "sine positions need a d_model of 8, 12, 16, ..., but got 4"),
        ({"n_tags": 0}, "n_tags must be a whole number of at least 1, but got 0"),
        ({"num_blocks": True}, "num_blocks must be a whole number"),
        ({"num_blocks": "12"}, "num_blocks must be a whole number"),
        ({"use_sine": "yes"}, "use_sine must be true or false, but got 'yes'"),
        ({"layerscale_init": "x"}, "layerscale_init must be a number, but got 'x'"),
        ({"cnn_stem": "conv:c=16"}, "cnn_stem has stride 2, but patch_size is 4"),
        ({"cnn_stem": "conv:c=8;conv:c=8"}, "ends with 8 channels, but d_model is 16"),
        (
            {"cnn_stem": "conv:c=8;conv:c=8;conv:c=16,s=1,k=1"},
            "makes 4 tokens a side of 8 pixels, but patch_size 4 means 2; a convolution with k=1 needs p=0",
        ),
        ({"cnn_stem": "conv:c=8;gn;conv:c=16"}, "cnn_stem has 'gn'; known: conv:c=CHANNELS"),
        ({"cnn_stem": "conv:c=8;ln:e=1;conv:c=16"}, "cnn_stem has 'ln:e=1'"),
        ({"cnn_stem": "conv:c=8,d=2;conv:c=16"}, "cnn_stem has 'd=2' in 'conv:c=8,d=2'"),
        ({"cnn_stem": "conv:k=3;conv:c=16"}, "c, k and s must be at least 1"),
        ({"cnn_stem": "conv:c=8,s=0;conv:c=16"}, "c, k and s must be at least 1"),
        ({"cnn_stem": "conv:c=-8;conv:c=16"}, "cnn_stem has 'c=-8'"),
        ({"cnn_stem": "conv:c=8,k=true;conv:c=16"}, "cnn_stem has 'k=true'"),
        ({"cnn_stem": ""}, "cnn_stem has ''"),
        ({"cnn_stem": 5}, "cnn_stem must be text, but got 5"),
    ],
)
def test_an_impossible_configuration_is_refused_by_name(changes, told):
    with pytest.raises(ModelError) as raised:
        JoyTagConfig.from_json({**TINY, **changes})
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_keys_are_named():
    with pytest.raises(ModelError, match=r"missing keys: d_model, n_tags"):
        JoyTagConfig.from_json({k: v for k, v in TINY.items() if k not in ("n_tags", "d_model")})


def test_what_training_added_is_ignored():
    table = {**TINY, "use_amp": True, "ml_decoder_head": False}
    assert JoyTagConfig.from_json(table) == JoyTagConfig.from_json(TINY)


def test_the_configuration_is_read_from_a_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(OFFICIAL, indent="\t"))
    assert JoyTagConfig.from_json(path) == JoyTagConfig.from_json(OFFICIAL)
    for broken in ("[1]", "{", ""):
        path.write_text(broken)
        with pytest.raises(ModelError, match=r"config\.json: "):
            JoyTagConfig.from_json(path)
    with pytest.raises(ModelError, match=r"config\.json"):
        JoyTagConfig.from_json(tmp_path / "nowhere" / "config.json")


def test_the_grid_error_of_the_known_training_configuration():
    stem = OFFICIAL["cnn_stem"].removesuffix(",p=0")
    with pytest.raises(ModelError, match="makes 30 tokens a side of 448 pixels"):
        JoyTagConfig.from_json({**OFFICIAL, "cnn_stem": stem})


@pytest.mark.parametrize(("height", "width"), [(8, 9), (10, 8), (2, 4), (0, 0)])
def test_sizes_that_are_no_multiples_of_the_patch_are_refused(height, width):
    with pytest.raises(ModelError, match=f"multiples of 4 pixels, but got {height}x{width}"):
        network()(torch.zeros(1, 3, height, width))


def test_learned_positions_work_at_their_size_alone():
    with pytest.raises(ModelError, match="learned positions for 8x8 pixels, but got 12x8"):
        network(use_sine=False)(torch.zeros(1, 3, 12, 8))


def test_a_stem_is_read_with_the_defaults_of_the_reference():
    first, norm, last = parse_stem("conv:c=64; ln ;conv:c=768,s=1,k=1,p=0,bias=False")
    assert (first.kind, first.channels, first.kernel, first.stride, first.padding) == (
        *("conv", 64, 3, 2, 1),
    )
    assert first.bias
    assert (norm.kind, norm.channels) == ("ln", 64)
    assert (last.channels, last.kernel, last.stride, last.padding, last.bias) == (
        *(768, 1, 1, 0, False),
    )


# Checkpoints


def directory_of(folder: Path, state: Any, config: dict[str, Any], form: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(state, folder / "model.safetensors")
    else:
        key = form.partition(" ")[2]
        torch.save({key: state} if key else state, folder / "model.pt")
    return folder


@pytest.mark.parametrize("form", ["safetensors", "pt", "pt model", "pt model_state_dict"])
@pytest.mark.parametrize("changes", [VARIANTS["bn and gelu"], VARIANTS["learned"]])
def test_every_dialect_of_checkpoint_loads(tmp_path, form, changes):
    expected = network(**changes)
    state = expected.state_dict()
    if "use_sine" in changes:
        state["pos_embedding.position_ids"] = torch.arange(4)
    folder = directory_of(tmp_path, dict(state), {**TINY, **changes}, form)
    loaded = load_network(folder)
    assert not loaded.training
    with torch.inference_mode():
        assert torch.equal(loaded(images(2))[0], expected(images(2))[0])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_that_wrappers_of_torch_put_before_all_others(tmp_path, prefix):
    expected = network()
    state = {prefix + name: tensor for name, tensor in expected.state_dict().items()}
    loaded = load_network(directory_of(tmp_path, state, TINY, "pt model"))
    assert torch.equal(loaded(images(1))[0], expected(images(1))[0])
    state["other"] = torch.zeros(1)
    with pytest.raises(ModelError, match="are missing"):
        load_network(directory_of(tmp_path, state, TINY, "pt model"))


def test_safetensors_are_preferred(tmp_path):
    state = filled(network())
    directory_of(tmp_path, {name: tensor + 1 for name, tensor in state.items()}, TINY, "pt")
    directory_of(tmp_path, state, TINY, "safetensors")
    assert torch.equal(load_state(tmp_path)["head.bias"], state["head.bias"])


def test_half_precision_checkpoints_are_widened(tmp_path):
    state = {name: tensor.half() for name, tensor in filled(network()).items()}
    loaded = load_network(directory_of(tmp_path, state, TINY, "safetensors"))
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}


def test_heads_of_early_models_are_cut_to_the_tags(tmp_path):
    expected = network()
    state = dict(expected.state_dict())
    state["head.weight"] = torch.cat([state["head.weight"], torch.full((9, 16), 7.0)])
    state["head.bias"] = torch.cat([state["head.bias"], torch.full((9,), 7.0)])
    loaded = load_network(directory_of(tmp_path, state, TINY, "pt"))
    assert torch.equal(loaded(images(1))[0], expected(images(1))[0])


def test_weights_that_do_not_fit_are_named():
    made = network()
    state = dict(made.state_dict())
    del state["blocks.0.norm1.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["head.weight"] = torch.zeros(4, 16)
    with pytest.raises(ModelError) as raised:
        made.load_weights(state)
    assert str(raised.value) == (
        "the weights do not fit this JoyTag: blocks.0.norm1.bias are missing; extra.weight are unknown;"
        " head.weight [4, 16] instead of [3, 16] have another shape than config.json says"
    )


@pytest.mark.parametrize("kind", [torch.int32, torch.bool, torch.complex64])
def test_weights_that_are_no_floats_are_named(kind):
    made = network()
    state = dict(made.state_dict())
    state["norm.bias"] = state["norm.bias"].to(kind)
    with pytest.raises(ModelError) as raised:
        made.load_weights(state)
    assert str(raised.value).endswith("norm.bias are no floating-point numbers")


def test_many_names_are_told_shortly():
    with pytest.raises(ModelError, match=r"and \d+ more are missing") as raised:
        network().load_weights({})
    assert len(str(raised.value)) < 400


def test_a_file_of_other_objects_is_refused_without_running_it(tmp_path):
    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    for payload in (Touch(), {"model": Touch()}):
        torch.save(payload, tmp_path / "model.pt")
        with pytest.raises(ModelError, match="so it is not loaded") as raised:
            load_state(tmp_path)
        assert "\n" not in str(raised.value)
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Touch()))
    with pytest.raises(ModelError):
        load_state(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("held", [{}, {"model": {"a": 1}}, [torch.zeros(1)], torch.zeros(2), 5])
def test_a_file_without_weights_is_refused(tmp_path, held):
    torch.save(held, tmp_path / "model.pt")
    with pytest.raises(ModelError, match="holds no weights"):
        load_state(tmp_path)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 100, b"PK\x03\x04 and nothing else", b"e", b"junk", b"\x80\x02q"]
)
def test_damaged_files_are_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError) as raised:
        load_state(tmp_path)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)
    if name == "model.pt":
        assert "or is damaged" in str(raised.value)


def test_a_directory_without_weights_says_what_it_looked_for(tmp_path):
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor model\.pt"):
        load_state(tmp_path)
