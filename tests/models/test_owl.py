"""The family of OWL-ViT and OWLv2: files, cards, texts, and what is wrong in a directory."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from annotary import weights
from annotary.cards import PreprocessSpec, read_card
from annotary.errors import ModelError, UsageError
from annotary.models import find, load_model, owl
from annotary.models._checkpoint_preprocess import preprocess_of
from annotary.models.owl import canonical
from annotary.runtime import RuntimeOptions
from tests.encoders import quiet_transformers
from tests.owl import KINDS, image_processor, make_owl

EXACT = RuntimeOptions(precision="fp32")

KNOWN = (
    "owlvit-base-patch32",
    "owlvit-base-patch16",
    "owlvit-large-patch14",
    "owlv2-base-patch16",
    "owlv2-base-patch16-finetuned",
    "owlv2-base-patch16-ensemble",
    "owlv2-large-patch14",
    "owlv2-large-patch14-finetuned",
    "owlv2-large-patch14-ensemble",
)


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("owl")
    return {kind: make_owl(folder / kind, kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_is_found_by_what_its_settings_say(directories, kind):
    found = find(f"dir:{directories[kind]}")
    assert found.card.family == "owl"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(found.card.files)
    model = load_model(found, EXACT)
    assert model.choice.library.startswith("torch")
    assert hasattr(model, "locate")
    assert hasattr(model, "queries_like")
    assert not hasattr(model, "embed_images")


@pytest.mark.parametrize("name", KNOWN)
def test_known_checkpoints(name):
    card = read_card(weights.known()[name])
    assert (card.name, card.family, card.licence) == (name, "owl", "Apache-2.0")
    assert card.source == f"hf:google/{name}"
    side = (
        (960 if "base" in name else 1008) if "owlv2" in name else (768 if "base" in name else 840)
    )
    kind = "owlv2" if "owlv2" in name else "owlvit"
    with quiet_transformers():
        written = image_processor(kind, side).to_dict()
    assert card.preprocess == preprocess_of(written, kind)


def test_only_torch_runs_it(directories):
    names = [path.name for path in directories["owlvit"].iterdir()]
    assert owl.files(names, RuntimeOptions(runtime="torch")) is not None
    assert owl.files(names, RuntimeOptions(runtime="onnxruntime")) is None
    assert owl.files([n for n in names if n != "model.safetensors"], RuntimeOptions()) is None
    options = RuntimeOptions(runtime="onnxruntime")
    with pytest.raises(UsageError, match="runs in torch alone"):
        load_model(find(f"dir:{directories['owlvit']}", options), options)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "blip-3"}, "blip-3"),
        ({"vision_config": {"image_size": 96, "patch_size": 16}}, "images of 96 pixels"),
        ({"text_config": {"vocab_size": 9}}, "reads them at 8"),
        ({"text_config": {"max_position_embeddings": 2}}, "must be at least 3"),
    ],
)
def test_settings_that_do_not_fit(directories, tmp_path, change, told):
    folder = shutil.copytree(directories["owlv2"], tmp_path / "damaged")
    config = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((ModelError, UsageError), match=told) as caught:
        load_model(find(f"dir:{folder}"), EXACT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"do_pad": False}, "do_pad"),
        ({"size": {"height": 64, "width": 32}}, "size"),
        ({"resample": 0}, "resample = 0"),
    ],
)
def test_preparations_that_are_not_supported(change, told):
    settings = {"image_processor_type": "Owlv2ImageProcessor", **change}
    with pytest.raises(ValueError, match=told):
        preprocess_of(settings, "owlv2")


def test_settings_of_early_checkpoints():
    early = {
        "feature_extractor_type": "OwlViTFeatureExtractor",
        "size": [768, 768],
        "crop_size": 768,
        "do_center_crop": False,
        "resample": 3,
        "rescale": True,
    }
    with quiet_transformers():
        assert preprocess_of(early, "owlvit") == preprocess_of(
            image_processor("owlvit", 768).to_dict(), "owlvit"
        )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Photo of the large Cat.", "a photo of the large cat"),
        ("teddy_bear", "teddy bear"),
        ("bow_(weapon)", "bow weapon"),
        ("hot--air   balloon\t", "hot-air balloon"),
        ("Straße, größer", "straße größer"),
        ("日本", "日本"),
        ("???", "???"),
    ],
)
def test_texts_are_as_in_training(text, expected):
    assert canonical(text) == expected


def test_a_text_of_more_than_sixteen_tokens_is_cut_and_told(directories):
    model = load_model(find(f"dir:{directories['owlvit']}"), EXACT)
    fits, long = "a b c d e f g h i j k l m n", "a b c d e f g h i j k l m n o"
    found = model.embed_queries([long, fits, "cat"])
    assert found.is_truncated.tolist() == [True, False, False]
    # What is left of it is what fits, and its end, where the network reads the meaning.
    np.testing.assert_allclose(found.vectors[0], found.vectors[1], atol=1e-6)
    assert model.embed_queries([]).vectors.shape == (0, found.vectors.shape[1])
    with pytest.raises(UsageError, match="put it in a list"):
        model.embed_queries("cat")


def test_weights_that_give_no_numbers_are_told(directories):
    model = load_model(find(f"dir:{directories['owlvit']}"), EXACT)
    batch = np.full((1, 3, 64, 64), np.nan, np.float32)
    with pytest.raises(ModelError, match="no numbers"):
        model.locate(batch, model.embed_queries(["cat"]).vectors)


def test_a_batch_of_another_size_is_told(directories):
    model = load_model(find(f"dir:{directories['owlvit']}"), EXACT)
    with pytest.raises(ModelError, match="cannot run the network"):
        model.locate(np.zeros((1, 3, 80, 64), np.float32), np.zeros((1, 16), np.float32))


def test_fingerprints_do_not_change_for_what_came_later(directories):
    """Runs and caches of earlier versions go on: a new field of the preparation counts only where it says something."""
    assert "pad_place" not in repr(PreprocessSpec(size=(4, 4), fit="pad"))
    assert PreprocessSpec(size=(4, 4), fit="pad").later == {}
    found = find(f"dir:{directories['owlvit']}")
    padded = replace(
        found.card, preprocess=replace(found.card.preprocess, fit="pad", pad_place="middle")
    )
    corner = replace(padded, preprocess=replace(padded.preprocess, pad_place="corner"))
    prints = {replace(found, card=card).fingerprint() for card in (found.card, padded, corner)}
    assert len(prints) == 3
    card = padded
    how = repr((card.family, card.preprocess, card.activation, dict(card.thresholds)))
    from annotary.cards import fingerprint

    # Word for word what a version without the field made of it.
    assert replace(found, card=padded).fingerprint() == fingerprint(
        found.directory, card.files, extra=how
    )
