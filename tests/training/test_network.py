"""JoyTag's network for training: the same bits as the one for use, and what only training does."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from annotary.errors import ModelError, UsageError  # noqa: E402
from annotary.models._joytag_vit import JoyTagConfig, JoyTagViT, load_network  # noqa: E402
from annotary.training.heads import frequency_bias, match_tags  # noqa: E402
from annotary.training.network import (  # noqa: E402
    JoyTagTraining,
    build_network,
    drop_images,
    kept_images,
    resized_positions,
    without_patches,
)
from annotary.training.recipe import NetworkRecipe  # noqa: E402
from annotary.weights import shipped  # noqa: E402
from tests.taggers import SMALL_JOYTAG, SMALL_TAGS, make_joytag  # noqa: E402

GOLDEN_LOGITS = (0.7092, -0.9252, 0.6282, -0.1373, 0.1224)
GOLDEN_EMBEDDING = (-1.1947, -0.6700, -0.0034, -0.3572)

SMALL = NetworkRecipe(
    num_blocks=2,
    d_model=32,
    mlp_dim=64,
    num_heads=4,
    cnn_stem=SMALL_JOYTAG["cnn_stem"],
)
VARIANTS = {
    "the usual": {},
    "plain patches": {"cnn_stem": None},
    "learned positions": {"use_sine": False},
    "batch norms": {"cnn_stem": "conv:c=6,s=4;bn;gelu;conv:c=32,s=4,k=4,p=0"},
    "head before the mean": {"head_mean_after": True},
}


def golden_image():
    return torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)


def images(count=4, side=64, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_joytag(tmp_path_factory.mktemp("joytag") / "small")


# The same network


def test_golden_numbers_pass_through_the_network_for_training(directory):
    network = build_network(SMALL, SMALL_TAGS, directory, image_size=64).eval()
    with torch.inference_mode():
        logits, embedding = network(golden_image()), network.embed(golden_image())
    assert logits[0].numpy() == pytest.approx(np.array(GOLDEN_LOGITS), abs=5.1e-5)
    assert embedding[0, :4].numpy() == pytest.approx(np.array(GOLDEN_EMBEDDING), abs=5.1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_evaluation_mode_it_gives_the_bits_of_the_network_for_use(tmp_path, variant):
    folder = make_joytag(tmp_path / "model", {**SMALL_JOYTAG, **VARIANTS[variant]})
    network = build_network(SMALL, SMALL_TAGS, folder, image_size=64).eval()
    used = load_network(folder)
    sizes = [(64, 64)] if variant == "learned positions" else [(64, 64), (32, 48), (96, 96)]
    with torch.inference_mode():
        for height, width in sizes:
            batch = torch.randn(2, 3, height, width)
            assert torch.equal(network(batch), used(batch)[0])
    assert list(network.state_dict()) == list(used.state_dict())


def test_the_published_architecture_has_its_tensors():
    with torch.device("meta"):
        network = JoyTagTraining(JoyTagConfig.from_json(PUBLISHED))
    assert len(network.state_dict()) == 190
    assert sum(value.numel() for value in network.parameters()) == 91_491_509


PUBLISHED = {
    **SMALL_JOYTAG,
    "num_blocks": 12,
    "d_model": 768,
    "mlp_dim": 3072,
    "num_heads": 12,
    "cnn_stem": NetworkRecipe().cnn_stem,
    "image_size": 448,
    "n_tags": 5813,
}


def test_without_chance_training_mode_computes_the_same(directory):
    recipe = replace(SMALL, stochastic_depth=0.0)
    network = build_network(recipe, SMALL_TAGS, directory, image_size=64)
    batch = images()
    trained = network.train()(batch)
    assert torch.allclose(trained, network.eval()(batch), atol=1e-6)


# Stochastic depth


def test_dropped_images_are_nought_and_the_others_are_scaled():
    torch.manual_seed(0)
    dropped = drop_images(torch.ones(20_000, 1, 1), 0.25).flatten()
    assert sorted(set(dropped.tolist())) == pytest.approx([0.0, 1 / 0.75])
    assert dropped.mean() == pytest.approx(1.0, abs=0.02)
    half = drop_images(torch.ones(20_000, 3, 2, dtype=torch.bfloat16), 0.05)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half[:, :1, :1].expand_as(half), half)  # an image as a whole
    assert (half[:, 0, 0] == 0).float().mean() == pytest.approx(0.05, abs=0.005)


def test_what_is_computed_for_the_kept_images_is_what_is_computed_for_all(directory, monkeypatch):
    recipe = replace(SMALL, stochastic_depth=0.5)
    network = build_network(recipe, SMALL_TAGS, directory, image_size=64)
    block = network.blocks[0].train()
    seen = set()
    for seed in range(12):
        results = []
        for is_masked in (False, True):
            monkeypatch.setattr(
                torch.compiler, "is_compiling", lambda is_masked=is_masked: is_masked
            )
            tokens = torch.randn(
                3, 16, 32, generator=torch.Generator().manual_seed(seed)
            ).requires_grad_()
            torch.manual_seed(seed)
            block.zero_grad()
            found = block(tokens)
            (found * torch.arange(32.0)).sum().backward()
            gradients = [weight.grad for weight in block.parameters()]
            assert all(gradient is not None for gradient in gradients)
            results.append((found.detach(), tokens.grad, *gradients))
        for own, other in zip(*results, strict=True):
            torch.testing.assert_close(own, other, atol=1e-3, rtol=1e-4)
        torch.manual_seed(seed)
        seen.add(tuple(int(kept_images(tokens, 0.5).sum()) for _ in range(3)))
    assert {kept for each in seen for kept in each} == {0, 1, 2, 3}  # none, some and all of them


def test_attention_in_bf16_on_a_processor_is_attention(directory):
    block = build_network(SMALL, SMALL_TAGS, directory, image_size=64).blocks[0].train()
    parts = [
        torch.randn(
            2, 4, 16, 8, dtype=torch.bfloat16
        ).requires_grad_()  # batch, heads, tokens, width
        for _ in range(3)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        found = block._attend(*parts)
    assert found.dtype == torch.bfloat16
    exact = [part.detach().float().requires_grad_() for part in parts]
    expected = torch.nn.functional.scaled_dot_product_attention(*exact)
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)
    found.sum().backward()
    expected.sum().backward()
    for part, other in zip(parts, exact, strict=True):
        torch.testing.assert_close(part.grad.float(), other.grad, atol=0.05, rtol=0.05)


def test_stochastic_depth_is_that_of_the_specification(directory):
    """Each image: attention, the inside of the two-layer network and its result, each by chance of its own."""
    recipe = replace(SMALL, stochastic_depth=0.4)
    network = build_network(recipe, SMALL_TAGS, directory, image_size=64)
    block = network.blocks[0].train()
    tokens = torch.randn(6, 16, 32)
    torch.manual_seed(3)
    found = block(tokens)
    torch.manual_seed(3)
    masks = [(torch.floor(0.6 + torch.rand(6, 1, 1)) / 0.6) for _ in range(3)]
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 3
    with torch.no_grad():
        expected = tokens + masks[0] * block.skip_init1.skip * block._attention(block.norm1(tokens))
        inside = torch.nn.functional.gelu(block.mlp.linear1(block.norm2(expected))) * masks[1]
        expected = expected + masks[2] * block.skip_init2.skip * block.mlp.linear2(inside)
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_rate_is_the_recipes_and_the_same_in_all_blocks(directory):
    network = build_network(
        replace(SMALL, stochastic_depth=0.3), SMALL_TAGS, directory, image_size=64
    )
    assert [block.drop_rate for block in network.blocks] == [0.3, 0.3]
    assert json.loads(network.settings_files()["config.json"])["stochdepth_rate"] == 0.3


# Patch dropout, sizes, checkpointing


def test_patch_dropout_keeps_some_tokens_of_each_image():
    tokens = torch.arange(16.0).reshape(1, 16, 1).expand(3, 16, 2)
    kept = without_patches(tokens, 0.75)
    assert kept.shape == (3, 4, 2)
    for row in kept[:, :, 0].tolist():
        assert len(set(row)) == 4
        assert set(row) <= set(range(16))
    assert without_patches(tokens, 0.99).shape == (3, 1, 2)
    assert len({tuple(sorted(row)) for row in without_patches(tokens, 0.5)[:, :, 0].tolist()}) > 1


def test_patches_are_dropped_in_training_alone(directory):
    recipe = replace(SMALL, stochastic_depth=0.0, patch_dropout=0.5)
    network = build_network(recipe, SMALL_TAGS, directory, image_size=64)
    batch = images()
    assert torch.equal(network.eval()(batch), network(batch))
    first, second = network.train()(batch), network(batch)
    assert not torch.equal(first, second)
    network.patch_dropout = 0.0
    assert torch.equal(network(batch), network(batch))
    assert "patch_dropout" not in network.settings_files()["config.json"]


def test_gradient_checkpointing_gives_the_same_bits(directory):
    gradients = []
    for is_checkpointing in (False, True):
        recipe = replace(SMALL, stochastic_depth=0.3, gradient_checkpointing=is_checkpointing)
        network = build_network(recipe, SMALL_TAGS, directory, image_size=64).train()
        torch.manual_seed(5)
        network(images()).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_sizes_may_change_between_steps(directory):
    network = build_network(SMALL, SMALL_TAGS, directory, image_size=32)
    assert network.preprocess.size == (32, 32)
    network.set_image_size(96)
    assert network.preprocess.size == (96, 96)
    assert json.loads(network.settings_files()["config.json"])["image_size"] == 96
    assert network.train()(images(side=96)).shape == (4, 5)
    with pytest.raises(ModelError, match="multiples of 16 pixels, but got 50x50"):
        network.set_image_size(50)


def test_learned_positions_are_interpolated_for_another_size(tmp_path):
    folder = make_joytag(tmp_path / "model", {**SMALL_JOYTAG, "use_sine": False})
    network = build_network(SMALL, SMALL_TAGS, folder, image_size=96)
    assert network.pos_embedding.embedding.weight.shape == (36, 32)
    assert "learned positions were interpolated" in str(network.start)
    assert network(images(side=96)).shape == (4, 5)
    with pytest.raises(ModelError, match="learned positions for 96x96"):
        network.set_image_size(64)


def test_interpolated_positions_keep_what_is_linear():
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    weight = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    assert torch.equal(resized_positions(weight, 8), weight)
    larger = resized_positions(weight, 16).reshape(16, 16, 2)
    steps = larger[7:11, :, 0] - larger[5:9, :, 0]  # two new places are an old one
    assert torch.allclose(steps, torch.ones_like(steps), atol=1e-5)
    assert torch.equal(larger[:, 3, 0], larger[3, :, 1])


# What it starts from


def test_chance_comes_from_the_seed_alone():
    torch.manual_seed(1)
    one = build_network(SMALL, SMALL_TAGS, image_size=64, seed=7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    other = build_network(SMALL, SMALL_TAGS, image_size=64, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    third = build_network(SMALL, SMALL_TAGS, image_size=64, seed=8)
    pairs = list(zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert all(torch.equal(first, second) for first, second in pairs)
    assert not torch.equal(one.head.weight, third.head.weight)
    assert str(one.start).startswith("starts from chance")


def test_initial_weights_follow_the_stated_rules():
    recipe = replace(SMALL, d_model=128, mlp_dim=256, cnn_stem=PUBLISHED_STEM)
    network = build_network(recipe, SMALL_TAGS, image_size=64)
    weight = network.blocks[0].mlp.linear1.weight.detach()
    assert weight.std().item() == pytest.approx(
        0.02 * 0.88, rel=0.03
    )  # what cutting at twice it leaves
    assert weight.abs().max() <= 0.04
    assert torch.equal(network.blocks[1].skip_init2.skip, torch.full((128,), 0.1))
    stem = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert stem[1].weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert stem[-1].weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())


PUBLISHED_STEM = "conv:c=64,s=4;ln;relu;conv:c=64,s=4;ln;relu;conv:c=128,s=1,k=1,p=0"


def test_new_tags_start_at_how_often_they_are_used():
    network = build_network(
        SMALL, SMALL_TAGS, image_size=64, positives=[0, 1, 50, 99, 100], images=100
    )
    expected = np.log([0.5 / 100.5, 1.5 / 99.5, 1.0, 99.5 / 1.5, 100.5 / 0.5])
    assert network.head.bias.detach().numpy() == pytest.approx(expected, abs=1e-6)
    assert frequency_bias([3], 10).dtype == torch.float32


def test_rows_of_a_head_are_kept_by_name(directory):
    tags = ("saber_(fate)", "new_tag", "1girl", "empty", "another")
    aliases = {"no_humans": "empty", "unknown": "1girl"}
    network = build_network(
        SMALL,
        tags,
        directory,
        image_size=64,
        aliases=aliases,
        positives=[1, 2, 3, 4, 5],
        images=10,
    )
    old, new = load_network(directory).head, network.head
    for place, before in {0: 3, 2: 0, 3: 4}.items():
        assert torch.equal(new.weight[place], old.weight[before])
        assert torch.equal(new.bias[place], old.bias[before])
    assert not new.weight[1].any()
    assert new.bias[[1, 4]].tolist() == pytest.approx(np.log([2.5 / 8.5, 1.0]).tolist())
    report = network.start.head
    assert report.kept == ("saber_(fate)", "1girl", "empty")
    assert report.renamed == {"empty": "no_humans"}
    assert report.new == ("new_tag", "another")
    assert report.dropped == ("^_^", "steins;gate")
    told = str(network.start)
    assert "3 tags keep their weights; 1 of them by an alias (empty)" in told
    assert "2 are new (new_tag, another)" in told
    assert json.loads(network.settings_files()["config.json"])["n_tags"] == 5
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_name_of_its_own_goes_before_an_alias():
    rows, report = match_tags(("cat", "feline"), ("feline", "cat"), {"feline": "cat"})
    assert rows == {0: 1, 1: 0}
    assert not report.renamed
    rows, report = match_tags(("kitty", "feline"), ("cat",), {"feline": "cat", "kitty": "cat"})
    assert rows == {0: 0}
    assert report.dropped == ("feline",)


def test_a_list_of_other_length_than_the_config_says_is_told(tmp_path):
    folder = make_joytag(tmp_path / "model")
    (folder / "top_tags.txt").write_text("one\ntwo\n")
    with pytest.raises(ModelError, match=r"top_tags\.txt has 2 tags, but config\.json says 5"):
        build_network(SMALL, SMALL_TAGS, folder, image_size=64)


def test_what_cannot_be_is_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"the recipe's network cannot be: .*multiple of 5 heads"):
        build_network(replace(SMALL, num_heads=5), SMALL_TAGS, image_size=64)
    with pytest.raises(UsageError, match=r"there is no folder .*nowhere to start from"):
        build_network(SMALL, SMALL_TAGS, f"dir:{tmp_path / 'nowhere'}", image_size=64)
    with pytest.raises(UsageError, match="unknown model"):
        build_network(SMALL, SMALL_TAGS, "nobody", image_size=64)


def test_a_start_that_is_no_joytag_is_told_in_one_line(tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(UsageError, match=r"^starter is no JoyTag; take the recipe backbone"):
        build_network(SMALL, SMALL_TAGS, "starter", image_size=64)
    probe = tmp_path / "probe"  # of a folder that is like the starter
    probe.mkdir()
    (probe / "model.onnx").symlink_to(shipped()["starter"] / "model.onnx")
    with pytest.raises(UsageError, match="no JoyTag; take the recipe backbone"):
        build_network(SMALL, SMALL_TAGS, f"dir:{probe}", image_size=64)
    export = tmp_path / "export"
    export.mkdir()
    for start in (f"dir:{export}", f"dir:{export / 'model.onnx'}"):
        (export / "model.onnx").write_bytes(b"no graph")
        with pytest.raises(UsageError, match=r"export.*: an ONNX file cannot be trained; start"):
            build_network(SMALL, SMALL_TAGS, start, image_size=64)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"is no JoyTag: .*empty has no config\.json"):
        build_network(SMALL, SMALL_TAGS, f"dir:{tmp_path / 'empty'}", image_size=64)


# What is trained of it


def test_a_frozen_body_stays_as_it_is(directory):
    recipe = replace(SMALL, freeze="body", stochastic_depth=0.5, patch_dropout=0.5)
    network = build_network(recipe, SMALL_TAGS, directory, image_size=64).train()
    assert {name for name, value in network.named_parameters() if value.requires_grad} == {
        "head.weight",
        "head.bias",
    }
    assert not network.blocks[0].training
    batch = images()
    assert torch.allclose(network(batch), load_network(directory)(batch)[0], atol=1e-6)
    network(batch).sum().backward()
    assert network.head.weight.grad is not None
    assert network.blocks[0].qkv_proj.weight.grad is None


def test_frozen_depths_stay_as_they_are(directory):
    network = build_network(
        replace(SMALL, frozen_depths=2), SMALL_TAGS, directory, image_size=64
    ).train()
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert {network.depth_of(name) for name in trained} == {2, 3}
    network(images()).sum().backward()
    assert network.blocks[1].qkv_proj.weight.grad is not None
    assert network.blocks[0].qkv_proj.weight.grad is None
    assert network.patch_embeddings.conv[0].weight.grad is None
    with pytest.raises(UsageError, match="frozen_depths is 4, but of this network's 4 depths one"):
        build_network(replace(SMALL, frozen_depths=4), SMALL_TAGS, directory, image_size=64)
    with pytest.raises(ValueError, match="frozen_depths"):
        replace(SMALL, frozen_depths=-1)


def test_depths_rise_from_the_stem_to_the_head(directory):
    network = build_network(SMALL, SMALL_TAGS, directory, image_size=64)
    depths = {name: network.depth_of(name) for name, _ in network.named_parameters()}
    assert network.depths == 4
    assert depths["patch_embeddings.conv.0.weight"] == 0
    assert depths["blocks.0.norm1.weight"] == 1
    assert depths["blocks.1.mlp.linear2.bias"] == 2
    assert depths["norm.weight"] == depths["head.weight"] == 3
    assert set(depths.values()) == set(range(4))
    assert network.depth_of("module._orig_mod.blocks.1.norm2.bias") == 2


def test_the_settings_name_the_loss_as_the_reference_does(directory):
    for start, loss, expected in ((directory, "bce", "ce"), (None, "asl4", "asl4")):
        network = build_network(SMALL, SMALL_TAGS, start, image_size=64, loss_type=loss)
        assert json.loads(network.settings_files()["config.json"])["loss_type"] == expected


def test_the_settings_are_those_that_the_network_for_use_reads(directory):
    network = build_network(SMALL, SMALL_TAGS, directory, image_size=64)
    config = JoyTagConfig.from_json(json.loads(network.settings_files()["config.json"]))
    JoyTagViT(config).load_state_dict(network.state_dict())
