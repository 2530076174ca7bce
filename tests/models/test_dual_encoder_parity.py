"""Image-text encoders against transformers' own pipeline: the same probabilities for the same images and labels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotary import images, preprocess
from annotary.models import load_model
from annotary.runtime import RuntimeOptions
from tests.encoders import (
    KINDS,
    export_towers,
    image_processor,
    make_encoder,
    make_joint,
    quiet_transformers,
)

pytest.importorskip("torch")
pytest.importorskip("transformers")

FP32 = RuntimeOptions(precision="fp32", runtime="torch")
TEMPLATE = "This is a photo of {}."
LABELS = ["a cat", "Dogs!", "the quick brown fox", "日本", "über-schön 3"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A checkpoint of a kind, the model that loads it, and the pipeline; each made once."""
    made = {}

    def of(kind):
        if kind not in made:
            directory = make_encoder(tmp_path_factory.mktemp("encoders") / kind, kind)
            made[kind] = (
                directory,
                load_model(f"dir:{directory}", FP32),
                pipeline(directory, kind),
            )
        return made[kind]

    return of


def pipeline(directory, kind):
    with quiet_transformers() as transformers:
        import torch

        more = {}
        if kind == "siglip2":  # AutoTokenizer knows a SigLIP by its first tokenizer alone
            more["tokenizer"] = transformers.Siglip2Tokenizer.from_pretrained(directory)
        return transformers.pipeline(
            "zero-shot-image-classification",
            model=str(directory),
            image_processor=image_processor(kind, transformers),
            dtype=torch.float32,
            **more,
        )


def files(folder: Path) -> dict[str, Path]:
    """Images of all kinds whose pixels differ everywhere."""
    folder.mkdir()
    generator = np.random.default_rng(5)
    colours = generator.integers(0, 256, (61, 97, 3), np.uint8)
    alpha = generator.integers(0, 256, (61, 97, 1), np.uint8)
    wide = Image.fromarray(colours)
    clear = Image.fromarray(np.concatenate([colours, alpha], axis=2))
    turned = Image.Exif()
    turned[0x0112] = 6
    made = {
        "wide": (wide, "png", {}),
        "tall": (wide.rotate(90, expand=True), "png", {}),
        "odd": (wide.resize((45, 45)), "png", {}),
        "small": (wide.resize((9, 20)), "png", {}),
        "exact": (wide.resize((32, 32)), "png", {}),
        "long": (wide.resize((400, 33)), "png", {}),
        "photo": (wide.resize((250, 170)), "jpg", {"quality": 90}),
        "grey": (wide.convert("L"), "png", {}),
        "bits": (wide.convert("1"), "png", {}),
        "palette": (wide.quantize(16), "png", {}),
        "palette-key": (wide.quantize(16), "png", {"transparency": 3}),
        "palette-alpha": (wide.quantize(16), "png", {"transparency": bytes(range(0, 256, 16))}),
        "rgb-key": (wide, "png", {"transparency": tuple(colours[0, 0].tolist())}),
        "grey-key": (wide.convert("L"), "png", {"transparency": 7}),
        "alpha": (clear, "png", {}),
        "grey-alpha": (clear.convert("LA"), "png", {}),
        "webp-alpha": (clear, "webp", {"lossless": True, "exact": True}),
        "gif": (wide.quantize(32), "gif", {"transparency": 2}),
        "cmyk": (wide.convert("CMYK"), "jpg", {"quality": 95}),
        "turned": (wide, "jpg", {"exif": turned, "quality": 95}),
        "turned-png": (wide, "png", {"exif": turned}),
    }
    paths = {}
    for name, (image, ending, options) in made.items():
        paths[name] = folder / f"{name}.{ending}"
        image.save(paths[name], **options)
    return paths


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return files(tmp_path_factory.mktemp("pictures") / "all")


def inputs(paths, spec):
    pixels = [images.decode(path.read_bytes(), alpha=spec.alpha).pixels for path in paths]
    return preprocess.to_batch([preprocess.fit(one, spec) for one in pixels], spec)


