"""JoyTag's vision transformer in torch, with every option of the reference's class `ViT`, for inference.

Original code and weights: fpgaminer/joytag on GitHub and fancyfeast/joytag on Hugging Face (Apache-2.0). Papers:
Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021); Xiao et al., "Early Convolutions Help Transformers See
Better" (2021), the stem; Touvron et al., "Going Deeper with Image Transformers" (CaiT, 2021), the scaled residuals.

What differs here: nothing that only training needs is here (stochastic depth, losses). A stem that does not make one
token of every patch, and a kind of layer that does not exist, are errors; the reference goes on without.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from annotary.errors import ModelError

CONFIG_FILE = "config.json"
WEIGHT_FILES = ("model.safetensors", "model.pt")
"""Where the weights are, in the order in which they are looked for."""

LEGACY_OUTPUTS = 9
"""Heads of early models have three ratings and six scores after the tags."""

_NORM_EPSILON = 1e-5
_SINE_BASE = 10000.0
_PLACES = "pos_embedding.position_ids"
_NAMED_AT_MOST = 5
_WRAPPERS = ("module.", "_orig_mod.")


@dataclass(frozen=True, slots=True)
class JoyTagConfig:
    """The architecture, with the names of `config.json`."""

    n_tags: int
    """Outputs, one a tag."""

    image_size: int
    """Side in pixels of the square input that the weights were trained with; a multiple of `patch_size`."""

    num_blocks: int
    """Transformer blocks."""

    patch_size: int
    """Side in pixels of what becomes one token."""

    d_model: int
    """Width of a token."""

    mlp_dim: int
    """Width inside the blocks' two-layer networks."""

    num_heads: int
    """Attention heads; divides `d_model`."""

    use_sine: bool = True
    """Fixed sine and cosine positions, which work at every size; else a learned table for `image_size` alone."""

    cnn_stem: str | None = None
    """Layers between the image and the tokens, such as `conv:c=64;ln;relu`; None takes one convolution a patch."""

    head_mean_after: bool = False
    """Average the tags' logits of all tokens instead of the tokens. Such a network has no embedding."""

    layerscale_init: float | None = None
    """What the residual scales start from in training; by depth (CaiT) when None."""

    patch_dropout: float = 0.0
    """Must be 0: the reference drops tokens at inference too."""

    stochdepth_rate: float = 0.0
    """Of training; without effect here."""

    loss_type: str = ""
    """Of training; without effect here."""

    def __post_init__(self) -> None:
        sizes = ("n_tags", "image_size", "num_blocks", "patch_size", "d_model", "mlp_dim")
        for name in (*sizes, "num_heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, but got {value!r}")
        for name in ("use_sine", "head_mean_after"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, but got {getattr(self, name)!r}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of {self.num_heads} heads")
        if self.use_sine and (self.d_model % 4 or self.d_model < 8):
            raise ValueError(
                f"sine positions need a d_model of 8, 12, 16, ..., but got {self.d_model}"
            )
        if not isinstance(self.layerscale_init, float | int | None):
            raise ValueError(f"layerscale_init must be a number, but got {self.layerscale_init!r}")
        if self.patch_dropout:
            raise ValueError(
                f"patch_dropout must be 0 for use, but got {self.patch_dropout}: it drops parts of every image"
            )
        if not isinstance(self.cnn_stem, str | None):
            raise ValueError(f"cnn_stem must be text, but got {self.cnn_stem!r}")
        if self.cnn_stem is not None:
            check_stem(parse_stem(self.cnn_stem), self)

    @classmethod
    def from_json(cls, source: Path | Mapping[str, Any]) -> Self:
        """The architecture that a `config.json`, or what it holds, tells.

        Raises:
            ModelError: It cannot be read, is of another class, or holds what is unknown or impossible; the message
                names the file and the key.
        """
        where = str(source) if isinstance(source, Path) else CONFIG_FILE
        try:
            table = _read_json(source) if isinstance(source, Path) else dict(source)
            kind = table.pop("class", "ViT")
            if kind != "ViT":
                raise ValueError(f"class {kind!r} is not supported; supported: ViT")
            table.pop("use_amp", None)  # of training: which numbers it computed with
            if table.pop("ml_decoder_head", False):
                raise ValueError("ml_decoder_head is not supported; supported: the linear head")
            known = {entry.name for entry in fields(cls)}
            if unknown := sorted(set(table) - known):
                raise ValueError(f"unknown keys: {', '.join(unknown)}")
            needed = {entry.name for entry in fields(cls) if entry.default is MISSING}
            if missing := sorted(needed - set(table)):
                raise ValueError(f"missing keys: {', '.join(missing)}")
            return cls(**table)
        except (OSError, TypeError, ValueError) as error:
            raise ModelError(f"{where}: {error}") from error

    @property
    def layer_scale(self) -> float:
        """What residual scales start from: CaiT's rule, by depth."""
        if self.layerscale_init is not None:
            return self.layerscale_init
        return 0.1 if self.num_blocks <= 18 else 1e-5 if self.num_blocks <= 24 else 1e-6


@dataclass(frozen=True, slots=True)
class StemLayer:
    """One layer of a stem.

    Attributes:
        kind: `conv`, `ln`, `bn`, `relu` or `gelu`.
        channels: Of its output.
        kernel: Side of a convolution's kernel, in pixels; of no meaning for other kinds, like the following.
        stride: Step in pixels.
        padding: Rows and columns of zeros on each side.
        bias: Whether there is a bias.
    """

    kind: str
    channels: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    bias: bool = True


def parse_stem(text: str) -> tuple[StemLayer, ...]:
    """The layers of a stem: `type` or `type:key=value,key=value`, with `;` between them.

    A convolution has `c` (channels, always given), `k` (kernel, 3), `s` (stride, 2), `p` (padding, 1) and `bias`.

    Raises:
        ValueError: The text is no stem; the message names the part.
    """
    layers: list[StemLayer] = []
    channels = 3
    for segment in text.split(";"):
        kind, _, settings = segment.strip().partition(":")
        if kind == "conv":
            given = _stem_settings(segment, settings)
            channels = given["c"]
            layer = StemLayer(
                kind, channels, given["k"], given["s"], given["p"], bool(given["bias"])
            )
        elif kind in ("ln", "bn", "relu", "gelu") and not settings:
            layer = StemLayer(kind, channels)
        else:
            raise ValueError(
                f"cnn_stem has {segment!r}; known: conv:c=CHANNELS,k=3,s=2,p=1, ln, bn, relu, gelu"
            )
        layers.append(layer)
    return tuple(layers)


def _stem_settings(segment: str, text: str) -> dict[str, int]:
    values = {"k": 3, "s": 2, "p": 1, "bias": 1}
    words = {"true": 1, "false": 0}
    for part in text.split(","):
        key, _, value = (side.strip() for side in part.partition("="))
        is_number = value.isascii() and value.isdigit()
        is_word = key == "bias" and value.lower() in words
        if key not in ("c", *values) or not (is_number or is_word):
            raise ValueError(f"cnn_stem has {part!r} in {segment!r}; known: c, k, s, p, bias")
        values[key] = int(value) if is_number else words[value.lower()]
    if min(values.get("c", 0), values["k"], values["s"]) < 1:
        raise ValueError(f"cnn_stem has {segment!r}: c, k and s must be at least 1")
    return values


def check_stem(layers: tuple[StemLayer, ...], config: JoyTagConfig) -> None:
    """Check that a stem makes one token of every patch, at the trained size and at all others.

    Raises:
        ValueError: It does not; the message says what it makes.
    """
    if layers[-1].channels != config.d_model:
        raise ValueError(
            f"cnn_stem ends with {layers[-1].channels} channels, but d_model is {config.d_model}"
        )
    stride = 1
    for layer in layers:
        stride *= layer.stride
    if stride != config.patch_size:
        raise ValueError(f"cnn_stem has stride {stride}, but patch_size is {config.patch_size}")
    for size in (config.image_size, *(config.patch_size * i for i in range(1, 9))):
        side, expected = size, size // config.patch_size
        for layer in layers:
            side = (side + 2 * layer.padding - layer.kernel) // layer.stride + 1
        if side != expected:
            raise ValueError(
                f"cnn_stem makes {side} tokens a side of {size} pixels, but patch_size {config.patch_size} means"
                f" {expected}; a convolution with k=1 needs p=0"
            )


class JoyTagBody(nn.Module):
    """The network's parts, and the way from images to their embedding. Its tensors have the names of checkpoints.

    Args:
        config: The architecture.
    """

    def __init__(self, config: JoyTagConfig) -> None:
        super().__init__()
        self.config = config
        width = config.d_model
        self.patch_embeddings: nn.Module
        if config.cnn_stem is None:
            self.patch_embeddings = nn.Conv2d(3, width, config.patch_size, config.patch_size)
        else:
            self.patch_embeddings = ConvolutionalStem(parse_stem(config.cnn_stem))
        if not config.use_sine:
            patches = (config.image_size // config.patch_size) ** 2
            self.pos_embedding = LearnedPositions(patches, width)
        self.blocks = nn.ModuleList(self._block() for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(width, eps=_NORM_EPSILON)
        self.head = nn.Linear(width, config.n_tags)

    def _block(self) -> nn.Module:
        """One block, from tokens [b, n, d] to tokens [b, n, d]."""
        return Block(self.config)

    def placed_tokens(self, image: Tensor) -> Tensor:
        """Tokens [b, n, d] of images [b, 3, h, w] with their places added, row by row.

        Raises:
            ModelError: The height or the width is not a multiple of the patch, or does not fit learned positions.
        """
        rows, columns = self.check_size(image.shape[2], image.shape[3])
        tokens = cast(Tensor, self.patch_embeddings(image)).flatten(2).transpose(1, 2)
        if self.config.use_sine:
            return tokens + sine_positions(rows, columns, self.config.d_model).to(tokens)
        return cast(Tensor, self.pos_embedding(tokens))

    def embed(self, image: Tensor) -> Tensor:
        """The embedding [b, d] of images [b, 3, h, w]: the mean of the normalised tokens, which the head reads.

        Raises:
            ModelError: As `placed_tokens`.
        """
        tokens = self.placed_tokens(image)
        for block in self.blocks:
            tokens = block(tokens)
        return cast(Tensor, self.norm(tokens).mean(dim=1))

    def check_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens for an image of this size in pixels.

        Raises:
            ModelError: The network cannot take images of this size.
        """
        patch, trained = self.config.patch_size, self.config.image_size
        if min(height, width) < patch or height % patch or width % patch:
            raise ModelError(
                f"JoyTag takes images whose sides are multiples of {patch} pixels, but got {height}x{width}"
            )
        if not self.config.use_sine and (height, width) != (trained, trained):
            raise ModelError(
                f"this JoyTag has learned positions for {trained}x{trained} pixels, but got {height}x{width}"
            )
        return height // patch, width // patch

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of a checkpoint, in float32.

        Args:
            state: Name to tensor. A head of an early model, with nine more outputs, is cut to the tags.

        Raises:
            ModelError: Tensors are missing, unknown or of another shape; the message names them.
        """
        # Checkpoints with learned positions also carry the places, which are 0, 1, 2, ...
        state = {name: tensor for name, tensor in state.items() if name != _PLACES}
        tags = self.config.n_tags
        head = state.get("head.weight")
        if head is not None and head.ndim == 2 and len(head) == tags + LEGACY_OUTPUTS:
            state |= {
                name: state[name][:tags] for name in ("head.weight", "head.bias") if name in state
            }
        own = self.state_dict()
        wrong = {
            "are missing": own.keys() - state.keys(),
            "are unknown": state.keys() - own.keys(),
            "have another shape than config.json says": {
                f"{name} {list(state[name].shape)} instead of {list(own[name].shape)}"
                for name in own.keys() & state.keys()
                if state[name].shape != own[name].shape
            },
            "are no floating-point numbers": {
                name
                for name in own.keys() & state.keys()
                if own[name].is_floating_point() and not state[name].is_floating_point()
            },
        }
        told = [f"{_listed(names)} {what}" for what, names in wrong.items() if names]
        if told:
            raise ModelError(f"the weights do not fit this JoyTag: {'; '.join(told)}")
        exact = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in state.items()
        }
        self.load_state_dict(exact, assign=True)
        self.requires_grad_(requires_grad=False)


class JoyTagViT(JoyTagBody):
    """The network for use."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits [b, t] and the embedding [b, d] of images [b, 3, h, w], RGB, normalised as JoyTag's are.

        The embedding is None with `head_mean_after`.

        Raises:
            ModelError: As `placed_tokens`.
        """
        embedding = self.embed(image)
        # The mean of what a linear head makes of the tokens is what it makes of their mean, so `head_mean_after` needs
        # no other arithmetic; only the reference gives no embedding then.
        logits = self.head(embedding)
        return logits, None if self.config.head_mean_after else embedding


class ConvolutionalStem(nn.Module):
    """Convolutions, norms and activations between the image and the tokens."""

    def __init__(self, layers: tuple[StemLayer, ...]) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        channels = 3
        for layer in layers:
            modules.append(_stem_module(layer, channels))
            channels = layer.channels
        self.conv = nn.Sequential(*modules)

    def forward(self, image: Tensor) -> Tensor:
        """Tokens [b, d, h / patch, w / patch] of images [b, 3, h, w]."""
        return cast(Tensor, self.conv(image))


def _stem_module(layer: StemLayer, inputs: int) -> nn.Module:
    if layer.kind == "conv":
        return nn.Conv2d(
            inputs, layer.channels, layer.kernel, layer.stride, layer.padding, bias=layer.bias
        )
    if layer.kind == "ln":
        return ChannelNorm(layer.channels)
    if layer.kind == "bn":
        return nn.BatchNorm2d(layer.channels)
    return nn.ReLU() if layer.kind == "relu" else nn.GELU()


def _is_exporting() -> bool:
    """Whether the network is written to a file; torch tells since 2.7."""
    return bool(getattr(torch.compiler, "is_exporting", bool)())


class ChannelNorm(nn.Module):
    """Layer normalisation of every pixel over its channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=_NORM_EPSILON)

    def forward(self, image: Tensor) -> Tensor:
        """The same shape [b, c, h, w]; no copy is made of images that lie channels last."""
        if _is_exporting():
            # In a file the axes that are swapped and swapped back are copies: they cost OpenVINO 2 to 4 % of the run.
            centred = image - image.mean(1, keepdim=True)
            variance = (centred * centred).mean(1, keepdim=True)
            weight, bias = self.norm.weight[:, None, None], self.norm.bias[:, None, None]
            return centred * torch.rsqrt(variance + self.norm.eps) * weight + bias
        return cast(Tensor, self.norm(image.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class LearnedPositions(nn.Module):
    """One learned vector for every place."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(places, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [b, n, d] with their places added."""
        return tokens + self.embedding.weight


def sine_positions(rows: int, columns: int, width: int) -> Tensor:
    """Fixed positions float32[rows * columns, width] of a grid, row by row: sin x, cos x, sin y, cos y.

    The waves have lengths in a row from 1 to 10,000, both ends included (the reference divides by one less than their
    number).
    """
    count = width // 4
    waves = _SINE_BASE ** -(torch.arange(count, dtype=torch.float32) / (count - 1))
    x = torch.arange(columns, dtype=torch.float32)[:, None] * waves
    y = torch.arange(rows, dtype=torch.float32)[:, None] * waves
    across = torch.cat([x.sin(), x.cos()], dim=1).expand(rows, columns, 2 * count)
    down = torch.cat([y.sin(), y.cos()], dim=1)[:, None].expand(rows, columns, 2 * count)
    return torch.cat([across, down], dim=2).flatten(0, 1)


class Block(nn.Module):
    """Attention, then a two-layer network; each is normalised before, scaled after and added."""

    def __init__(self, config: JoyTagConfig) -> None:
        super().__init__()
        width = config.d_model
        self.heads = config.num_heads
        self.norm1 = nn.LayerNorm(width, eps=_NORM_EPSILON)
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.skip_init1 = LayerScale(width, config.layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPSILON)
        self.mlp = FeedForward(width, config.mlp_dim)
        self.skip_init2 = LayerScale(width, config.layer_scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [b, n, d] to tokens [b, n, d]."""
        tokens = tokens + self.skip_init1(self._attention(self.norm1(tokens)))
        return cast(Tensor, tokens + self.skip_init2(self.mlp(self.norm2(tokens))))

    def _attention(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        parts = (
            part.reshape(batch, count, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv_proj(tokens).split(width, dim=2)
        )
        seen = self._attend(*parts)
        return cast(Tensor, self.out_proj(seen.transpose(1, 2).reshape(batch, count, width)))

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What each token sees, [b, heads, n, d / heads] as all three are."""
        return functional.scaled_dot_product_attention(queries, keys, values)


class LayerScale(nn.Module):
    """One learned factor a channel, which lets deep networks begin near the identity."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.skip = nn.Parameter(torch.full((width,), start))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [b, n, d], scaled."""
        return tokens * self.skip


class FeedForward(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, inside)
        self.linear2 = nn.Linear(inside, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [b, n, d] to tokens [b, n, d]."""
        return cast(Tensor, self.linear2(functional.gelu(self.linear1(tokens))))


def load_network(directory: Path) -> JoyTagViT:
    """The network of a model directory, with its weights, ready for use.

    Raises:
        ModelError: Files are missing, damaged or do not fit each other.
    """
    config = JoyTagConfig.from_json(directory / CONFIG_FILE)
    with torch.device("meta"):  # no memory and no time for numbers that the checkpoint replaces
        network = JoyTagViT(config)
    network.load_weights(load_state(directory))
    return network.eval()


def load_state(directory: Path) -> dict[str, Tensor]:
    """The tensors of a model directory: of `model.safetensors`, or else of `model.pt`.

    A `model.pt` may hold the tensors alone, or under `model` or `model_state_dict`. Nothing in it is executed. What
    torch's wrappers (`DataParallel`, `compile`) put before all names is taken off.

    Raises:
        ModelError: There is neither file, or it holds something else than tensors.
    """
    for name in WEIGHT_FILES:
        path = directory / name
        if path.is_file():
            state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pt(path)
            is_state = isinstance(state, Mapping) and all(
                isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
            )
            if not is_state or not state:
                raise ModelError(f"{path} holds no weights: it must hold names and tensors")
            return _unwrapped(state)
    raise ModelError(f"{directory} has no weights: neither {' nor '.join(WEIGHT_FILES)}")


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names that they have in the network itself."""
    names = list(state)
    while prefix := next((p for p in _WRAPPERS if all(name.startswith(p) for name in names)), None):
        names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, state.values(), strict=True))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {_first_line(error)}") from error


def _read_pt(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of old ways to write such files, which load all the same
            held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than tensors, or is damaged; such a file could run any program, so it is not loaded."
            " Save its state dict alone"
        ) from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {_first_line(error)}") from error
    except Exception as error:  # what is no checkpoint, torch meets with any error
        raise ModelError(
            f"{path} is no checkpoint of torch, or is damaged: {_first_line(error)}"
        ) from error
    for dialect in ("model", "model_state_dict"):
        if isinstance(held, Mapping) and isinstance(held.get(dialect), Mapping):
            held = held[dialect]
    return held


def _read_json(path: Path) -> dict[str, Any]:
    table = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(table, dict):
        raise ValueError("it holds no table of settings")
    return table


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]


def _listed(names: Any) -> str:
    ordered = sorted(names)
    more = len(ordered) - _NAMED_AT_MOST
    return ", ".join(ordered[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
