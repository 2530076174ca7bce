"""Networks of taggers as they are trained: JoyTag's vision transformer, from chance or from another checkpoint.

What the reference's training adds to the network for use, and this adds to `models._joytag_vit`: stochastic depth
(Huang et al., 2016; per image, at one rate in all blocks, scaled by what is kept, and once more inside the two-layer
networks, as in the ``Models.py`` of fpgaminer/joytag), and patch dropout (Li et al., "Scaling Language-Image
Pre-training via Masking", 2023). What differs here: patches are dropped in training alone (the reference drops them
always), and blocks can be computed again in the backward pass in place of being kept.

Names of tensors are those of the network for use, and in evaluation mode both give the same bits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias, Union, cast

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from annotary import weights
from annotary.cards import PreprocessSpec
from annotary.errors import AnnotaryError, ModelError, UsageError
from annotary.models import find
from annotary.models._joytag_vit import (
    CONFIG_FILE,
    Block,
    JoyTagBody,
    JoyTagConfig,
    LayerScale,
    LearnedPositions,
    load_state,
    sine_positions,
)
from annotary.models._vision_tagger_files import TAGGER_FILE, Pooling
from annotary.models.joytag import MODEL_FILE, TAGS_FILE, preprocess_of, tag_lines
from annotary.training.heads import (
    HEAD_DEVIATION,
    HeadReport,
    StartReport,
    fill_head,
    frequency_bias,
    licence_in,
    match_tags,
)
from annotary.training.recipe import NetworkRecipe

if TYPE_CHECKING:
    from annotary.training.backbones import BackboneTagger

TaggerNetwork: TypeAlias = Union["JoyTagTraining", "BackboneTagger"]
"""What is trained: a module from images float[b, 3, h, w], prepared as its `preprocess` says, to logits [b, t]."""

_LOSS_TYPE = "focal2"
"""What `config.json` says of the loss where nobody does; the reference's class cannot be made without."""

_LOSSES_THERE = {"bce": "ce"}
"""Losses that the reference calls otherwise."""

_OPTIONAL = ("layerscale_init", "head_mean_after", "cnn_stem", "patch_dropout")
"""Of the settings, those that the reference's class does without."""

_NO_ONNX = "an ONNX file cannot be trained; start from the checkpoint that it was made of"

_SHORT = 256
"""Tokens up to which products are kept for the backward pass: of an image of 224 pixels 11 MB in a ViT-B."""


def build_network(
    recipe: NetworkRecipe,
    tags: Sequence[str],
    start: str | Path | None = None,
    *,
    image_size: int = 224,
    positives: npt.ArrayLike | None = None,
    images: npt.ArrayLike = 0,
    aliases: Mapping[str, str] | None = None,
    seed: int = 0,
    loss_type: str = _LOSS_TYPE,
    pooling: Pooling | None = None,
) -> TaggerNetwork:
    """The network that a recipe tells, on the processor, in float32, ready to be trained.

    Args:
        recipe: What it is like. Of a JoyTag that it starts from, the architecture is that of the checkpoint.
        tags: What is trained, in the order of the outputs.
        start: What it starts from, in place of what the recipe says: a model's name, or a folder with or without
            `dir:` before it.
        image_size: Side of the square images in pixels.
        positives: [t], how many images have each tag; new tags start at how often they are used.
        images: How many images there are; or [t], how many count for each tag.
        aliases: Other names of tags, each with the name that it stands for, for rows of a checkpoint.
        seed: Of all chance; the same on every process gives the same network.
        loss_type: The loss that it is trained with, for a JoyTag's `config.json`; nothing here depends on it.
        pooling: What the head of a backbone reads; as `build_backbone` has it.

    Raises:
        UsageError: What it should start from does not exist, or the recipe tells of no network that can be.
        ModelError: What it should start from is damaged, or cannot be trained so.
    """
    source = str(start if start is not None else recipe.start)
    bias = None if positives is None else frequency_bias(positives, images)
    generator = torch.Generator().manual_seed(seed)
    network: TaggerNetwork
    if recipe.kind == "backbone":
        from annotary.training.backbones import build_backbone

        network = build_backbone(
            recipe, tags, source, image_size, pooling=pooling, bias=bias, aliases=aliases
        )
    elif source:
        network = _joytag_from(source, recipe, tags, image_size, bias, aliases, generator)
    else:
        network = _joytag_from_chance(recipe, tags, image_size, bias, generator)
    if isinstance(network, JoyTagTraining):
        told = _LOSSES_THERE.get(loss_type, loss_type)
        network.config = replace(network.config, loss_type=told)
    network.patch_dropout = recipe.patch_dropout
    network.gradient_checkpointing = recipe.gradient_checkpointing
    if recipe.freeze == "body":
        network.freeze_body()
    freeze_depths(network, recipe.frozen_depths)
    return network


