"""Texts as numbers: the same as transformers' own tokenizer classes give, without them."""

from __future__ import annotations

import json
import shutil
import string

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel

from annotary.errors import ModelError
from annotary.models._sentencepiece import read_sentencepiece
from annotary.models._tokens import TokenRule, open_tokens
from tests.encoders import (
    as_older_files,
    clip_tokenizer,
    gemma_tokenizer,
    quiet_transformers,
    siglip_tokenizer,
    xlm_tokenizer,
)

pytest.importorskip("torch")
pytest.importorskip("transformers")

CLIP = TokenRule(16, is_padded=False, end=("<|endoftext|>", "</s>"))
SIGLIP = TokenRule(16, is_padded=True, end=("</s>", "<eos>"), fill=("<pad>", "</s>"))

TEXTS = [
    "a photo of a cat.",
    "This is a photo of Dogs!",
    "  two   spaces\tand a\nline ",
    "don't; it's 'quoted' - we'll (see) [this] {that} 50% & more...",
    "UPPER Case ÄÖÜ ŒUVRE straße İstanbul ΣΊΣΥΦΟΣ",
    "日本の猫 고양이 кошка قطة חתול",
    "emoji 🐱👍🏽 and zero\u200bwidth and nbsp\u00a0here",
    "cafe\u0301 composed café ﬁ ² ½ Ⅷ",
    "12345 3.14 1,000",
    "▁ underscores_and▁bars",
    "a",
    "",
    "!?",
]
"""Letters, signs and blanks of all kinds, none longer than the others' rule allows."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with the files of each tokenizer, and transformers' own object."""
    root = tmp_path_factory.mktemp("tokenizers")
    made = {}
    makers = {
        "clip": clip_tokenizer,
        "xlm": xlm_tokenizer,
        "siglip": siglip_tokenizer,
        "gemma": gemma_tokenizer,
    }
    with quiet_transformers() as transformers:
        for name, make in makers.items():
            tokenizer, _ = make(transformers)
            tokenizer.save_pretrained(root / name)
            made[name] = (root / name, tokenizer)
    return made


def ours(folder, rule, texts, *, is_sigmoid):
    """Numbers of every text in its order, and which were cut."""
    tokens = open_tokens(folder, rule, is_sigmoid=is_sigmoid)
    rows: dict[int, list[int]] = {}
    were_cut: set[int] = set()
    for batch, cut in tokens.batches(texts, 5, 60):
        were_cut |= set(cut)
        assert len(batch.numbers) <= 5
        assert batch.numbers.size <= max(60, batch.numbers.shape[1])
        for place, numbers, mask in zip(*batch, strict=True):
            rows[int(place)] = numbers[mask == 1].tolist()
            if rule.is_padded:
                assert len(numbers) == rule.length
                rows[int(place)] = numbers.tolist()
            else:
                assert (numbers[mask == 0] == rows[int(place)][-1]).all()
    return [rows[i] for i in range(len(texts))], sorted(were_cut)


def theirs(tokenizer, rule, texts):
    how = {"padding": "max_length"} if rule.is_padded else {}
    told = tokenizer(texts, truncation=True, max_length=rule.length, **how)
    return [list(row) for row in told["input_ids"]]


@pytest.mark.parametrize(
    ("name", "rule", "is_sigmoid"),
    [
        ("clip", CLIP, False),
        ("xlm", CLIP, False),
        ("siglip", SIGLIP, True),
        ("gemma", SIGLIP, True),
    ],
)
@pytest.mark.parametrize("length", [16, 64])
def test_numbers_are_those_of_transformers(folders, name, rule, is_sigmoid, length):
    folder, tokenizer = folders[name]
    rule = TokenRule(length, rule.is_padded, rule.end, rule.fill)
    found, cut = ours(folder, rule, TEXTS, is_sigmoid=is_sigmoid)
    assert found == theirs(tokenizer, rule, TEXTS)
    whole = tokenizer(TEXTS)["input_ids"]
    assert cut == [i for i, row in enumerate(whole) if len(row) > length]
    assert cut or length == 64


def test_older_files_give_the_same(folders, tmp_path):
    folder, _ = folders["clip"]
    older = as_older_files(folder, tmp_path / "older")
    assert not (older / "tokenizer.json").exists()
    found = ours(older, CLIP, TEXTS, is_sigmoid=False)
    assert found == ours(folder, CLIP, TEXTS, is_sigmoid=False)


def test_a_siglip_tokenizer_for_browsers_gives_the_same(folders, tmp_path):
    """`tokenizer.json` as the web exports have it: the canonical form is in it already."""
    folder, tokenizer = folders["siglip"]
    made = read_sentencepiece(folder / "spiece.model")
    made.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(
                Regex("[" + "".join(f"\\{c}" for c in string.punctuation) + "]"), ""
            ),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            made.normalizer,
        ]
    )
    end = made.token_to_id("</s>")
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", end)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    found, _ = ours(tmp_path, SIGLIP, TEXTS, is_sigmoid=True)
    assert found == theirs(tokenizer, SIGLIP, TEXTS)


