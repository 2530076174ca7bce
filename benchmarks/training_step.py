"""A step of training JoyTag's architecture at 224 pixels: annotary against the reference's step.

python -m benchmarks.training_step --threads 2

The reference's step is written from its description: the plain network under autocast, its stem's norms computed with
swapped axes, positions computed anew each time, the loss `focal2`, gradients clipped, and LAMB as a loop over tensors.
annotary's is what `annotary train tagger` does, with the recipe `joytag` in bf16. Both begin with the same weights
(chance, seeded) and see the same images (noise: time does not depend on them). All contenders are in one process, do
one step to warm up, and take turns. What is told are medians of the turns: of time, and of the seconds that all cores
worked, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from annotary.models._joytag_vit import Block, ChannelNorm, JoyTagConfig, sine_positions
from annotary.training._learning import Learner, Part, normalised
from annotary.training.distributed import Processes
from annotary.training.losses import TaggingLoss
from annotary.training.network import JoyTagTraining, build_network, drop_images
from annotary.training.recipe import TaggerRecipe, read_recipe

TAGS = 5813
SIDE = 224
LEARNING_RATE = 4e-3
POSITIVES = 0.005
"""Share of the tags that an image has: JoyTag's images have 28 of 5,813."""

REFERENCE = "the reference's step"
OURS = "annotary"
COMPILED = "annotary, precision.compile"

Step = Callable[[], float]
"""Does a step and returns its loss."""


class SwappingNorm(nn.Module):
    """The norm of a stem as the reference computes it: channels and columns swap places, and swap back."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, image: Tensor) -> Tensor:
        """The same shape [b, c, h, w]."""
        normal: Tensor = self.norm(image.transpose(1, 3))
        return normal.transpose(1, 3)


class PlainBlock(Block):
    """A block as the reference has it: computed for all images, then some are set to 0."""

    def __init__(self, config: JoyTagConfig) -> None:
        super().__init__(config)
        self.rate = config.stochdepth_rate

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [b, n, d] to tokens [b, n, d]."""
        found = self.skip_init1(self._attention(self.norm1(tokens)))
        tokens = tokens + drop_images(found, self.rate)
        hidden = nn.functional.gelu(self.mlp.linear1(self.norm2(tokens)))
        found = self.skip_init2(self.mlp.linear2(drop_images(hidden, self.rate)))
        return tokens + drop_images(found, self.rate)


class PlainNetwork(JoyTagTraining):
    """The network as the reference's training has it."""

    def __init__(self, config: JoyTagConfig) -> None:
        super().__init__(config)
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, ChannelNorm):
                    setattr(parent, name, SwappingNorm(child.norm))

    def placed_tokens(self, image: Tensor) -> Tensor:
        """Tokens [b, n, d] of images [b, 3, h, w] with their places added."""
        rows, columns = self.check_size(image.shape[2], image.shape[3])
        tokens = cast(Tensor, self.patch_embeddings(image)).flatten(2).transpose(1, 2)
        return tokens + sine_positions(rows, columns, self.config.d_model).to(tokens)

    def _block(self) -> nn.Module:
        return PlainBlock(self.config)


class LoopLamb:
    """NVLAMB as a loop over tensors, each operation by itself."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        self._weights = weights
        self._first = [torch.zeros_like(weight) for weight in weights]
        self._second = [torch.zeros_like(weight) for weight in weights]
        self._steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Change the weights."""
        self._steps += 1
        one = torch.ones(())
        total = torch.zeros(())
        for weight in self._weights:
            assert weight.grad is not None
            total.add_(weight.grad.pow(2).sum())
        norm = total.sqrt()
        clip = torch.where(norm > 1.0, norm, one)
        for weight, first, second in zip(self._weights, self._first, self._second, strict=True):
            gradient = cast(Tensor, weight.grad) / clip
            first.mul_(0.9).add_(gradient, alpha=1 - 0.9)
            second.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
            root = (second.sqrt() / (1 - 0.999**self._steps) ** 0.5).add_(1e-6)
            update = (first / (1 - 0.9**self._steps)).div_(root)
            update.add_(weight, alpha=0.05)
            length, change = weight.norm(2.0), update.norm(2.0)
            ratio = torch.where(length > 0, torch.where(change > 0, length / change, one), one)
            weight.add_(update.mul_(ratio), alpha=-LEARNING_RATE)


