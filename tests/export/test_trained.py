"""What training writes becomes ONNX that says the same: checkpoints, fine-tuned vision networks, probes."""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

from annotary.cards import check_files, read_card, read_vocabulary  # noqa: E402
from annotary.cli import annotary  # noqa: E402
from annotary.errors import ModelError  # noqa: E402
from annotary.export import ExportOptions, export_model  # noqa: E402
from annotary.export import _model as model_module  # noqa: E402
from annotary.export._graphs import write_torch  # noqa: E402
from annotary.models import load_model  # noqa: E402
from annotary.models._vision_tagger_network import VisionTaggerForUse  # noqa: E402
from annotary.runtime import RuntimeOptions, precision_of  # noqa: E402
from annotary.training.backbones import build_backbone  # noqa: E402
from annotary.training.checkpoints import save_checkpoint  # noqa: E402
from annotary.training.trainer import Trainer  # noqa: E402
from tests.conftest import child_environment  # noqa: E402
from tests.taggers import make_joytag  # noqa: E402
from tests.training.small_dataset import TAGS, make_dataset, small_recipe  # noqa: E402
from tests.training.test_backbones import BACKBONES, make_backbone, recipe  # noqa: E402

needs_nncf = pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None, reason="the extra export is not installed"
)

EXACT = RuntimeOptions(device="cpu", precision="fp32")
WORDS = ("cat", "dog", "^_^")
KINDS = ("animal", "animal", "face")
FITTED = (0.25, 0.5, 0.625)

WAYS = {
    "dinov2": (32, "both"),
    "dinov2 with registers": (32, "mean"),
    "dinov3": (32, "pooled"),
    "vit": (48, "pooled"),
    "siglip": (48, "both"),
    "clip": (32, "pooled"),
}
"""Side of the images in pixels, where 32 is that of the backbone, and what the head reads."""

USE = """
import sys
import numpy as np
from annotary.models import load_model
from annotary.runtime import RuntimeOptions
model = load_model(f"dir:{sys.argv[1]}", RuntimeOptions(device="cpu"))
assert model.features(np.zeros((3, 3, 32, 32), np.float32)).shape == (3, 32)
print(sorted({"torch", "transformers"} & set(sys.modules)))
"""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(annotary, [str(argument) for argument in arguments])


def tagged(photos: Path, model: Path, precision: str = "fp32") -> dict[str, dict[str, float]]:
    """What the command says of the photos: the tags of each, and their scores."""
    run = call(
        *("tag", photos, "--model", f"dir:{model}", "--json", "--quiet"),
        *("--precision", precision, "--device", "cpu", "--threads", "1"),
    )
    assert run.exit_code == 0, run.output
    lines = map(json.loads, run.stdout.splitlines())
    return {line["image"]: {one["name"]: one["score"] for one in line["tags"]} for line in lines}


def assert_same_tags(photos: Path, first: Path, second: Path) -> None:
    before, now = tagged(photos, first), tagged(photos, second)
    assert before.keys() == now.keys()
    for image, tags in before.items():
        assert now[image] == pytest.approx(tags, abs=1e-4), image
    given = sum(map(len, before.values()))
    assert 0 < given < len(before) * len(read_vocabulary(first))


