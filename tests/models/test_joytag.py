"""JoyTag: its directory in both runtimes against the specification's numbers, its images against the reference's."""

from __future__ import annotations

import builtins
import errno
import io
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from annotary import weights  # noqa: E402
from annotary.cards import read_card  # noqa: E402
from annotary.errors import MissingExtra, ModelError, UsageError  # noqa: E402
from annotary.images import DecodeOptions, decode  # noqa: E402
from annotary.models import find, joytag, load_model  # noqa: E402
from annotary.preprocess import fit, to_batch  # noqa: E402
from annotary.runtime import RuntimeOptions  # noqa: E402
from tests.taggers import (  # noqa: E402
    SMALL_JOYTAG,
    SMALL_TAGS,
    make_joytag,
    move_weights_out,
)

GOLDEN_LOGITS = (0.7092, -0.9252, 0.6282, -0.1373, 0.1224)
GOLDEN_EMBEDDING = (-1.1947, -0.6700, -0.0034, -0.3572)
RUNTIMES = ("torch", "onnxruntime", *(("openvino",) if find_spec("openvino") else ()))

VARIANTS = {
    "plain patches": {"cnn_stem": None},
    "learned positions": {"use_sine": False},
    "batch norms": {"cnn_stem": "conv:c=6,s=4;bn;gelu;conv:c=32,s=4,k=4,p=0"},
    "head before the mean": {"head_mean_after": True},
    "layer scale": {"num_blocks": 3, "layerscale_init": 0.5},
}


def golden_input(count: int = 1) -> np.ndarray:
    image = np.linspace(-1, 1, 3 * 64 * 64, dtype=np.float32).reshape(1, 3, 64, 64)
    return np.concatenate([image * (1 - 0.1 * i) for i in range(count)])


