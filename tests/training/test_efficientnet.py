"""The starter's network with a head of ours: read back from integers, trained whole, written down, and read again."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

import annotary  # noqa: E402
from annotary.errors import ModelError, UsageError  # noqa: E402
from annotary.images import decode  # noqa: E402
from annotary.models import find, load_model  # noqa: E402
from annotary.models._efficientnet_backbone import (  # noqa: E402
    POOLED_STAGES,
    EfficientNetBackbone,
    mean_and_spread,
    preprocess_of,
)
from annotary.models._efficientnet_lite import (  # noqa: E402
    EfficientNetLite,
    EfficientNetLiteConfig,
)
from annotary.preprocess import fit, to_batch  # noqa: E402
from annotary.runtime import RuntimeOptions  # noqa: E402
from annotary.training._integer_tower import VARIANTS, read_tower  # noqa: E402
from annotary.training.backbones import build_backbone  # noqa: E402
from annotary.training.checkpoints import save_checkpoint  # noqa: E402
from annotary.training.efficientnet import (  # noqa: E402
    EfficientNetTagger,
    TrainingBackbone,
    efficientnet_start,
)
from annotary.training.network import build_network  # noqa: E402
from annotary.training.recipe import NetworkRecipe, read_recipe  # noqa: E402
from tests.conftest import child_environment  # noqa: E402

TAGS = ("cat", "dog", "^_^")
SMALL = EfficientNetLiteConfig(width=0.25, depth=0.4, image_size=32, classes=1)
EXACT = RuntimeOptions(runtime="torch", precision="fp32", threads=1)
STARTER = Path(annotary.__file__).parent / "weights" / "starter"
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks of this size gain nothing by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(side=32, count=3):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def unfolded(config):
    """A network of chance whose norms say something."""
    torch.manual_seed(0)
    network = EfficientNetLite(config).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.3, 0.6)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0.2, 0.3)
    return network


def body_weights(network):
    state = network.state_dict()
    return {name: value for name, value in state.items() if not name.startswith("classifier.")}


def small_tagger(pooling="stages", tags=TAGS):
    """A small network of chance, standardised by what it gives for some images."""
    backbone = TrainingBackbone(SMALL, pooling)
    backbone.load_state_dict(body_weights(unfolded(SMALL).fold()), strict=False)
    network = EfficientNetTagger(backbone, len(tags), preprocess_of(SMALL.image_size)).eval()
    with torch.no_grad():
        found = network.embed(images(count=16))
        backbone.standardise(found.mean(0), 1 / (found.std(0) + 0.1))
        network.head.weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(2))
    return network


def make_small(folder, pooling="stages", tags=TAGS):
    return save_checkpoint(folder, small_tagger(pooling, tags), tags)


def recipe(start, **more):
    more = {"stochastic_depth": 0.0, **more}
    return NetworkRecipe(kind="backbone", start=str(start), **more)


def some_steps(network, count=2):
    network.train()
    trained = [value for value in network.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-3)
    for _ in range(count):
        optimiser.zero_grad()
        network(images(network.image_size)).square().mean().backward()
        optimiser.step()
    return network.eval()


# What it starts from


@pytest.fixture(scope="module")
def from_starter():
    pytest.importorskip("onnx")
    return build_network(recipe("starter"), TAGS, image_size=260).eval()


@pytest.mark.parametrize("name", ["cat", "mountains"])
def test_features_are_those_of_the_starter(from_starter, name):
    """They differ by the rounding to 8 bits: the correlation is 0.988 to 0.999 over the photos of `examples`."""
    model = load_model("starter", RuntimeOptions(runtime="onnxruntime", threads=1))
    pixels = decode((EXAMPLES / f"{name}.jpg").read_bytes()).pixels
    batches = [
        to_batch([fit(pixels, spec)], spec)
        for spec in (model.card.preprocess, from_starter.preprocess)
    ]
    expected = model.features(batches[0])[0]
    with torch.inference_mode():
        found = from_starter.embed(torch.from_numpy(batches[1]))[0].numpy()
    assert found.shape == expected.shape == (2912,)
    assert np.corrcoef(found, expected)[0, 1] > 0.97
    assert found.std() == pytest.approx(expected.std(), rel=0.05)
    assert np.abs(found - expected).mean() < 0.15


def test_the_starter_is_a_start_with_a_new_head(from_starter):
    assert from_starter.preprocess == preprocess_of(260)
    assert from_starter.pooling == "stages"
    assert from_starter.start.head.new == TAGS
    assert not from_starter.head.weight.any()
    assert sum(value.numel() for value in from_starter.backbone.parameters()) == 4_782_024
    assert {value.dtype for value in from_starter.parameters()} == {torch.float32}
    assert efficientnet_start(f"dir:{STARTER}") == STARTER
    other = build_backbone(recipe("starter"), TAGS, f"dir:{STARTER}", 300, pooling="mean").eval()
    assert "images have 300 pixels a side, and its own have 260" in str(other.start)
    with torch.inference_mode():
        whole, part = from_starter.embed(images(64)), other.embed(images(64))
    assert part.shape == (3, 1280)
    assert torch.equal(whole[:, :1280], part)


def test_rows_of_a_probe_on_the_starter_are_kept(tmp_path):
    pytest.importorskip("onnx")
    from annotary.training.probe import Probe, open_source

    source = open_source("starter", RuntimeOptions(runtime="onnxruntime", threads=1))
    weight = np.random.default_rng(0).normal(0, 0.05, (3, 2912)).astype(np.float32)
    probe = Probe(source, TAGS, weight, np.array([0.5, -1.0, 2.0], np.float32))
    place = probe.write(tmp_path / "probe")
    network = build_network(recipe(f"dir:{place}"), ("bird", "dog", "cat"), image_size=260)
    assert network.start.head.kept == ("dog", "cat")
    assert np.array_equal(network.head.weight[1:].detach().numpy(), weight[[1, 0]])
    assert network.head.bias.tolist() == [0.0, -1.0, 0.5]
    assert not network.head.weight[0].any()
    assert network.preprocess == preprocess_of(260)
    smaller = build_backbone(recipe("starter"), TAGS, f"dir:{place}", 260, pooling="mean")
    assert smaller.start.head.kept == ()
    table = (place / "tags.csv").read_text(encoding="utf-8").splitlines()
    (place / "tags.csv").write_text("\n".join(table[:-1]) + "\n", encoding="utf-8")
    with pytest.raises(ModelError, match=r"has a head that does not fit its tags\.csv"):
        build_network(recipe(f"dir:{place}"), TAGS, image_size=260)


def test_what_is_no_such_tower_is_told(tmp_path):
    onnx = pytest.importorskip("onnx")
    with pytest.raises(ModelError, match=r"text\.onnx has 0 convolutions, which are those of no"):
        read_tower(STARTER / "text.onnx")
    with pytest.raises(
        ModelError,
        match=r"model\.onnx has 64 convolutions, which are those of no EfficientNet-Lite$",
    ):
        read_tower(STARTER / "model.onnx", [VARIANTS["Lite0"]])
    wide = EfficientNetLiteConfig(1.2, 1.2, 260, classes=1)
    with pytest.raises(
        ModelError, match=r"number 3 is \(16, 32, 1, 1, 1\), where \(24, 32, 1, 1, 1\) was"
    ):
        read_tower(STARTER / "model.onnx", [wide])
    (tmp_path / "model.onnx").write_bytes(b"no network")
    with pytest.raises(ModelError, match=r"cannot read .*model\.onnx"):
        build_network(recipe(tmp_path), TAGS, image_size=260)
    model = onnx.load(STARTER / "model.onnx")
    next(node for node in model.graph.node if "features" in node.output).op_type = "Div"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="does not make 'features' by taking off a mean"):
        read_tower(tmp_path / "model.onnx")


def test_a_reference_state_dict_is_a_start(tmp_path):
    from tests.models.test_efficientnet_lite import reference_names

    network = unfolded(EfficientNetLiteConfig(1.0, 1.0, 224, classes=10))
    torch.save(reference_names_of(network, reference_names), tmp_path / "lite0.pth")
    started = build_network(recipe(tmp_path / "lite0.pth"), TAGS, image_size=64).eval()
    assert "EfficientNet-Lite0; what its head reads is not standardised" in str(started.start)
    with torch.inference_mode():
        expected = network.stages(images(64))[-1].mean((2, 3))
        found = started.embed(images(64))[:, :1280]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    for content in ({"weight": torch.zeros(1)}, {"_fc.weight": torch.zeros(2, 2)}):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(ModelError, match=r"other\.pth (holds no weights of|has weights of no)"):
            build_network(recipe(tmp_path / "other.pth"), TAGS, image_size=64)


def reference_names_of(network, rename):
    """The state dict of a network under the reference's names: those of its config, in the same order."""
    return dict(zip(rename(network.config), network.state_dict().values(), strict=True))