def reference(network: JoyTagTraining, part: Part) -> Step:
    """The reference's step on images that are normalised already."""
    plain = PlainNetwork(network.config)
    state = network.state_dict()
    plain.load_state_dict(state)
    plain.train()
    optimiser = LoopLamb(list(plain.parameters()))
    images = normalised(part.images, network.preprocess).contiguous()
    targets = part.targets.float()

    def step() -> float:
        plain.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = plain(images)
            errors = nn.functional.binary_cross_entropy_with_logits(
                logits, targets, reduction="none"
            )
            chance = logits.sigmoid()
            right = chance * targets + (1 - chance) * (1 - targets)
            loss = (errors * (1 - right) ** 2).mean() * 256.0
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimiser.step()
        return float(loss.item())

    return step


def ours(network: JoyTagTraining, recipe: TaggerRecipe, part: Part) -> Step:
    """What `annotary train tagger` does for a batch of one part."""
    learner = Learner(network, TaggingLoss(recipe.loss), recipe, Processes())
    done = iter(range(1_000_000))

    def step() -> float:
        return learner.step([part], 1, LEARNING_RATE, (0, next(done))).loss.item()

    return step


def contenders(names: list[str], batch: int) -> dict[str, Step]:
    """The steps by their names, each with a network of its own."""
    recipe = read_recipe("joytag", ["precision.numbers=bf16"])
    compiled = replace(recipe, precision=replace(recipe.precision, compile=True))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    targets = (torch.rand(batch, TAGS, generator=generator) < POSITIVES).to(torch.uint8)
    part = Part(images, targets, torch.ones(batch))
    found: dict[str, Step] = {}
    for name in names:
        network = build_network(recipe.network, [str(one) for one in range(TAGS)], image_size=SIDE)
        if not isinstance(network, JoyTagTraining):
            raise SystemExit("the recipe joytag trains another network")
        if name == REFERENCE:
            found[name] = reference(network, part)
        else:
            found[name] = ours(network, compiled if name == COMPILED else recipe, part)
    return found


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--rounds", type=int, default=5, help="turns")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--compile", action="store_true", help="compare the compiled network, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = [REFERENCE, OURS, *([COMPILED] if arguments.compile else [])]
    steps = contenders(names, arguments.batch)
    taken: dict[str, list[float]] = {name: [] for name in names}
    worked: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(arguments.rounds + 1):
        for name, step in steps.items():
            started, used = time.perf_counter(), time.process_time()
            loss = step()
            seconds, busy = time.perf_counter() - started, time.process_time() - used
            print(f"{name}: loss {loss:.3f}, {seconds:.2f} s, {busy:.2f} core s", file=sys.stderr)
            if turn:
                taken[name].append(seconds)
                worked[name].append(busy)
    print(f"| batch {arguments.batch} | images/s | ratio | core seconds a step | ratio |")
    print("|---|---|---|---|---|")
    for name in names:
        rate = arguments.batch / statistics.median(taken[name])
        row = f"| {name} | {rate:.2f} | {_ratio(taken, name)} |"
        print(f"{row} {statistics.median(worked[name]):.2f} | {_ratio(worked, name)} |")


def _ratio(found: dict[str, list[float]], name: str) -> str:
    """How many times less than the reference, in the median of the turns."""
    pairs = zip(found[REFERENCE], found[name], strict=True)
    return f"{statistics.median(one / other for one, other in pairs):.2f}×"


if __name__ == "__main__":
    main()