@pytest.fixture(autouse=True)
def shallow(monkeypatch) -> None:
    """One layer is enough here, and written down in half the time."""
    for kind, (config, model, settings) in BACKBONES.items():
        network = settings.get("vision_config", settings) | {"num_hidden_layers": 1}
        of_both = {**settings, "vision_config": network}
        changed = of_both if "vision_config" in settings else network
        monkeypatch.setitem(BACKBONES, kind, (config, model, changed))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A dataset, with its photos in `originals`, and the checkpoint of a short run."""
    folder = tmp_path_factory.mktemp("trained")
    dataset = make_dataset(folder / "data")
    short = small_recipe("stages=[{image_size=16, samples=48}]", "network.num_blocks=1")
    best = Trainer(short, dataset, folder / "run", quiet=True).run().best
    best.rename(folder / "checkpoint")
    return folder


@needs_nncf
def test_a_checkpoint_becomes_fp32_and_then_int8(place, tmp_path):
    photos = place / "data" / "originals"
    checkpoint, plain, small = place / "checkpoint", tmp_path / "fp32", tmp_path / "int8"
    made = call("export", f"dir:{checkpoint}", "--precision", "fp32", "--output", plain)
    assert made.exit_code == 0, made.output
    version = read_card(checkpoint).version
    assert made.stdout.startswith(f"joytag-fp32@{version}: ")
    assert json.loads((plain / "parity.json").read_text())["largest_difference"] < 1e-5
    fitted = read_vocabulary(checkpoint)
    assert fitted.names == TAGS
    assert set(fitted.categories) == {"shape", "colour"}
    assert len(set(fitted.thresholds["balanced"])) > 1
    assert read_vocabulary(plain) == fitted
    assert_same_tags(photos, checkpoint, plain)

    made = call("export", f"dir:{plain}", "--calibrate", photos, "--samples", 8, "--output", small)
    assert made.exit_code == 0, made.output
    assert precision_of(small / "model.onnx") == "int8"
    assert read_vocabulary(small) == fitted
    card = read_card(small)
    check_files(card, small)
    assert (card.family, card.source) == ("onnx_tagger", f"joytag-fp32@{version}")
    exact, rounded = (
        load_model(f"dir:{one}", RuntimeOptions(device="cpu")) for one in (plain, small)
    )
    images = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)
    assert rounded.tag_scores(images) == pytest.approx(exact.tag_scores(images), abs=0.1)
    assert tagged(photos, small, "auto").keys() == tagged(photos, plain).keys()


def vision_tagger(folder: Path, kind: str, side: int = 32, pooling: str = "pooled") -> Path:
    """A checkpoint of a small network by chance, with fitted thresholds and categories."""
    backbone, _ = make_backbone(folder / "backbone", kind)
    network = build_backbone(recipe(backbone), WORDS, str(backbone), side, pooling=pooling)
    torch.nn.init.normal_(network.head.weight, std=0.5)
    return save_checkpoint(
        *(folder / "checkpoint", network, WORDS),
        thresholds={"balanced": FITTED},
        categories=KINDS,
        about={"name": "mine", "version": "1.0", "licence": "Apache-2.0"},
    )


def assert_like(checkpoint: Path, made: Path) -> None:
    """That an exported directory gives scores and features of its checkpoint for any number of images."""
    source, model = (load_model(f"dir:{one}", EXACT) for one in (checkpoint, made))
    assert "ONNX" in model.choice.library or "OpenVINO" in model.choice.library
    generator = np.random.default_rng(0)
    for count in (1, 2, 5):
        images = generator.normal(size=(count, 3, *model.card.preprocess.size)).astype(np.float32)
        expected = source.tag_scores(images)
        assert model.tag_scores(images) == pytest.approx(expected, abs=1e-5)
        assert model.features(images) == pytest.approx(source.features(images), abs=1e-4)
        assert len(np.unique(expected)) > count


def test_every_backbone_has_a_way():
    assert WAYS.keys() <= BACKBONES.keys()
    assert {pooling for _, pooling in WAYS.values()} == {"pooled", "mean", "both"}


@pytest.mark.parametrize("kind", WAYS)
def test_a_vision_network_gives_the_same_in_onnx(tmp_path, kind):
    side, pooling = WAYS[kind]
    checkpoint = vision_tagger(tmp_path, kind, side, pooling)
    done = export_model(f"dir:{checkpoint}", ExportOptions("fp32"), tmp_path / "made")
    assert done.parity.largest_difference < 1e-5
    assert {path.name for path in done.directory.iterdir()} == {
        *("card.toml", "model.onnx", "tags.csv", "parity.json")
    }
    card = read_card(done.directory)
    assert (card.id, card.family, card.source) == ("mine-fp32@1.0", "onnx_tagger", "mine@1.0")
    assert (card.licence, card.preprocess) == ("Apache-2.0", read_card(checkpoint).preprocess)
    check_files(card, done.directory)
    vocabulary = read_vocabulary(done.directory)
    assert (vocabulary.names, vocabulary.categories) == (WORDS, KINDS)
    assert vocabulary.thresholds == {"balanced": FITTED}
    assert_like(checkpoint, done.directory)


@needs_nncf
def test_int8_of_a_vision_network_runs_without_torch(tmp_path, calibration):
    checkpoint = vision_tagger(tmp_path, "vit")
    options = ExportOptions("int8", (str(calibration),), samples=8)
    done = export_model(f"dir:{checkpoint}", options, tmp_path / "made")
    assert done.parity.calibrated_on == 8
    assert 0 < done.parity.largest_difference < 0.1
    assert precision_of(done.directory / "model.onnx") == "int8"
    assert read_vocabulary(done.directory).thresholds == {"balanced": FITTED}
    used = subprocess.run(
        [sys.executable, "-W", "error", "-c", USE, str(done.directory)],
        capture_output=True,
        text=True,
        env=child_environment(),
        check=False,
    )
    assert (used.returncode, used.stdout) == (0, "[]\n"), used.stderr


@pytest.mark.parametrize("kind", ["joytag", "clip"])
def test_a_probe_says_the_same_in_onnx(place, tmp_path, kind):
    if kind == "joytag":
        model = make_joytag(tmp_path / "joytag")
    else:
        model, _ = make_backbone(tmp_path / "backbone", kind)
    run = call(
        *("train", "probe", "--data", place / "data", "--output", tmp_path / "run"),
        *("--model", f"dir:{model}", "--epochs", 20, "--threads", 1, "--quiet"),
    )
    assert run.exit_code == 0, run.output
    tagger, made = tmp_path / "run" / "tagger", tmp_path / "made"
    assert read_card(tagger).family == ("joytag" if kind == "joytag" else "vision_tagger")
    export_model(f"dir:{tagger}", ExportOptions("fp32"), made)
    assert read_vocabulary(made) == read_vocabulary(tagger)
    assert_same_tags(place / "data" / "originals", tagger, made)


def test_what_torch_cannot_write_is_one_line(tmp_path, monkeypatch, capfd):
    def odd(self, images):
        embedding = self.embed(images)
        return torch.special.airy_ai(self.head(embedding)), embedding

    checkpoint = vision_tagger(tmp_path, "vit")
    capfd.readouterr()
    monkeypatch.setattr(VisionTaggerForUse, "forward", odd)
    with pytest.raises(ModelError) as raised:
        export_model(f"dir:{checkpoint}", ExportOptions("fp32"), tmp_path / "out" / "made")
    told = str(raised.value)
    assert told.startswith("mine@1.0 cannot be written as ONNX: No ONNX function found for ")
    assert "\n" not in told
    assert capfd.readouterr() == ("", "")
    assert not list((tmp_path / "out").iterdir())


def test_int8_is_not_made_of_what_was_written_down_wrongly(
    joytag, calibration, tmp_path, monkeypatch
):
    def wrong(network, *more):
        other = copy.deepcopy(network)
        other.head.bias += 0.5
        write_torch(other, *more)

    monkeypatch.setattr(model_module, "write_torch", wrong)
    options = ExportOptions("int8", (str(calibration),), samples=8)
    with pytest.raises(ModelError, match=r"gives other scores in ONNX, by up to 0\.1\d*; nothing"):
        export_model(f"dir:{joytag}", options, tmp_path / "made")
    assert not list(tmp_path.iterdir())