# What it is


def test_a_folded_backbone_gives_what_its_unfolded_form_gives():
    network = unfolded(SMALL)
    backbone = EfficientNetBackbone(SMALL).eval()
    backbone.load_state_dict(body_weights(unfolded(SMALL).fold()), strict=False)
    with torch.inference_mode():
        maps = network.stages(images(48))
        parts = [maps[-1].mean((2, 3))]
        for stage in POOLED_STAGES:
            flat = maps[stage].flatten(2)
            parts += [flat.mean(2), flat.var(2, unbiased=False).clamp(min=1e-6).sqrt()]
        found = backbone(images(48))
    expected = torch.cat(parts, dim=1)
    assert found.shape == (3, backbone.width)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert expected.std() > 0.05


def test_the_spread_of_what_is_all_alike_is_the_least():
    mean, spread = mean_and_spread(torch.full((1, 2, 3, 3), 5.0))
    assert mean.tolist() == [[5.0, 5.0]]
    assert spread.numpy() == pytest.approx(1e-3)


@pytest.mark.parametrize("pooling", ["stages", "mean", "pooled"])
def test_a_trained_network_comes_back_as_a_tagger(tmp_path, pooling):
    network = build_network(recipe(make_small(tmp_path / "start", pooling)), TAGS, image_size=40)
    some_steps(network)
    place = save_checkpoint(tmp_path / "checkpoint", network, TAGS, training_state={"at": 1})
    with torch.inference_mode():
        expected, embedding = network(images(40)), network.embed(images(40))
    model = load_model(f"dir:{place}", EXACT)
    assert model.tag_scores(images(40).numpy()) == pytest.approx(
        expected.sigmoid().numpy(), abs=1e-5
    )
    assert model.features(images(40).numpy()) == pytest.approx(embedding.numpy(), abs=1e-5)
    assert embedding.shape[1] == (1280 if pooling != "stages" else network.backbone.width)
    assert (model.card.family, model.card.preprocess) == ("vision_tagger", preprocess_of(40))
    (place / "card.toml").unlink()
    assert find(f"dir:{place}").card.family == "vision_tagger"


