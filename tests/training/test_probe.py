"""Linear probes: features are computed once, the head is trained on them, and the whole tags."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from annotary.errors import ModelError, UsageError  # noqa: E402
from annotary.images import decode  # noqa: E402
from annotary.models import joytag, load_model  # noqa: E402
from annotary.preprocess import fit, to_batch  # noqa: E402
from annotary.runtime import RuntimeOptions  # noqa: E402
from annotary.training.feature_cache import cached_features, image_keys  # noqa: E402
from annotary.training.probe import folded, open_source, train_probe  # noqa: E402
from annotary.training.tagger import TaggerData, TaggerHead, TaggerOptions  # noqa: E402
from tests.taggers import make_joytag  # noqa: E402

TAGS = ("red", "bright")
COUNT = 24
QUICK = TaggerOptions(epochs=40, batch_size=12, learning_rate=0.05, dropout=0.0)


@pytest.fixture
def pictures(tmp_path):
    """Pictures of one colour with some noise, and which are red, and which bright."""
    random = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    paths, targets = [], []
    for number in range(COUNT):
        is_red, is_bright = bool(number % 2), bool(number // 2 % 2)
        colour = np.array([200, 40, 40] if is_red else [40, 40, 200]) * (1.2 if is_bright else 0.5)
        pixels = np.clip(colour + random.normal(0, 6, (40, 30, 3)), 0, 255)
        paths.append(folder / f"{number}.png")
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
        targets.append((is_red, is_bright))
    return paths, np.array(targets, np.uint8)


def scores_of(model, paths):
    spec = model.card.preprocess
    return np.concatenate(
        [
            model.tag_scores(to_batch([fit(decode(p.read_bytes()).pixels, spec)], spec))
            for p in paths
        ]
    )


def probe_on(name, pictures, folder, options=QUICK, runtime=None):
    paths, targets = pictures
    source = open_source(name, runtime)
    found = cached_features(
        source.run, source.spec, source.fingerprint, paths, [str(p) for p in paths], folder
    )
    assert found.computed == len(paths)
    return train_probe(source, found.features, targets, TAGS, options), found


def check(model, probe, found, pictures, tolerance, *, knows_colours=True):
    """The folder gives what the head gave in training; a network of made-up weights need not see everything."""
    paths, targets = pictures
    scores = scores_of(model, paths)
    assert scores == pytest.approx(probe.scores(found.features[0]), abs=tolerance)
    assert np.array_equal(scores > 0.5, targets.astype(bool)) or not knows_colours
    assert scores.std() > 0.01
    assert model.vocabulary.names == TAGS


# What is written


def test_a_joytag_gets_a_new_head(tmp_path, pictures):
    before = make_joytag(tmp_path / "before")
    runtime = RuntimeOptions(runtime="torch", precision="fp32")
    probe, found = probe_on(f"dir:{before}", pictures, tmp_path / "cache", runtime=runtime)
    folder = probe.write(tmp_path / "after", {"balanced": [0.5, 0.6]})
    model = load_model(f"dir:{folder}", runtime)
    check(model, probe, found, pictures, 1e-3, knows_colours=False)
    assert model.card.family == "joytag"
    assert model.vocabulary.thresholds["balanced"] == (0.5, 0.6)
    assert joytag.tag_lines(folder / "top_tags.txt") == TAGS


def test_the_starter_gets_a_new_head(tmp_path, pictures):
    pytest.importorskip("onnx")
    runtime = RuntimeOptions(runtime="onnxruntime")
    probe, found = probe_on("starter", pictures, tmp_path / "cache", runtime=runtime)
    folder = probe.write(tmp_path / "after")
    model = load_model(f"dir:{folder}", runtime)
    check(model, probe, found, pictures, 1e-3)
    assert (model.card.family, model.card.id) == ("onnx_tagger", "after@1.0")
    assert model.features(np.zeros((1, *_shape(model)), model.card.preprocess.dtype)).ndim == 2
    assert not list(tmp_path.glob(".*"))


def _shape(model):
    spec = model.card.preprocess  # of a model, or of a source of features
    return (3, *spec.size) if spec.layout == "nchw" else (*spec.size, 3)


def test_a_joytag_in_onnx_alone_gets_a_new_head(tmp_path, pictures):
    pytest.importorskip("onnxscript")
    before = make_joytag(tmp_path / "before", forms=("model.onnx",))
    runtime = RuntimeOptions(runtime="onnxruntime", precision="fp32")
    probe, found = probe_on(f"dir:{before}", pictures, tmp_path / "cache", runtime=runtime)
    model = load_model(f"dir:{probe.write(tmp_path / 'after')}", runtime)
    # Features that hardly differ get large weights, and with them the last bits of a batch count.
    check(model, probe, found, pictures, 1e-3, knows_colours=False)


def test_a_backbone_gets_a_head(tmp_path, pictures):
    pytest.importorskip("transformers")
    from tests.training.test_backbones import make_backbone

    before, network = make_backbone(tmp_path / "before", "siglip")
    runtime = RuntimeOptions(runtime="torch", precision="fp32")
    probe, found = probe_on(f"dir:{before}", pictures, tmp_path / "cache", runtime=runtime)
    model = load_model(f"dir:{probe.write(tmp_path / 'after')}", runtime)
    check(model, probe, found, pictures, 1e-5)
    assert found.features.shape == (1, COUNT, network.config.vision_config.hidden_size)


def test_a_backbone_runs_as_it_is_asked_to(tmp_path):
    pytest.importorskip("transformers")
    from tests.training.test_backbones import make_backbone

    before, _ = make_backbone(tmp_path / "before", "siglip")
    name = f"dir:{before}"
    batch = None
    found = []
    for precision in ("fp32", "bf16"):
        source = open_source(name, RuntimeOptions(precision=precision, device="cpu"))
        if batch is None:
            batch = np.random.default_rng(0).standard_normal((2, *_shape(source)), np.float32)
        found.append(source.run(batch))
    assert found[0].dtype == found[1].dtype == np.float32
    assert np.array_equal(found[1], _as_bf16(found[1]))
    assert not np.array_equal(found[0], _as_bf16(found[0]))
    assert found[1] == pytest.approx(found[0], abs=0.1)
    with pytest.raises(UsageError, match="cannot run in ONNX Runtime"):
        open_source(name, RuntimeOptions(runtime="onnxruntime"))
    with pytest.raises(UsageError, match="unknown model 'startre'"):
        open_source("startre")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match=r"(?i)cuda"):
            open_source(name, RuntimeOptions(device="cuda"))


def _as_bf16(values):
    return torch.from_numpy(values).bfloat16().float().numpy()


def test_a_backbone_of_the_hub_is_found_again_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from tests.hub_server import COMMIT, FakeRepository, running_hub
    from tests.training.test_backbones import make_backbone

    before, _ = make_backbone(tmp_path / "before", "siglip")
    files = {path.name: path.read_bytes() for path in before.iterdir()}
    with running_hub(monkeypatch, tmp_path / "home") as server:
        server.repositories["someone/backbone"] = FakeRepository({COMMIT: files})
        first = open_source("hf:someone/backbone")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    again = open_source("hf:someone/backbone")
    assert (again.kind, again.fingerprint) == ("backbone", first.fingerprint)
    with pytest.raises(ModelError, match="someone/other is not on this machine"):
        open_source("hf:someone/other")


# How it is trained


def test_folding_the_standardisation_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 50, 8, generator=generator) * 3 + 5
    targets = (torch.rand(50, 4, generator=generator) > 0.7).float()
    head = TaggerHead(8, 4)
    head.prepare(TaggerData(features, targets), generator)
    with torch.no_grad():
        head.last.weight.normal_(generator=generator)
        weight, bias = folded(head)
        assert torch.allclose(features[0] @ weight.T + bias, head(features[0]), atol=1e-5)


def test_what_makes_no_probe_is_one_line(tmp_path, pictures):
    source = open_source(f"dir:{make_joytag(tmp_path / 'model')}")
    features, targets = np.zeros((1, 3, 32), np.float32), np.zeros((3, 2), np.uint8)
    with pytest.raises(UsageError, match="a probe is linear"):
        train_probe(source, features, targets, TAGS, TaggerOptions(hidden=3))
    with pytest.raises(UsageError, match="got 0 images and 2 tags"):
        train_probe(source, features, targets, TAGS, is_known=np.zeros(3, np.bool_))
    with pytest.raises(UsageError, match="there is no folder"):
        open_source("dir:nowhere")


# The cache


class Counting:
    """Mean colours as features, and how many images were asked for."""

    def __init__(self):
        self.images = 0

    def __call__(self, batch):
        self.images += len(batch)
        weights = np.linspace(0, 1, batch.shape[-1], dtype=np.float32)
        return np.concatenate([batch.mean((2, 3)), (batch * weights).mean((2, 3))], axis=1)


SPEC = joytag.preprocess_of(32)


def test_features_are_computed_once(tmp_path, pictures):
    paths, keys = pictures[0], [path.name for path in pictures[0]]
    run = Counting()
    first = cached_features(run, SPEC, "a", paths[:20], keys[:20], tmp_path / "c")
    again = cached_features(run, SPEC, "a", paths[4:], keys[4:], tmp_path / "c")
    assert (first.computed, again.computed, run.images) == (20, 4, 24)
    assert np.array_equal(first.features[:, 4:], again.features[:, :16])
    expected = Counting()(to_batch([fit(decode(paths[7].read_bytes()).pixels, SPEC)], SPEC))
    assert np.array_equal(first.features[0, 7:8], expected)
    for other in ({"fingerprint": "b"}, {"spec": joytag.preprocess_of(64)}, {"is_mirrored": True}):
        more = {"spec": SPEC, "fingerprint": "a", **other}
        found = cached_features(run, paths=paths, keys=keys, folder=tmp_path / "c", **more)
        assert found.computed == 24


def test_a_second_view_is_mirrored(tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :16] = 255
    for name, image in (("one", pixels), ("other", pixels[:, ::-1])):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    paths = [tmp_path / "one.png", tmp_path / "other.png"]
    found = cached_features(
        Counting(), SPEC, "a", paths, ["one", "other"], tmp_path / "c", is_mirrored=True
    )
    assert found.features.shape == (2, 2, 6)
    assert np.array_equal(found.features[0, 0], found.features[1, 1])
    assert not np.allclose(found.features[0, 0], found.features[1, 0])


def test_images_that_cannot_be_read_are_told_and_tried_again(tmp_path, pictures):
    paths = [*pictures[0][:3], tmp_path / "damaged.png", tmp_path / "absent.png"]
    paths[3].write_bytes(b"no picture")
    keys = [path.name for path in paths]
    found = cached_features(Counting(), SPEC, "a", paths, keys, tmp_path / "c")
    assert found.is_known.tolist() == [True, True, True, False, False]
    assert not found.features[0, 3:].any()
    assert [path.name for path, _ in found.failures] == ["damaged.png", "absent.png"]
    assert all("\n" not in why for _, why in found.failures)
    paths[3].write_bytes(paths[0].read_bytes())
    assert cached_features(Counting(), SPEC, "a", paths, keys, tmp_path / "c").computed == 2


def test_a_stopped_run_goes_on_with_what_is_written(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr("annotary.training.feature_cache._IN_A_PART", 8)
    paths, keys = pictures[0], [path.name for path in pictures[0]]

    def stop(done, _all):
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_features(Counting(), SPEC, "a", paths, keys, tmp_path / "c", report=stop)
    part = next((tmp_path / "c").rglob("*.npz"))
    part.write_bytes(part.read_bytes()[:100])  # one of the two is damaged
    run = Counting()
    found = cached_features(run, SPEC, "a", paths, keys, tmp_path / "c")
    assert (found.computed, run.images) == (16, 16)
    whole = cached_features(Counting(), SPEC, "a", paths, keys, tmp_path / "other")
    assert np.array_equal(found.features, whole.features)


def test_reduced_pictures_have_keys_of_their_own(tmp_path):
    digest = np.arange(32, dtype=np.uint8)[None]
    name = digest.tobytes().hex()
    original, reduced = (
        image_keys(digest, [path]) for path in (tmp_path / "a.jpg", tmp_path / f"{name}.webp")
    )
    assert original == [name]
    assert reduced == [f"{name}-.webp"]
