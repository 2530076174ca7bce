"""Vision networks of Hugging Face with a head of ours: trained, written down, and read again."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from annotary.errors import ModelError, UsageError  # noqa: E402
from annotary.models import find, load_model  # noqa: E402
from annotary.runtime import RuntimeOptions  # noqa: E402
from annotary.training.backbones import build_backbone  # noqa: E402
from annotary.training.checkpoints import load_checkpoint, save_checkpoint  # noqa: E402
from annotary.training.network import build_network  # noqa: E402
from annotary.training.recipe import NetworkRecipe  # noqa: E402

TAGS = ("cat", "dog", "^_^")
EXACT = RuntimeOptions(runtime="torch", precision="fp32")

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 20,
}

BACKBONES = {
    "dinov2": ("Dinov2Config", "Dinov2Model", {**SMALL, "mlp_ratio": 2}),
    "dinov2 with registers": (
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersModel",
        {**SMALL, "num_register_tokens": 3},
    ),
    "dinov3": ("DINOv3ViTConfig", "DINOv3ViTModel", {**SMALL, "num_register_tokens": 2}),
    "vit": ("ViTConfig", "ViTModel", SMALL),
    "siglip": ("SiglipConfig", "SiglipModel", {"vision_config": SMALL, "text_config": TEXT}),
    "clip": ("CLIPConfig", "CLIPModel", {"vision_config": SMALL, "text_config": TEXT}),
}
PROCESSORS = {
    "dinov2": {"image_processor_type": "BitImageProcessor"},
    "dinov2 with registers": {"image_processor_type": "BitImageProcessor"},
    "dinov3": {"image_processor_type": "DINOv3ViTImageProcessorFast"},
    "vit": {"image_processor_type": "ViTImageProcessor"},
    "siglip": {},
    "clip": {},
}


def make_backbone(folder, kind):
    config, model, settings = BACKBONES[kind]
    torch.manual_seed(0)
    network = getattr(transformers, model)(getattr(transformers, config)(**settings))
    network.save_pretrained(folder)
    size = {"shortest_edge": 32} if "dinov2" in kind or kind == "clip" else {}
    more = {"size": size or {"height": 32, "width": 32}}
    if size:
        more["crop_size"] = {"height": 32, "width": 32}
    processor = {**PROCESSORS[kind], **more}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder, network.eval()


def images(side=32, count=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, side, side, generator=generator)


def recipe(folder, **more):
    return NetworkRecipe(kind="backbone", start=f"dir:{folder}", **more)


def some_steps(network, count=3):
    network.train()
    optimiser = torch.optim.AdamW(
        [value for value in network.parameters() if value.requires_grad], lr=1e-2
    )
    for _ in range(count):
        optimiser.zero_grad()
        network(images(network.image_size)).square().sum().backward()
        optimiser.step()
    return network.eval()


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_trained_backbone_comes_back_as_a_tagger(tmp_path, kind):
    folder, _ = make_backbone(tmp_path / "backbone", kind)
    network = build_network(recipe(folder), TAGS, image_size=32)
    assert not network.head.weight.any()
    network.head.weight.data.normal_()
    some_steps(network)
    place = save_checkpoint(tmp_path / "checkpoint", network, TAGS, training_state={"at": 1})
    with torch.inference_mode():
        expected, embedding = network(images()), network.embed(images())
    model = load_model(f"dir:{place}", EXACT)
    assert model.tag_scores(images().numpy()) == pytest.approx(expected.sigmoid().numpy(), abs=1e-5)
    assert model.features(images().numpy()) == pytest.approx(embedding.numpy(), abs=1e-5)
    assert model.vocabulary.names == TAGS
    assert model.card.preprocess == network.preprocess
    assert model.card.family == "vision_tagger"
    (place / "card.toml").unlink()
    assert find(f"dir:{place}").card.family == "vision_tagger"
    again = load_model(f"dir:{place}", EXACT)
    assert np.array_equal(again.tag_scores(images().numpy()), model.tag_scores(images().numpy()))
    assert again.card.preprocess == network.preprocess


@pytest.mark.parametrize("kind", BACKBONES)
def test_the_head_reads_what_the_published_network_gives(tmp_path, kind):
    folder, reference = make_backbone(tmp_path / "backbone", kind)
    reference = getattr(reference, "vision_model", reference)
    with torch.inference_mode():
        given = reference(pixel_values=images())
        tokens = given.last_hidden_state
        pooled = tokens[:, 0] if kind == "vit" else given.pooler_output
        mean = tokens[:, -16:].mean(dim=1)
        expected = {"pooled": pooled, "mean": mean, "both": torch.cat([pooled, mean], dim=1)}
        for pooling, values in expected.items():
            network = build_backbone(recipe(folder), TAGS, str(folder), 32, pooling=pooling)
            assert network.eval().embed(images()).numpy() == pytest.approx(values.numpy(), abs=1e-5)
            assert network.head.in_features == values.shape[1]


@pytest.mark.parametrize("kind", ["dinov3", "vit", "siglip"])
def test_images_may_have_another_size(tmp_path, kind):
    folder, _ = make_backbone(tmp_path / "backbone", kind)
    network = build_network(recipe(folder), TAGS, image_size=48)
    assert "images have 48 pixels a side, and its own have 32" in str(network.start)
    some_steps(network, 1)
    place = save_checkpoint(tmp_path / "checkpoint", network, TAGS)
    model = load_model(f"dir:{place}", EXACT)
    assert model.card.preprocess.size == (48, 48)
    with torch.inference_mode():
        expected = network(images(48)).sigmoid().numpy()
    assert model.tag_scores(images(48).numpy()) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ModelError, match="multiples of 8 pixels, but got 30x30"):
        network.set_image_size(30)


def test_depths_rise_from_the_patches_to_the_head(tmp_path):
    for kind in BACKBONES:
        folder, _ = make_backbone(tmp_path / kind, kind)
        network = build_network(recipe(folder), TAGS, image_size=32)
        depths = {name: network.depth_of(name) for name, _ in network.named_parameters()}
        assert set(depths.values()) == {0, 1, 2, 3}
        for name, depth in depths.items():
            expected = (
                0 if "embeddings" in name else 1 if ".0." in name else 2 if ".1." in name else 3
            )
            assert depth == expected, name


def test_a_frozen_body_stays_as_it_is(tmp_path):
    folder, _ = make_backbone(tmp_path / "backbone", "dinov2")
    network = build_network(
        recipe(folder, freeze="body", stochastic_depth=0.5), TAGS, image_size=32
    )
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    some_steps(network)
    after = network.backbone.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    network.train()
    assert torch.equal(network.embed(images()), network.embed(images()))


def test_stochastic_depth_and_gradient_checkpointing(tmp_path):
    folder, _ = make_backbone(tmp_path / "backbone", "dinov2")
    gradients = []
    for is_checkpointing in (False, True):
        network = build_network(
            recipe(folder, stochastic_depth=0.5, gradient_checkpointing=is_checkpointing),
            TAGS,
            image_size=32,
        )
        torch.manual_seed(0)
        network.head.weight.data.normal_()
        network.train()
        network(images()).square().sum().backward()
        gradients.append([value.grad for value in network.parameters() if value.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 20
    pairs = list(zip(*gradients, strict=True))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in pairs)
    assert not torch.equal(network.embed(images()), network.embed(images()))


def test_rows_are_kept_by_name_from_one_that_was_trained_here(tmp_path):
    folder, _ = make_backbone(tmp_path / "backbone", "siglip")
    network = build_backbone(recipe(folder), TAGS, str(folder), 32, pooling="both")
    network.head.weight.data.normal_()
    place = save_checkpoint(tmp_path / "checkpoint", some_steps(network), TAGS)
    other = build_network(recipe(place), ("bird", "dog"), image_size=32)
    assert other.pooling == "both"
    assert torch.equal(other.head.weight[1], network.head.weight[1])
    assert not other.head.weight[0].any()
    assert other.start.head.kept == ("dog",)
    assert torch.equal(other.eval().embed(images()), network.embed(images()))
    with pytest.raises(UsageError, match="has a head that reads 'both', and not 'mean'"):
        build_backbone(recipe(place), TAGS, str(place), 32, pooling="mean")


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    folder, _ = make_backbone(tmp_path / "backbone", "vit")
    network = some_steps(build_network(recipe(folder), TAGS, image_size=32))
    place = save_checkpoint(tmp_path / "s", network, TAGS, training_state={"at": 4})
    other = build_network(recipe(folder), TAGS, image_size=32)
    assert load_checkpoint(place, other) == {"at": 4}
    assert torch.equal(other.eval()(images()), network(images()))


def test_images_are_prepared_as_its_own_settings_say(tmp_path):
    folder, _ = make_backbone(tmp_path / "backbone", "dinov3")
    spec = build_network(recipe(folder), TAGS, image_size=48).preprocess
    assert (spec.fit, spec.resample, spec.size) == ("squash", "bilinear", (48, 48))
    assert spec.mean == (0.485, 0.456, 0.406)
    folder, _ = make_backbone(tmp_path / "crops", "dinov2")
    assert build_network(recipe(folder), TAGS, image_size=32).preprocess.fit == "crop"


def test_what_cannot_be_trained_is_one_line(tmp_path):
    folder, _ = make_backbone(tmp_path / "backbone", "vit")
    with pytest.raises(ModelError, match="of vit a head reads pooled, mean or both, and not 'stag"):
        build_backbone(recipe(folder), TAGS, str(folder), 32, pooling="stages")
    with pytest.raises(UsageError, match="patch_dropout must be 0"):
        build_network(recipe(folder, patch_dropout=0.5), TAGS, image_size=32)
    with pytest.raises(UsageError, match="there is no folder"):
        build_network(recipe(tmp_path / "nowhere"), TAGS, image_size=32)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="of the type 'bert', which cannot be trained here; known"):
        build_network(recipe(folder), TAGS, image_size=32)


def test_damaged_taggers_are_one_line(tmp_path):
    folder, _ = make_backbone(tmp_path / "backbone", "vit")
    network = build_network(recipe(folder), TAGS, image_size=32)
    place = save_checkpoint(tmp_path / "checkpoint", network, TAGS)
    tagger = (place / "tagger.json").read_text()
    (place / "tagger.json").write_text(tagger.replace("pooled", "max"))
    with pytest.raises(
        ModelError, match=r"tagger\.json: pooling must be pooled, mean, both or stages"
    ):
        load_model(f"dir:{place}", EXACT)
    (place / "tagger.json").write_text(tagger.replace("pooled", "both"))
    with pytest.raises(ModelError, match=r"do not fit its config\.json: .*size mismatch"):
        load_model(f"dir:{place}", EXACT)
    (place / "tagger.json").write_text(tagger)
    (place / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"cannot read .*model\.safetensors"):
        load_model(f"dir:{place}", replace(EXACT))