def test_half_precision_comes_near(tmp_path):
    place = make_small(tmp_path / "checkpoint")
    exact = load_model(f"dir:{place}", EXACT).tag_scores(images().numpy())
    half = load_model(f"dir:{place}", RuntimeOptions(runtime="torch", precision="bf16"))
    assert half.tag_scores(images().numpy()) == pytest.approx(exact, abs=0.05)


def test_rows_are_kept_by_name_from_an_earlier_run(tmp_path):
    place = make_small(tmp_path / "start")
    before = small_tagger()
    other = build_network(recipe(place), ("bird", "dog"), image_size=32).eval()
    assert torch.equal(other.head.weight[1], before.head.weight[1])
    assert not other.head.weight[0].any()
    assert other.start.head.kept == ("dog",)
    assert torch.equal(other.embed(images()), before.embed(images()))
    with pytest.raises(UsageError, match="has a head that reads 'stages', and not 'mean'"):
        build_backbone(recipe(place), TAGS, str(place), 32, pooling="mean")


def test_what_a_head_cannot_read_is_refused(tmp_path):
    with pytest.raises(ModelError, match="a head reads pooled, mean or stages, and not 'both'"):
        build_backbone(recipe(STARTER), TAGS, "starter", 260, pooling="both")
    place = make_small(tmp_path / "start")
    config = (place / "config.json").read_text()
    (place / "config.json").write_text(config.replace("0.25", "-1"))
    with pytest.raises(ModelError, match=r"config\.json: width must be above 0"):
        load_model(f"dir:{place}", EXACT)
    (place / "config.json").write_text(config.replace('"width"', '"wide"'))
    with pytest.raises(ModelError, match=r"config\.json: 'width' is missing"):
        build_network(recipe(place), TAGS, image_size=32)
    with pytest.raises(UsageError, match="patch_dropout must be 0"):
        build_network(recipe(make_small(place), patch_dropout=0.5), TAGS, image_size=32)