def freeze_depths(network: TaggerNetwork, count: int) -> None:
    """Leave the lowest depths of a network as they are; nothing is computed back through them.

    Args:
        network: As `build_network` has it.
        count: How many, from the stem on; 0 leaves all as it was.

    Raises:
        UsageError: Nothing would be trained.
    """
    if count >= network.depths:
        raise UsageError(
            f"frozen_depths is {count}, but of this network's {network.depths} depths one must be trained"
        )
    for name, weight in network.named_parameters():
        if network.depth_of(name) < count:
            weight.requires_grad = False


class JoyTagTraining(JoyTagBody):
    """JoyTag's network as it is trained.

    Args:
        config: The architecture; of it `stochdepth_rate` has an effect here.

    Attributes:
        patch_dropout: Share of the tokens that is left out of each image in training, 0..1 (below 1). It may be
            changed between steps.
        gradient_checkpointing: Whether blocks are computed again in the backward pass.
        is_body_frozen: Whether the head alone is trained; the rest is then always in evaluation mode.
        start: What it started from.
    """

    family = "joytag"

    def __init__(self, config: JoyTagConfig) -> None:
        super().__init__(config)
        self.patch_dropout = 0.0
        self.gradient_checkpointing = False
        self.is_body_frozen = False
        self.start = StartReport()
        self._places: Tensor | None
        self.register_buffer("_places", None, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [b, t] of images [b, 3, h, w], RGB, prepared as `preprocess` says."""
        return cast(Tensor, self.head(self.embed(image)))

    def embed(self, image: Tensor) -> Tensor:
        """The embedding [b, d] of images [b, 3, h, w], which the head reads."""
        is_body_trained = self.training and not self.is_body_frozen
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_body_frozen):
            tokens = self.placed_tokens(image)
            if is_body_trained and self.patch_dropout:
                tokens = without_patches(tokens, self.patch_dropout)
            for block in self.blocks:
                if self.gradient_checkpointing and is_body_trained:
                    tokens = checkpoint(block, tokens, use_reentrant=False)
                else:
                    tokens = block(tokens)
            return cast(Tensor, self.norm(tokens).mean(dim=1))

    def placed_tokens(self, image: Tensor) -> Tensor:
        """Tokens [b, n, d] of images [b, 3, h, w] with their places added."""
        rows, columns = self.check_size(image.shape[2], image.shape[3])
        if (
            self.training
        ):  # pixels lie as norms of the stem want them, so that nothing is copied in between
            image = image.contiguous(memory_format=torch.channels_last)
        tokens = cast(Tensor, self.patch_embeddings(image)).flatten(2).transpose(1, 2)
        if not self.config.use_sine:
            return cast(Tensor, self.pos_embedding(tokens))
        places = self._places
        if places is None or (rows, columns) != (self._side(), self._side()):
            places = sine_positions(rows, columns, self.config.d_model)
        return tokens + places.to(tokens)

    def train(self, mode: bool = True) -> Self:
        """Go to training mode, or to evaluation mode; a frozen body stays in the latter."""
        super().train(mode)
        if self.is_body_frozen:
            for name, child in self.named_children():
                child.train(mode and name == "head")
        return self

    def freeze_body(self) -> None:
        """Train the head alone from here on."""
        self.requires_grad_(requires_grad=False)
        self.head.requires_grad_(requires_grad=True)
        self.is_body_frozen = True
        self.train(self.training)

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that it is trained with now."""
        return self.config.image_size

    def set_image_size(self, side: int) -> None:
        """Go on with images of another size, between two steps.

        Raises:
            ModelError: The network cannot take them: its patches do not fit, or its positions are learned.
        """
        self.check_size(side, side)
        self.config = replace(self.config, image_size=side)
        if self.config.use_sine:
            places = sine_positions(self._side(), self._side(), self.config.d_model)
            self._places = places.to(self.head.weight.device)

    @property
    def preprocess(self) -> PreprocessSpec:
        """How its images are prepared."""
        return preprocess_of(self.config.image_size)

    @property
    def depths(self) -> int:
        """How many depths `depth_of` tells apart."""
        return self.config.num_blocks + 2

    def depth_of(self, name: str) -> int:
        """How deep a parameter lies, for layer-wise decay: 0 is the stem, then the blocks, the last norm and head.

        Args:
            name: Of `named_parameters`; what wrappers put before it is passed over.
        """
        parts = name.split(".")
        if "blocks" in parts:
            return int(parts[parts.index("blocks") + 1]) + 1
        is_before = "patch_embeddings" in parts or "pos_embedding" in parts
        return 0 if is_before else self.config.num_blocks + 1

    def settings_files(self) -> dict[str, str]:
        """The files beside the weights that say what the network is: name to text.

        `config.json` holds what the reference's class takes, and nothing else.
        """
        table: dict[str, object] = {"class": "ViT"}
        for entry in fields(self.config):  # the reference's class takes no other keys
            value = getattr(self.config, entry.name)
            if entry.name not in _OPTIONAL or value != entry.default:
                table[entry.name] = value
        return {CONFIG_FILE: json.dumps(table, indent="\t") + "\n"}

    def _side(self) -> int:
        """Tokens along a side of the image."""
        return self.config.image_size // self.config.patch_size

    def _block(self) -> nn.Module:
        return TrainingBlock(self.config)


class TrainingBlock(Block):
    """A block that skips its parts for some images in training.

    Args:
        config: The architecture.

    Attributes:
        drop_rate: Probability that an image skips a part, 0..1 (below 1).
    """

    def __init__(self, config: JoyTagConfig) -> None:
        super().__init__(config)
        self.drop_rate = config.stochdepth_rate

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [b, n, d] to tokens [b, n, d]."""
        if not self.training or not self.drop_rate:
            return super().forward(tokens)
        if tokens.device.type == "cpu" and not torch.compiler.is_compiling():
            return self._of_kept(tokens)
        rate = self.drop_rate
        found = self.skip_init1(self._attention(self.norm1(tokens)))
        tokens = tokens + drop_images(found, rate)
        # The reference also skips inside the two-layer network, which leaves the second layer's bias.
        hidden = functional.gelu(self.mlp.linear1(self.norm2(tokens)))
        found = self.skip_init2(self.mlp.linear2(drop_images(hidden, rate)))
        return tokens + drop_images(found, rate)

    def _of_kept(self, tokens: Tensor) -> Tensor:
        """The same with the same chance, computed for the images alone that do not skip.

        On a GPU it would have to wait for the numbers of these images.
        """
        keep = 1.0 - self.drop_rate

        def attended(part: Tensor) -> Tensor:
            return cast(Tensor, self.skip_init1(self._attention(self.norm1(part))))

        def fed(part: Tensor) -> Tensor:
            hidden = functional.gelu(self.mlp.linear1(self.norm2(part))) / keep
            return cast(Tensor, self.skip_init2(self.mlp.linear2(hidden)))

        tokens = add_to_kept(tokens, kept_images(tokens, self.drop_rate), keep, attended)
        inside, outside = (kept_images(tokens, self.drop_rate) for _ in range(2))
        found = add_to_kept(tokens, inside & outside, keep, fed)
        has_bias = outside & ~inside
        if has_bias.any():
            found = found + has_bias[:, None, None] * self.skip_init2(self.mlp.linear2.bias) / keep
        return found

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        is_short = queries.shape[2] <= _SHORT and queries.dtype == torch.bfloat16
        if not (is_short and self.training and queries.device.type == "cpu"):
            return super()._attend(queries, keys, values)
        # On processors the products one by one go back twice as fast as the kernel that keeps nothing between them.
        with torch.autocast("cpu", enabled=False):
            alike = (queries * queries.shape[3] ** -0.5) @ keys.transpose(2, 3)
            return cast(Tensor, alike.softmax(dim=3) @ values)


def add_to_kept(
    tokens: Tensor, is_kept: Tensor, keep: float, branch: Callable[[Tensor], Tensor]
) -> Tensor:
    """Tokens [b, n, d] and what a branch finds for some images, divided by the share that is kept.

    Args:
        tokens: [b, n, d].
        is_kept: bool[b].
        keep: Above 0, up to 1.
        branch: From tokens [k, n, d] of the images that are kept to [k, n, d].
    """
    rows, share = is_kept.nonzero().flatten(), 1.0 / keep
    if len(rows) == len(tokens):
        return tokens + branch(tokens) * share
    if not len(rows):  # the branch's weights get gradients of 0, which other processes wait for
        rows, share = rows.new_zeros(1), 0.0
    found = branch(tokens.index_select(0, rows)) * share
    return tokens.index_add(0, rows, found.to(tokens.dtype))


def kept_images(values: Tensor, rate: float) -> Tensor:
    """Which images of values [b, ...] are kept, bool[b], by the chance that `drop_images` draws.

    Args:
        values: On any device.
        rate: Probability that one is not, 0..1 (below 1).
    """
    chance = torch.rand(len(values), device=values.device, dtype=torch.float32)
    return torch.floor(1.0 - rate + chance) > 0


def drop_images(values: Tensor, rate: float) -> Tensor:
    """Values [b, ...] with those of some images set to 0, and the others divided by the share that is kept.

    Args:
        values: Of any floating-point type.
        rate: Probability that an image's are set to 0, 0..1 (below 1).
    """
    keep = 1.0 - rate
    # Chance is drawn in float32: in half precision keep + chance is rounded up to 1 too often.
    shape = (len(values), *(1,) * (values.ndim - 1))
    chance = torch.rand(shape, device=values.device, dtype=torch.float32)
    return values * (torch.floor(keep + chance) / keep).to(values)


def without_patches(tokens: Tensor, share: float) -> Tensor:
    """Tokens [b, m, d]: of each image's, others left out by chance; one at least stays.

    Args:
        tokens: [b, n, d].
        share: How many are left out, 0..1 (below 1).
    """
    batch, count, width = tokens.shape
    kept = max(1, round(count * (1.0 - share)))
    order = torch.rand(batch, count, device=tokens.device).argsort(dim=1)[:, :kept]
    return tokens.gather(1, order[:, :, None].expand(batch, kept, width))


@torch.no_grad()
def initialise(network: JoyTagBody, generator: torch.Generator) -> None:
    """Set all weights to chance, as networks like this usually start.

    Linear layers and learned positions: a normal distribution of deviation 0.02, cut off at twice that (Dosovitskiy et
    al., and most since); biases 0. Convolutions before a ReLU or GELU: He's rule; the one that makes the tokens:
    LeCun's, so that tokens are about as large as the positions that are added. Residual scales: `layerscale_init`, or
    by depth (CaiT's rule), as the reference has it. Norms: 1 and 0.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    for module in network.modules():
        if isinstance(module, nn.Linear):
            _truncated(module.weight, generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            _truncated(module.weight, generator)
        elif isinstance(module, nn.Conv2d):
            gain = 1.0 if module is convolutions[-1] else math.sqrt(2.0)
            inputs = module.weight[0].numel()
            nn.init.normal_(module.weight, std=gain / math.sqrt(inputs), generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, LayerScale):
            nn.init.constant_(module.skip, network.config.layer_scale)


def _truncated(weight: Tensor, generator: torch.Generator) -> None:
    limit = 2 * HEAD_DEVIATION
    nn.init.trunc_normal_(weight, std=HEAD_DEVIATION, a=-limit, b=limit, generator=generator)


def resized_positions(weight: Tensor, rows: int) -> Tensor:
    """Learned positions [n, d] of a square grid, for one of another size [rows * rows, d], by bicubic interpolation."""
    count, width = weight.shape
    side = math.isqrt(count)
    grid = weight.reshape(1, side, side, width).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid.float(), (rows, rows), mode="bicubic", antialias=rows < side)
    return grid.permute(0, 2, 3, 1).reshape(rows * rows, width).to(weight)


def directory_of(start: str) -> Path:
    """The folder of a model that training starts from.

    Args:
        start: A folder, with or without `dir:` before it, or a model's name.

    Raises:
        UsageError: There is none.
        ModelError: It cannot be fetched.
    """
    path = Path(start.removeprefix("dir:"))
    if path.is_dir():
        return path
    if path.suffix == ".onnx":
        raise UsageError(f"{path}: {_NO_ONNX}")
    if start.startswith("dir:"):
        raise UsageError(f"there is no folder {path} to start from")
    return find(start).directory


def _joytag_from_chance(
    recipe: NetworkRecipe,
    tags: Sequence[str],
    image_size: int,
    bias: Tensor | None,
    generator: torch.Generator,
) -> JoyTagTraining:
    try:
        config = JoyTagConfig(
            n_tags=len(tags),
            image_size=image_size,
            num_blocks=recipe.num_blocks,
            patch_size=recipe.patch_size,
            d_model=recipe.d_model,
            mlp_dim=recipe.mlp_dim,
            num_heads=recipe.num_heads,
            cnn_stem=recipe.cnn_stem or None,
            stochdepth_rate=recipe.stochastic_depth,
        )
    except ValueError as error:
        raise UsageError(f"the recipe's network cannot be: {error}") from error
    with torch.device("meta"):  # chance is drawn once, from the generator
        network = JoyTagTraining(config)
    network.to_empty(device="cpu")
    initialise(network, generator)
    fill_head(network.head, bias=bias, generator=generator)
    network.start = StartReport(head=HeadReport(new=tuple(tags)))
    network.set_image_size(image_size)
    return network


def _joytag_from(
    source: str,
    recipe: NetworkRecipe,
    tags: Sequence[str],
    image_size: int,
    bias: Tensor | None,
    aliases: Mapping[str, str] | None,
    generator: torch.Generator,
) -> JoyTagTraining:
    directory = directory_of(source)
    _check_is_joytag(directory, source)
    config = JoyTagConfig.from_json(directory / CONFIG_FILE)
    old_tags = tag_lines(directory / TAGS_FILE)
    if len(old_tags) != config.n_tags:
        raise ModelError(
            f"{directory}: {TAGS_FILE} has {len(old_tags)} tags, but {CONFIG_FILE} says {config.n_tags}"
        )
    with torch.device("meta"):
        network = JoyTagTraining(replace(config, stochdepth_rate=recipe.stochastic_depth))
    # Copies: the file may go while its weights are trained.
    network.load_weights({name: value.clone() for name, value in load_state(directory).items()})
    network.requires_grad_(requires_grad=True)
    notes = (_fit_positions(network, image_size),) if image_size != config.image_size else ()
    rows, report = match_tags(old_tags, tags, aliases)
    old = (network.head.weight.detach(), network.head.bias.detach())
    network.head = nn.Linear(config.d_model, len(tags))
    # Rows of new tags are 0 beside ones that know the body: they say how often a tag is used until they know more.
    deviation = 0.0 if rows else HEAD_DEVIATION
    fill_head(network.head, bias=bias, deviation=deviation, generator=generator, old=old, rows=rows)
    network.config = replace(network.config, n_tags=len(tags))
    network.start = StartReport(source, report, notes, licence_in(directory))
    network.set_image_size(image_size)
    return network


def _check_is_joytag(directory: Path, source: str) -> None:
    """Tell early what else a folder holds.

    Raises:
        UsageError: It is no JoyTag that can be trained.
    """
    if (directory / TAGGER_FILE).is_file() or _is_like_the_starter(directory):
        raise UsageError(f"{source} is no JoyTag; take the recipe backbone to start from it")
    if not (directory / CONFIG_FILE).is_file():
        if next(directory.glob("*.onnx"), None) is not None:
            raise UsageError(f"{source}: {_NO_ONNX}")
        raise UsageError(f"{source} is no JoyTag: {directory} has no {CONFIG_FILE}")


def _is_like_the_starter(directory: Path) -> bool:
    """Whether a folder holds the starter, or a probe on it."""
    if directory in weights.shipped().values():
        return True
    if (directory / CONFIG_FILE).is_file() or not (directory / MODEL_FILE).is_file():
        return False
    from annotary.training._integer_tower import read_tower

    try:
        read_tower(directory / MODEL_FILE)
    except AnnotaryError:
        return False
    return True


def _fit_positions(network: JoyTagTraining, image_size: int) -> str:
    """Bring a network to another size of images, and tell how."""
    config = network.config
    told = f"images have {image_size} pixels a side, and the weights were trained with {config.image_size}"
    try:
        network.config = replace(config, image_size=image_size)
    except ValueError as error:
        raise ModelError(str(error)) from error
    if config.use_sine:
        return told
    side = image_size // config.patch_size
    weight = resized_positions(network.pos_embedding.embedding.weight.detach(), side)
    network.pos_embedding = LearnedPositions(len(weight), config.d_model)
    network.pos_embedding.embedding.weight = nn.Parameter(weight)
    return f"{told}; its learned positions were interpolated"