def exact(runtime: str) -> RuntimeOptions:
    return RuntimeOptions(runtime=runtime, precision="fp32")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The small network in all forms."""
    forms = ("model.safetensors", "model.onnx")
    return make_joytag(tmp_path_factory.mktemp("joytag") / "small", forms=forms)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_scores_and_embedding_are_the_golden_numbers(directory, runtime):
    model = load_model(f"dir:{directory}", exact(runtime))
    scores = model.tag_scores(golden_input())
    expected = 1 / (1 + np.exp(-np.array([GOLDEN_LOGITS])))
    assert scores == pytest.approx(expected, abs=1.3e-5)  # four decimals of a logit
    assert scores.dtype == np.float32
    features = model.features(golden_input())
    assert features.shape == (1, 32)
    assert features.dtype == np.float32
    assert features[0, :4] == pytest.approx(np.array(GOLDEN_EMBEDDING), abs=5.1e-5)
    assert model.tag_scores(golden_input()) == pytest.approx(scores, abs=1e-6)
    names = {"torch": "torch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    assert model.choice.library.startswith(names[runtime])


def test_both_runtimes_agree_and_a_batch_is_its_images(directory):
    batch = golden_input(5)
    found = {}
    for runtime in RUNTIMES:
        model = load_model(f"dir:{directory}", exact(runtime))
        whole, features = model.tag_scores(batch), model.features(batch)
        singles = [model.tag_scores(batch[i : i + 1]) for i in range(len(batch))]
        assert np.concatenate(singles) == pytest.approx(whole, abs=1e-6)
        found[runtime] = whole, features
    for runtime in RUNTIMES:
        for one, other in zip(found[runtime], found["torch"], strict=True):
            assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_gives_what_its_network_gives(tmp_path, variant):
    config = {**SMALL_JOYTAG, **VARIANTS[variant]}
    is_exported = variant == "plain patches"
    forms = ("model.pt", "model.onnx") if is_exported else ("model.pt",)
    folder = make_joytag(tmp_path / "model", config, forms=forms)
    from annotary.models._joytag_vit import load_network

    with torch.inference_mode():
        logits, embedding = load_network(folder)(torch.from_numpy(golden_input(2)))
    for runtime in RUNTIMES if is_exported else ("torch",):
        model = load_model(f"dir:{folder}", exact(runtime))
        expected = logits.sigmoid().numpy()
        assert model.tag_scores(golden_input(2)) == pytest.approx(expected, abs=1e-5)
        if embedding is not None:
            expected = embedding.numpy()
            assert model.features(golden_input(2)) == pytest.approx(expected, abs=1e-5)
        elif runtime == "torch":
            with pytest.raises(ModelError, match="gives no features: its head comes before"):
                model.features(golden_input(2))


@pytest.mark.parametrize("precision", ["bf16"])
def test_half_precision_stays_near(directory, precision):
    model = load_model(f"dir:{directory}", exact("torch"))
    try:
        half = load_model(f"dir:{directory}", RuntimeOptions(runtime="torch", precision=precision))
    except UsageError:
        pytest.skip("this processor has no bf16")
    batch = golden_input(3)
    assert half.tag_scores(batch) == pytest.approx(model.tag_scores(batch), abs=0.02)


# What a directory holds


def test_which_file_runs_follows_from_what_is_asked(directory):
    names = {path.name for path in directory.iterdir()}
    onnx, safe = (
        ("top_tags.txt", "model.onnx"),
        ("top_tags.txt", "config.json", "model.safetensors"),
    )
    assert joytag.files(names, RuntimeOptions(runtime="onnxruntime")) == onnx
    assert joytag.files(names, RuntimeOptions(runtime="torch")) == safe
    assert joytag.files(names, RuntimeOptions(precision="int8")) == onnx
    assert joytag.files(names - {"config.json"}, RuntimeOptions()) == onnx
    assert joytag.files(names - {"model.onnx"}, RuntimeOptions()) == safe
    both = {*names, "model.pt"}
    assert "model.pt" not in (joytag.files(both, RuntimeOptions(runtime="torch")) or ())
    assert joytag.files(names - {"top_tags.txt"}, RuntimeOptions()) is None
    assert joytag.files({"top_tags.txt", "config.json"}, RuntimeOptions()) is None


def test_with_nothing_asked_it_is_torch_where_that_is_faster(directory, monkeypatch):
    names = {path.name for path in directory.iterdir()}
    for features, expected in (({"bf16"}, "model.safetensors"), (set(), "model.onnx")):
        monkeypatch.setattr("annotary.runtime._decision.processor_features", lambda f=features: f)
        monkeypatch.setattr("annotary.runtime._decision._torch_has_cuda", lambda _: False)
        monkeypatch.setattr(
            "annotary.runtime._decision.installed",
            lambda name: "2.13" if name == "torch" else None,
        )
        assert joytag.files(names, RuntimeOptions())[-1] == expected


def test_the_published_tags_are_read_as_they_are():
    path = Path(__file__).parents[3] / "shared" / "data" / "joytag" / "top_tags.txt"
    if not path.is_file():
        pytest.skip("JoyTag's list of tags is not beside the repository")
    vocabulary = joytag.read_tags(path, read_card(weights.known()["joytag"]))
    assert len(vocabulary) == 5813
    assert vocabulary.names[0] == "1girl"
    assert {"^_^", ":3", "steins;gate", "ranma_1/2", "\\m/", "(9)"} <= set(vocabulary.names)
    assert set(vocabulary.thresholds["balanced"]) == {0.4}


def test_a_directory_needs_no_card(directory):
    found = find(f"dir:{directory}", RuntimeOptions(runtime="onnxruntime"))
    assert found.card.family == "joytag"
    assert found.card.preprocess == joytag.preprocess_of(64)
    assert set(found.card.files) == {"top_tags.txt", "model.onnx"}
    model = load_model(found)
    assert model.vocabulary.names == SMALL_TAGS
    assert set(model.vocabulary.thresholds["balanced"]) == {0.4}


def test_only_the_network_tells_the_size_where_there_is_no_config(directory, tmp_path):
    for name in ("model.onnx", "top_tags.txt"):
        shutil.copy(directory / name, tmp_path / name)
    assert joytag.describe(tmp_path).preprocess.size == (64, 64)


def test_the_embedding_leaves_no_file_behind(directory, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = sorted(directory.iterdir())
    model = load_model(f"dir:{directory}", exact("onnxruntime"))
    assert model.features(golden_input()).shape == (1, 32)
    assert sorted(directory.iterdir()) == before
    assert not list(tmp_path.iterdir())


def with_onnx(directory, folder):
    folder.mkdir()
    for name in ("model.onnx", "top_tags.txt"):
        shutil.copy(directory / name, folder / name)
    return folder


@pytest.mark.parametrize("runtime", [name for name in RUNTIMES if name != "torch"])
def test_weights_in_a_file_of_their_own(directory, tmp_path, monkeypatch, runtime):
    folder = with_onnx(directory, tmp_path / "model")
    before = find(f"dir:{folder}")
    beside = move_weights_out(folder / "model.onnx")
    found = find(f"dir:{folder}")
    fingerprint = found.fingerprint()
    assert set(found.card.files) == {*before.card.files, beside.name}
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = load_model(found, exact(runtime))
    one = load_model(f"dir:{directory}", exact(runtime))
    assert model.tag_scores(golden_input(2)) == pytest.approx(one.tag_scores(golden_input(2)))
    assert model.features(golden_input())[0, :4] == pytest.approx(GOLDEN_EMBEDDING, abs=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    beside.write_bytes(beside.read_bytes()[:-4] + b"\0\0\1\0")
    assert find(f"dir:{folder}").fingerprint() != fingerprint
    beside.unlink()
    with pytest.raises(ModelError, match=r"model\.onnx\.data is missing"):
        load_model(f"dir:{folder}")


@pytest.mark.parametrize("runtime", [name for name in RUNTIMES if name != "torch"])
def test_messages_name_the_models_own_file(directory, tmp_path, runtime):
    folder = with_onnx(directory, tmp_path / "model")
    model = load_model(f"dir:{folder}", exact(runtime))
    model.features(golden_input())
    with pytest.raises(ModelError) as raised:
        model.tag_scores(golden_input()[:, :, :32])
    assert str(folder / "model.onnx") in str(raised.value)


def test_a_full_disk_is_one_line(directory, tmp_path, monkeypatch):
    folder = with_onnx(directory, tmp_path / "model")
    model = load_model(f"dir:{folder}", exact("onnxruntime"))

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", fail)
        with pytest.raises(ModelError, match=r"a copy of .*model\.onnx .*: No space left"):
            model.features(golden_input())
    with monkeypatch.context() as patched:
        patched.setattr("tempfile.mkdtemp", fail)
        with pytest.raises(ModelError, match="no temporary folder can be made: No space left"):
            model.features(golden_input())
    assert model.features(golden_input()).shape == (1, 32)


def test_hints_name_the_model_as_it_was_asked_for(directory):
    with pytest.raises(UsageError) as raised:
        load_model(f"dir:{directory}", RuntimeOptions(precision="int8"))
    assert str(raised.value).startswith(f"dir:{directory} cannot run in int8 here")
    assert f"annotary export dir:{directory} --precision int8 --calibrate" in str(raised.value)


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    folder = make_joytag(tmp_path / "model")
    monkeypatch.setattr(joytag, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"JoyTag without model\.onnx needs .*annotary\[torch\]"):
        load_model(f"dir:{folder}")


def test_onnx_needs_no_torch(directory, tmp_path, monkeypatch):
    for name in ("model.onnx", "top_tags.txt"):
        shutil.copy(directory / name, tmp_path / name)
    imported = builtins.__import__

    def refuse(name, *arguments, **options):
        assert name.partition(".")[0] not in ("torch", "onnx", "safetensors")
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    model = load_model(f"dir:{tmp_path}", exact("onnxruntime"))
    assert model.features(golden_input()).shape == (1, 32)
    assert model.tag_scores(golden_input()).shape == (1, 5)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "top_tags.txt").write_text("a\nb"), r"2 tags, but config\.json says 5"),
        (lambda d: (d / "top_tags.txt").write_text("\n"), "it has no tags"),
        (lambda d: (d / "top_tags.txt").write_text("a\na"), "must be unique"),
        (lambda d: (d / "top_tags.txt").write_bytes(b"\xff"), "cannot read the tags"),
        (lambda d: (d / "config.json").write_text("{"), "cannot read image_size"),
        (lambda d: (d / "config.json").write_text("[]"), "cannot read image_size"),
        (lambda d: (d / "config.json").write_text('{"image_size": "x"}'), "image_size must be"),
        (lambda d: changed(d, depth=3), "unknown keys: depth"),
        (lambda d: changed(d, **{"class": "CLIPLikeModel"}), "supported: ViT"),
        (lambda d: changed(d, d_model=64), "another shape|d_model"),
        (lambda d: (d / "model.safetensors").write_bytes(b"no"), r"model\.safetensors"),
    ],
)
def test_a_damaged_directory_says_what_is_wrong(tmp_path, damage, message):
    folder = make_joytag(tmp_path / "model")
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(f"dir:{folder}")
    assert "\n" not in str(caught.value)


def changed(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_size_that_is_no_multiple_of_the_patch_is_refused_before_the_run(tmp_path):
    folder = make_joytag(tmp_path / "model")
    card = (weights.known()["joytag"] / "card.toml").read_text()
    card = card.partition("[files]")[0] + "[preprocess]" + card.partition("[preprocess]")[2]
    (folder / "card.toml").write_text(card.replace("[448, 448]", "[72, 72]"))
    with pytest.raises(ModelError, match="multiples of 16 pixels, but got 72x72"):
        load_model(f"dir:{folder}")


def test_a_card_that_does_not_fit_the_onnx_file_is_refused_before_the_run(directory, tmp_path):
    for name in ("model.onnx", "top_tags.txt"):
        shutil.copy(directory / name, tmp_path / name)
    card = (weights.known()["joytag"] / "card.toml").read_text()
    card = card.partition("[files]")[0] + "[preprocess]" + card.partition("[preprocess]")[2]
    (tmp_path / "card.toml").write_text(card)
    with pytest.raises(ModelError, match=r"takes images \[any, 3, 64, 64\], but its card says"):
        load_model(f"dir:{tmp_path}")


# Images


def reference(image: Image.Image, size: int) -> torch.Tensor:
    """What the README's sample makes of an opaque image, written from the specification."""
    longest = max(image.size)
    canvas = Image.new("RGB", (longest, longest), (255, 255, 255))
    canvas.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    if longest != size:
        canvas = canvas.resize((size, size), Image.Resampling.BICUBIC)
    tensor = torch.from_numpy(np.array(canvas)).permute(2, 0, 1) / 255.0
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    return tensor.sub(mean).div(std)