def test_neither_transformers_nor_torchvision_is_imported(tmp_path):
    place = make_small(tmp_path / "start")
    code = (
        "import sys, numpy as np\n"
        "from annotary.models import load_model\n"
        "from annotary.training.network import build_network\n"
        "from annotary.training.recipe import NetworkRecipe\n"
        f"name = {f'dir:{place}'!r}\n"
        "build_network(NetworkRecipe(kind='backbone', start=name), ('a',), image_size=32)\n"
        "load_model(name).tag_scores(np.zeros((1, 3, 32, 32), np.float32))\n"
        "print([name for name in ('transformers', 'torchvision', 'onnx') if name in sys.modules])\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**child_environment(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "[]"


# How it is trained


def test_depths_rise_from_the_stem_to_the_head(tmp_path):
    network = build_network(recipe(make_small(tmp_path / "start")), TAGS, image_size=32)
    found: dict[int, set[str]] = {}
    for name, _ in network.named_parameters():
        found.setdefault(network.depth_of(name), set()).add(".".join(name.split(".")[:3]))
    assert found[0] == {"backbone.stem.conv"}
    blocks = ([0], [1], [2], [3, 4], [5, 6], [7, 8], [9])
    assert [found[depth] for depth in range(1, 8)] == [
        {f"backbone.blocks.{number}" for number in stage} for stage in blocks
    ]
    assert found[8] == {"backbone.head.conv", "head.weight", "head.bias"}
    assert (network.depths, len(found)) == (9, 9)


def test_blocks_of_a_stage_have_one_depth(from_starter):
    depths = [from_starter.depth_of(f"backbone.blocks.{number}.x") for number in range(21)]
    assert depths == sorted(depths)
    assert [depths.count(stage) for stage in range(1, 8)] == [1, 3, 3, 4, 4, 5, 1]


def test_a_frozen_body_stays_as_it_is(tmp_path):
    start = make_small(tmp_path / "start")
    network = build_network(recipe(start, freeze="body", stochastic_depth=0.5), TAGS, image_size=32)
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    head = network.head.weight.clone()
    some_steps(network)
    after = network.backbone.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not torch.equal(network.head.weight, head)
    network.train()
    assert torch.equal(network.embed(images()), network.embed(images()))


def test_all_of_it_is_trained(tmp_path):
    network = build_network(recipe(make_small(tmp_path / "start")), TAGS, image_size=32)
    before = {name: value.clone() for name, value in network.named_parameters()}
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    some_steps(network)
    still = [name for name, value in network.named_parameters() if torch.equal(value, before[name])]
    assert not still
    assert all(torch.equal(value, buffers[name]) for name, value in network.named_buffers())


def test_what_is_read_stays_in_float32_with_16_bits(from_starter):
    pixels = decode((EXAMPLES / "cat.jpg").read_bytes()).pixels
    spec = from_starter.preprocess
    batch = torch.from_numpy(to_batch([fit(pixels, spec)], spec))
    with torch.no_grad():
        exact = from_starter.embed(batch)
        with torch.autocast("cpu", torch.bfloat16):
            found, logits = from_starter.embed(batch), from_starter(batch)
    assert (found.dtype, logits.dtype) == (torch.float32, torch.bfloat16)
    assert np.corrcoef(found.flatten(), exact.flatten())[0, 1] > 0.99


def test_blocks_are_computed_again_with_the_same_gradients(tmp_path):
    start = make_small(tmp_path / "start")
    gradients = []
    for is_on in (False, True):
        network = build_network(
            recipe(start, stochastic_depth=0.5, gradient_checkpointing=is_on), TAGS, image_size=32
        )
        assert network.gradient_checkpointing == is_on
        kept = 0

        def keep(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        network.train()
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = network(images()).square().sum()
        loss.backward()
        gradients.append((kept, [value.grad for value in network.parameters()]))
    assert gradients[1][0] < 0.7 * gradients[0][0]
    for one, other in zip(gradients[0][1], gradients[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_some_images_skip_blocks(from_starter):
    network = from_starter
    try:
        network.stochastic_depth = 0.5
        with torch.no_grad():
            still = network.eval().embed(images(32))
            assert torch.equal(still, network.embed(images(32)))
            network.train()
            assert not torch.equal(network.embed(images(32)), network.embed(images(32)))
            network.stochastic_depth = 0.0
            torch.testing.assert_close(network.embed(images(32)), still)
    finally:
        network.stochastic_depth = 0.0
        network.eval()


RUN = (
    *("data.batch_size=8", "data.device_batch_size=4", "data.workers=0", "data.minimum_tags=1"),
    *("network.stochastic_depth=0.3", "averaging.decay=0.9", "augmentation.mixup=0.4"),
    *("schedule.warm_up=8", "validation.every=32", "checkpoints.every=16"),
    "stages=[{image_size=32, samples=24}, {image_size=40, samples=24}]",
)


def test_a_stopped_run_has_the_same_bits_and_its_checkpoint_tags(tmp_path):
    pytest.importorskip("pyarrow")
    from safetensors.torch import load_file

    from annotary.training.trainer import Trainer
    from tests.training.small_dataset import TAGS as COLOURS
    from tests.training.small_dataset import make_dataset
    from tests.training.test_trainer import Stop, stop_at_part

    dataset = make_dataset(tmp_path / "data")
    start = make_small(tmp_path / "start", tags=(*TAGS, "dot"))
    told = read_recipe("backbone", (f"network.start=dir:{start}", *RUN))
    whole = Trainer(told, dataset, tmp_path / "whole", quiet=True).run()
    for part in (5, 4, 6):
        with pytest.MonkeyPatch.context() as patch:
            stop_at_part(patch, part)
            with pytest.raises(Stop):
                Trainer(told, dataset, tmp_path / "stopped", quiet=True).run()
    again = Trainer(told, dataset, tmp_path / "stopped", quiet=True).run()
    rows = [
        [row[:6] for row in csv.reader((tmp_path / name / "steps.csv").read_text().splitlines())]
        for name in ("whole", "stopped")
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 7
    weights = [load_file(one.last / "model.safetensors") for one in (whole, again)]
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())
    model = load_model(f"dir:{again.last}", EXACT)
    assert model.card.preprocess.size == (40, 40)
    assert model.tag_scores(images(40).numpy()).shape == (3, len(COLOURS))


def test_a_probe_reads_a_checkpoint(tmp_path):
    from annotary.training.probe import open_source, train_probe
    from annotary.training.tagger import TaggerOptions

    place = make_small(tmp_path / "start")
    source = open_source(f"dir:{place}", EXACT)
    features = source.run(images(count=12).numpy())
    targets = np.array([[number % 2, number % 3 == 0] for number in range(12)], np.uint8)
    options = TaggerOptions(epochs=20, batch_size=6, learning_rate=0.05, dropout=0.0)
    probe = train_probe(source, features[None], targets, ("odd", "third"), options)
    model = load_model(f"dir:{probe.write(tmp_path / 'after')}", EXACT)
    assert model.vocabulary.names == ("odd", "third")
    found = model.tag_scores(images(count=12).numpy())
    assert found == pytest.approx(probe.scores(features), abs=1e-4)
    assert np.array_equal(found > 0.5, targets.astype(bool))