def test_siglip_2_is_in_lower_case_whatever_its_file_says(folders, tmp_path):
    """Repositories have Gemma's tokenizer, which tells cases apart; the network was trained without."""
    folder, tokenizer = folders["gemma"]
    shutil.copytree(folder, tmp_path / "gemma")
    path = tmp_path / "gemma" / "tokenizer.json"
    held = json.loads(path.read_text())
    held["normalizer"] = held["normalizer"]["normalizers"][1]
    path.write_text(json.dumps(held))
    assert Tokenizer.from_file(str(path)).encode("CAT").ids != tokenizer("CAT")["input_ids"]
    found, _ = ours(path.parent, SIGLIP, TEXTS, is_sigmoid=True)
    assert found == theirs(tokenizer, SIGLIP, TEXTS)


def test_what_ends_a_text_is_added_where_it_is_missing(folders, tmp_path):
    folder, tokenizer = folders["gemma"]
    shutil.copytree(folder, tmp_path / "gemma")
    path = tmp_path / "gemma" / "tokenizer.json"
    held = json.loads(path.read_text())
    held["post_processor"] = None
    path.write_text(json.dumps(held))
    found, _ = ours(path.parent, SIGLIP, TEXTS, is_sigmoid=True)
    assert found == theirs(tokenizer, SIGLIP, TEXTS)


def test_clip_without_its_template_is_refused(folders, tmp_path):
    """What begins a text would be missing, too."""
    shutil.copytree(folders["clip"][0], tmp_path / "clip")
    path = tmp_path / "clip" / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": None}))
    with pytest.raises(ModelError, match=r"does not end texts with '<\|endoftext\|>'"):
        open_tokens(path.parent, CLIP, is_sigmoid=False)


def test_a_long_text_keeps_its_end(folders):
    folder, _ = folders["clip"]
    (row,), cut = ours(folder, CLIP, ["cat " * 200], is_sigmoid=False)
    end = open_tokens(folder, CLIP, is_sigmoid=False)._tokenizer.token_to_id("<|endoftext|>")
    assert len(row) == 16
    assert row[-1] == end
    assert cut == [0]


def test_padding_is_on_the_side_that_the_settings_say(folders, tmp_path):
    folder, _ = folders["gemma"]
    shutil.copytree(folder, tmp_path / "gemma")
    path = tmp_path / "gemma" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": "left"}))
    (row,), _ = ours(path.parent, SIGLIP, ["a cat"], is_sigmoid=True)
    assert row[0] == 0
    assert row[-1] == 1


def test_many_texts_come_back_in_their_order(folders, monkeypatch):
    folder, tokenizer = folders["clip"]
    monkeypatch.setattr("annotary.models._tokens._TEXTS_AT_ONCE", 7)
    generator = np.random.default_rng(0)
    texts = [" ".join(["cat"] * n) for n in generator.integers(1, 30, 40).tolist()]
    found, cut = ours(folder, CLIP, texts, is_sigmoid=False)
    assert found == theirs(tokenizer, CLIP, texts)
    assert cut == [i for i, text in enumerate(texts) if len(text.split()) > 14]


def write_damaged(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("clip", lambda f: write_damaged(f, "tokenizer.json"), "cannot read the tokenizer"),
        ("clip", lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
        ("clip", lambda f: (f / "tokenizer_config.json").write_text("[]"), "no table of settings"),
        ("siglip", lambda f: write_damaged(f, "spiece.model"), "cannot read the sentencepiece"),
        ("siglip", lambda f: (f / "spiece.model").write_bytes(b""), "no sentencepiece model"),
    ],
)
def test_damaged_tokenizers_are_one_line(folders, tmp_path, kind, damage, message):
    shutil.copytree(folders[kind][0], tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(ModelError, match=message) as caught:
        open_tokens(tmp_path / "copy", CLIP, is_sigmoid=kind == "siglip")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("merges", "message"),
    [("c a t\n", "two parts a line"), ("#version: 0.2\nq x\n", "cannot read the tokenizer")],
)
def test_damaged_older_files_are_one_line(folders, tmp_path, merges, message):
    older = as_older_files(folders["clip"][0], tmp_path / "older")
    (older / "merges.txt").write_text(merges)
    with pytest.raises(ModelError, match=message):
        open_tokens(older, CLIP, is_sigmoid=False)


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    made = Tokenizer(WordLevel({"a": 0, "x": 1}, unk_token="x"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_tokens([AddedToken("b")])
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match="knows no token that ends a text"):
        open_tokens(tmp_path, CLIP, is_sigmoid=False)