def probabilities(model, vectors, labels, template=TEMPLATE):
    texts = model.embed_texts([template.format(label) for label in labels]).vectors
    logits = vectors @ texts.T * model.similarity.scale + model.similarity.bias
    if model.similarity.kind == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def expected(pipe, paths, labels, batch_size=1, template=TEMPLATE):
    """What the pipeline says, in the order of the labels."""
    with quiet_transformers():
        found = pipe(
            [Image.open(io.BytesIO(path.read_bytes())) for path in paths],
            candidate_labels=labels,
            hypothesis_template=template,
            batch_size=batch_size,
        )
    rows = [{entry["label"]: entry["score"] for entry in row} for row in found]
    return np.array([[row[label] for label in labels] for row in rows])


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_the_pipelines(checkpoints, pictures, kind):
    _, model, pipe = checkpoints(kind)
    paths = list(pictures.values())
    vectors = model.embed_images(inputs(paths, model.card.preprocess))
    found = probabilities(model, vectors, LABELS)
    wanted = expected(pipe, paths, LABELS)
    assert wanted.std() > 0.01, "scores that do not differ show nothing"
    for name, ours, theirs in zip(pictures, found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("kind", ["clip", "siglip2-naflex"])
def test_batches_change_nothing(checkpoints, pictures, kind, batch_size):
    _, model, pipe = checkpoints(kind)
    paths = list(pictures.values())[:9]
    rows = inputs(paths, model.card.preprocess)
    parts = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    vectors = np.concatenate([model.embed_images(part) for part in parts])
    found = probabilities(model, vectors, LABELS)
    np.testing.assert_allclose(found, expected(pipe, paths, LABELS, batch_size), atol=1e-5)
    np.testing.assert_allclose(vectors, model.embed_images(rows), atol=1e-6)


@pytest.mark.parametrize("template", ["{}", "a {} in a video game", TEMPLATE])
@pytest.mark.parametrize("kind", ["clip-gelu", "siglip"])
def test_other_templates_and_one_label(checkpoints, pictures, kind, template):
    _, model, pipe = checkpoints(kind)
    paths = [pictures["photo"], pictures["tall"]]
    vectors = model.embed_images(inputs(paths, model.card.preprocess))
    for labels in (LABELS, ["cat"], ["cat", "the snow"]):
        found = probabilities(model, vectors, labels, template)
        wanted = expected(pipe, paths, labels, template=template)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_those_of_the_network(checkpoints, pictures, kind):
    _, model, pipe = checkpoints(kind)
    import torch

    paths = [pictures["wide"], pictures["grey"], pictures["alpha"]]
    texts = ["a photo of a cat", "two dogs", "birds in the snow and puppies walking"]
    how = {"padding": "max_length", "max_length": 64} if "siglip" in kind else {"padding": True}
    rows = [Image.open(io.BytesIO(path.read_bytes())).convert("RGB") for path in paths]
    with quiet_transformers(), torch.inference_mode():
        images_in = pipe.image_processor(images=rows, return_tensors="pt")
        texts_in = pipe.tokenizer(texts, return_tensors="pt", truncation=True, **how)
        wanted = [
            given.pooler_output if hasattr(given, "pooler_output") else given
            for given in (
                pipe.model.get_image_features(**images_in),
                pipe.model.get_text_features(**texts_in),
            )
        ]
    found = (
        model.embed_images(inputs(paths, model.card.preprocess)),
        model.embed_texts(texts).vectors,
    )
    for ours, theirs in zip(found, wanted, strict=True):
        unit = theirs / theirs.norm(dim=-1, keepdim=True)
        np.testing.assert_allclose(ours, unit.numpy(), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_scale_and_bias_are_the_checkpoints(checkpoints, kind):
    _, model, pipe = checkpoints(kind)
    network = pipe.model
    assert model.similarity.scale == pytest.approx(float(network.logit_scale.detach().exp()))
    assert model.similarity_source == "the checkpoint"
    if "siglip" in kind:
        assert model.similarity.kind == "sigmoid"
        assert model.similarity.bias == pytest.approx(float(network.logit_bias.detach()))
    else:
        assert (model.similarity.kind, model.similarity.bias) == ("softmax", 0.0)


@pytest.mark.parametrize("kind", ["clip", "metaclip2", "siglip"])
def test_a_long_label_is_cut_and_told_where_the_pipeline_breaks(checkpoints, pictures, kind):
    """Defect of the pipeline: without truncation more than 77 tokens are an error in the network."""
    _, model, pipe = checkpoints(kind)
    labels = ["a cat", "cat " * 120]
    found = model.embed_texts(labels)
    assert found.is_truncated.tolist() == [False, True]
    if kind != "siglip":
        with pytest.raises((ValueError, IndexError, RuntimeError)):
            expected(pipe, [pictures["photo"]], labels)
    cut = model.embed_texts(["cat " * 118]).vectors
    np.testing.assert_allclose(found.vectors[1:], cut, atol=1e-6)


def test_texts_are_filled_up_by_what_the_model_is_and_not_by_its_name(checkpoints, tmp_path):
    """Defect of the pipeline: it looks for "siglip" in the type's name. Here it is the type itself, and 64 places."""
    _, model, _ = checkpoints("siglip")
    one = model.embed_texts(["cat"]).vectors
    with_longer = model.embed_texts(["cat", "a photo of people walking in the big city"]).vectors
    np.testing.assert_allclose(one[0], with_longer[0], atol=1e-6)
    _, clip, _ = checkpoints("clip")
    one = clip.embed_texts(["cat"]).vectors
    with_longer = clip.embed_texts(["cat", "a photo of people walking in the big city"]).vectors
    np.testing.assert_allclose(one[0], with_longer[0], atol=1e-6)


RUNS = [
    *[("onnxruntime", kind) for kind in ("clip", "metaclip2", "siglip", "siglip2")],
    *[("openvino", kind) for kind in ("clip-gelu", "siglip2")],
]


@pytest.fixture(scope="module")
def exports(checkpoints, tmp_path_factory):
    """The same encoders as they are published for browsers; each made once."""
    made = {}

    def of(kind):
        if kind not in made:
            directory, model, _ = checkpoints(kind)
            made[kind] = export_towers(directory, tmp_path_factory.mktemp("exports") / kind, kind)
            bias = model.similarity.bias if "siglip" in kind else None
            make_joint(made[kind] / "onnx" / "model.onnx", np.log(model.similarity.scale), bias)
        return made[kind]

    return of


@pytest.mark.parametrize(("runtime", "kind"), RUNS)
def test_towers_for_browsers_give_the_same(checkpoints, exports, pictures, kind, runtime):
    if runtime == "openvino":
        pytest.importorskip("openvino")
    _, model, _ = checkpoints(kind)
    options = RuntimeOptions(precision="fp32", runtime=runtime)
    light = load_model(f"dir:{exports(kind)}", options)
    scale, bias = model.similarity.scale, model.similarity.bias
    assert light.similarity.kind == model.similarity.kind
    assert light.similarity.scale == pytest.approx(scale, rel=1e-6)
    assert light.similarity.bias == pytest.approx(bias)
    assert light.card.preprocess == model.card.preprocess
    paths = list(pictures.values())
    rows = inputs(paths, model.card.preprocess)
    np.testing.assert_allclose(light.embed_images(rows), model.embed_images(rows), atol=1e-5)
    texts = ["a cat", "cat " * 120, *LABELS]
    found, wanted = light.embed_texts(texts), model.embed_texts(texts)
    np.testing.assert_allclose(found.vectors, wanted.vectors, atol=1e-5)
    assert found.is_truncated.tolist() == wanted.is_truncated.tolist()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_openvino_takes_the_network_from_torch(checkpoints, pictures, kind):
    pytest.importorskip("openvino")
    directory, model, _ = checkpoints(kind)
    fast = load_model(f"dir:{directory}", RuntimeOptions(precision="fp32", runtime="openvino"))
    assert fast.choice.library.startswith("OpenVINO")
    assert "taken from the weights for torch" in fast.choice.reason
    rows = inputs(list(pictures.values())[:7], model.card.preprocess)
    for count in (1, 2, 7):
        wanted = model.embed_images(rows[:count])
        np.testing.assert_allclose(fast.embed_images(rows[:count]), wanted, atol=1e-5)
    texts = model.embed_texts(LABELS).vectors
    np.testing.assert_allclose(fast.embed_texts(LABELS).vectors, texts, atol=1e-6)


@pytest.mark.parametrize("kind", ["clip", "siglip2", "siglip2-naflex"])
def test_classify_says_what_the_pipeline_says(checkpoints, pictures, kind):
    """All the way: from files to labels, in the order of their scores."""
    import annotary

    directory, _, pipe = checkpoints(kind)
    paths = list(pictures.values())
    model = annotary.load(f"dir:{directory}", precision="fp32", runtime="torch")
    whole = images.DecodeOptions(reduce=False)
    records = list(model.classify(paths, LABELS, template=TEMPLATE, decode_options=whole))
    wanted = expected(pipe, paths, LABELS)
    for record, scores in zip(records, wanted, strict=True):
        assert isinstance(record, annotary.Annotation)
        found = {label.name: label.score for label in record.labels}
        assert [found[label] for label in LABELS] == pytest.approx(scores, abs=1e-5), record.image
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_transparency_can_be_put_on_white_all_the_same(checkpoints, pictures):
    import annotary

    directory, _, _ = checkpoints("clip")
    model = annotary.load(f"dir:{directory}", precision="fp32", runtime="torch")
    both = [
        next(iter(model.classify(pictures["alpha"], LABELS, decode_options=options))).labels
        for options in (images.DecodeOptions(), images.DecodeOptions(transparency="white"))
    ]
    assert both[0] != both[1]