def prepared(data: bytes, size: int = 448) -> np.ndarray:
    spec = joytag.preprocess_of(size)
    pixels = decode(data, options=DecodeOptions(reduce=False)).pixels
    return to_batch([fit(pixels, spec)], spec)[0]


def as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def noise(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8))


SIZES = (
    *((5, 3), (4, 5), (448, 448), (449, 448), (447, 448), (1, 300), (300, 1), (640, 427)),
    *((1023, 767), (64, 448), (900, 901)),
)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_opaque_images_are_the_references_bit_for_bit(size):
    image = noise(*size)
    assert np.array_equal(prepared(as_png(image)), reference(image, 448).numpy())


def test_the_odd_pixel_of_padding_goes_right_and_down():
    grey = np.full((3, 5, 3), 9, np.uint8)
    spec = joytag.preprocess_of(5)
    padded = fit(grey, spec)
    assert (padded[:, 0, 0] == 9).tolist() == [False, True, True, True, False]
    padded = fit(np.full((5, 4, 3), 9, np.uint8), spec)
    assert (padded[0, :, 0] == 9).tolist() == [True, True, True, True, False]


def test_what_is_transparent_is_white():
    transparent = Image.new("RGBA", (7, 4), (0, 0, 0, 0))
    white = reference(Image.new("RGB", (7, 4), "white"), 448).numpy()
    palette = Image.new("P", (7, 4), 0)
    palette.putpalette([0, 0, 0])
    palette.info["transparency"] = 0
    for image in (transparent, Image.new("LA", (7, 4), (0, 0)), palette):
        assert np.array_equal(prepared(as_png(image)), white)
    half = prepared(as_png(Image.new("RGBA", (4, 4), (0, 0, 0, 51))))
    assert np.array_equal(half, reference(Image.new("RGB", (4, 4), (204, 204, 204)), 448).numpy())


def test_grey_palette_and_sixteen_bits():
    ramp = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    expected = reference(Image.fromarray(ramp).convert("RGB"), 448).numpy()
    sixteen = Image.fromarray(ramp.astype(np.uint16) * 257)
    palette = Image.fromarray(ramp).convert("P")
    for image in (Image.fromarray(ramp), palette, sixteen):
        assert np.array_equal(prepared(as_png(image)), expected), image.mode


def test_the_published_card_is_that_of_the_code():
    card = read_card(weights.known()["joytag"])
    assert card.preprocess == joytag.preprocess_of(448)
    assert card.thresholds == joytag.THRESHOLDS
    assert card.activation == "sigmoid"
