"""BLIP as a family of models: what is found, read, refused, remembered. Numbers are in `test_blip_parity.py`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from annotary import weights
from annotary.cards import read_card
from annotary.errors import MissingExtra, ModelError, UsageError
from annotary.models import blip, find, load_model, pull
from annotary.models._blip_tokens import BertTokens, read_caption, read_question
from annotary.models._generation import Decoding
from annotary.runtime import RuntimeOptions
from tests.blip import KINDS, SIZE, make_blip
from tests.encoders import make_encoder, quiet_transformers
from tests.hub_server import running_hub

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

FP32 = RuntimeOptions(threads=1, precision="fp32", runtime="torch")
ANSWER = Decoding(min_length=1, max_length=10)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("blip")
    return {kind: make_blip(root / kind, kind) for kind in KINDS}


@pytest.fixture
def models(folders):
    """Loaded anew for each test, so that nothing is remembered."""
    return lambda kind, options=FP32: load_model(f"dir:{folders[kind]}", options)


@pytest.fixture
def copy_of(folders, tmp_path):
    def copy(kind: str) -> Path:
        return Path(shutil.copytree(folders[kind], tmp_path / f"copy-{kind}"))

    return copy


def images(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def assert_alike(found, expected):
    """The same captions; the last bits of their scores depend on where in memory numbers stand."""
    assert [[one.text for one in some] for some in found] == [
        [one.text for one in some] for some in expected
    ]
    for some, others in zip(found, expected, strict=True):
        assert [one.score for one in some] == pytest.approx([one.score for one in others], rel=1e-5)


def changed(folder: Path, file: str, **values) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class TestFinding:
    def test_settings_tell_families_apart(self, folders, tmp_path):
        clip = make_encoder(tmp_path / "clip", "clip")
        assert find(f"dir:{clip}").card.family == "dual_encoder"
        for kind, what in (
            ("captioning", "writes captions"),
            ("vqa", "answers questions"),
            ("itm", "judges whether texts fit"),
        ):
            found = find(f"dir:{folders[kind]}")
            assert found.card.family == "blip"
            assert what in found.card.description
            assert found.card.preprocess.size == (SIZE, SIZE)

    def test_a_clip_that_says_to_be_a_blip_is_refused(self, tmp_path):
        folder = make_encoder(tmp_path / "clip", "clip")
        changed(folder, "config.json", model_type="blip")
        with pytest.raises(ModelError, match=r"architectures = \['CLIPModel'\].*only BlipFor"):
            find(f"dir:{folder}")

    def test_what_is_fetched(self):
        names = {"config.json", "preprocessor_config.json", "vocab.txt", "tokenizer.json"}
        names |= {"pytorch_model.bin", "model.safetensors", "tf_model.h5", "README.md"}
        names |= {"special_tokens_map.json", "tokenizer_config.json"}
        auto = RuntimeOptions()
        chosen = blip.files(names, auto)
        assert chosen is not None
        assert chosen[-1] == "model.safetensors"
        assert "tokenizer.json" in chosen
        assert not {"vocab.txt", "pytorch_model.bin", "tf_model.h5", "README.md"} & set(chosen)
        older = blip.files(names - {"tokenizer.json", "model.safetensors"}, auto)
        assert older is not None
        assert {"vocab.txt", "pytorch_model.bin"} < set(older)
        assert blip.files(names, RuntimeOptions(runtime="onnxruntime")) is None
        for lacking in ("config.json", "preprocessor_config.json"):
            assert blip.files(names - {lacking}, auto) is None
        assert blip.files(names - {"vocab.txt", "tokenizer.json"}, auto) is None
        assert blip.files(names - {"model.safetensors", "pytorch_model.bin"}, auto) is None

    def test_known_cards(self):
        cards = [read_card(folder) for folder in weights.known().values()]
        ours = [card for card in cards if card.family == "blip"]
        assert len(ours) == 8
        for card in ours:
            assert card.licence == "BSD-3-Clause"
            assert card.source == f"hf:Salesforce/{card.name}"
            assert card.preprocess.size == (384, 384)
            assert card.preprocess.fit == "squash"


class TestLoading:
    def test_the_older_files_are_the_same_model(self, models, copy_of):
        """`pytorch_model.bin` and `vocab.txt`, as the checkpoints were published first."""
        folder = copy_of("captioning")
        with quiet_transformers() as transformers:
            network = transformers.BlipForConditionalGeneration.from_pretrained(folder)
            vocabulary = transformers.BertTokenizer.from_pretrained(folder).get_vocab()
        torch.save(network.state_dict(), folder / "pytorch_model.bin")
        words = sorted(vocabulary, key=vocabulary.__getitem__)
        (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        (folder / "model.safetensors").unlink()
        (folder / "tokenizer.json").unlink()
        older = load_model(f"dir:{folder}", FP32)
        batch, prompts = images(2), ["a photo of Übung", "two RED cats, puppies!"]
        newer = models("captioning")
        decoding = Decoding()
        assert_alike(
            older.write_captions(batch, prompts, decoding),
            newer.write_captions(batch, prompts, decoding),
        )

    def refused(self, folder, match):
        with pytest.raises(ModelError, match=match) as caught:
            load_model(f"dir:{folder}", FP32)
        assert "\n" not in str(caught.value)

    def test_another_kind_of_blip(self, copy_of):
        folder = copy_of("itm")
        changed(folder, "config.json", architectures=["BlipModel"])
        self.refused(folder, r"architectures = \['BlipModel'\], which is not supported, only")
        changed(folder, "config.json", architectures=None)
        self.refused(folder, "architectures = None")

    def test_weights_of_another_kind(self, copy_of):
        folder = copy_of("itm")
        changed(folder, "config.json", architectures=["BlipForConditionalGeneration"])
        self.refused(folder, "the weights of .* lack text_decoder")

    def test_another_tokenizer(self, copy_of):
        folder = copy_of("itm")
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["sep_token_id"] = 102
        (folder / "config.json").write_text(json.dumps(config))
        self.refused(folder, "its tokenizer ends texts with 3, but its config.json with 102")

    def test_a_vocabulary_without_enc(self, copy_of):
        folder = copy_of("itm")
        config = json.loads((folder / "config.json").read_text())
        words = config["text_config"]["vocab_size"]
        config["text_config"]["bos_token_id"] = words - 1
        (folder / "config.json").write_text(json.dumps(config))
        self.refused(folder, rf"\[ENC\] is token {words} of {words}")

    def test_images_of_another_size(self, copy_of):
        folder = copy_of("itm")
        changed(folder, "preprocessor_config.json", size={"height": 64, "width": 64})
        self.refused(folder, "says images of 32 pixels, but they would be prepared as 64 x 64")

    def test_damaged_files(self, copy_of):
        folder = copy_of("itm")
        (folder / "tokenizer.json").write_text("{")
        self.refused(folder, r"cannot read the tokenizer .*tokenizer\.json")
        folder.joinpath("config.json").write_text("[]")
        self.refused(folder, "holds no table of settings")

    def test_other_libraries(self, folders):
        for options in (RuntimeOptions(runtime="onnxruntime"), RuntimeOptions(runtime="openvino")):
            with pytest.raises(UsageError, match="captioning"):
                load_model(f"dir:{folders['captioning']}", options)

    def test_halves_write_too(self, models):
        options = RuntimeOptions(precision="bf16", runtime="torch")
        found = models("captioning", options).write_captions(images(2), ["", "a"], Decoding())
        assert all(0.0 < some[0].score <= 1.0 for some in found)
        (answers,) = models("vqa", options).rank_answers(images(1), [["is it?"]], ["yes", "no"], 9)
        assert {one.text for one in answers[0]} == {"yes", "no"}
        ((match,),) = models("itm", options).match_texts(images(1), [["a cat"]])
        ((exact,),) = models("itm").match_texts(images(1), [["a cat"]])
        assert match.score == pytest.approx(exact.score, abs=0.05)


class TestEncodingOnce:
    def test_all_that_is_asked_of_an_image_encodes_it_once(self, models):
        batch = images(3)
        captioner = models("captioning")
        captioner.write_captions(batch, [""] * 3, Decoding())
        captioner.write_captions(batch[1:], ["a photo of"] * 2, Decoding(nucleus=0.9))
        assert captioner.encoded == 3
        answerer = models("vqa")
        answerer.write_answers(batch, [["is it?", "how many?"]] * 3, ANSWER)
        answerer.rank_answers(batch, [["is it red?"]] * 3, ["yes", "no"], 128)
        assert answerer.encoded == 3
        matcher = models("itm")
        matcher.match_texts(batch, [["a cat"]] * 3)
        matcher.embed_images(batch)
        assert matcher.encoded == 3

    def test_the_same_image_twice_in_a_batch(self, models):
        batch = images(3)[[0, 1, 0, 2]]
        model = models("captioning")
        found = model.write_captions(batch, [""] * 4, Decoding())
        assert model.encoded == 3
        assert found[0][0].text == found[2][0].text

    def test_what_was_remembered_gives_the_same(self, models):
        model, batch = models("captioning"), images(2)
        first = model.write_captions(batch, ["", ""], Decoding())
        assert_alike(model.write_captions(batch, ["", ""], Decoding()), first)

    def test_no_more_are_remembered_than_that(self, models):
        from annotary.models._blip_tower import REMEMBERED

        model = models("itm")
        for start in range(0, REMEMBERED + 4, 4):
            model.embed_images(images(4, seed=start))
        assert len(model._tower._known) == REMEMBERED
        encoded = model.encoded
        model.embed_images(images(4, seed=REMEMBERED))
        assert model.encoded == encoded
        model.embed_images(images(4, seed=0))
        assert model.encoded == encoded + 4

    def test_several_threads(self, models):
        from concurrent.futures import ThreadPoolExecutor

        model, batch = models("captioning"), images(6)
        wanted = model.write_captions(batch, [""] * 6, Decoding())
        anew = models("captioning")
        with ThreadPoolExecutor(4) as pool:
            found = list(
                pool.map(
                    lambda i: anew.write_captions(batch[i % 6 : i % 6 + 1], [""], Decoding()),
                    range(24),
                )
            )
        assert anew.encoded == 6
        assert [one[0][0].text for one in found] == [one[0].text for one in wanted] * 4


class TestTexts:
    def test_questions_are_read_as_in_training(self):
        assert read_question('What "colour" is the (big) car?  ') == "what colour is the big car?"
        assert read_question("A.B!C") == "abc"

    def test_captions_are_read_as_in_training(self):
        assert read_caption(' A "photo" of:  cats; and dogs. ') == "a photo of cats and dogs"
        assert read_caption("A.B!C\n") == "a b c"
        assert read_caption("word " * 40) == " ".join(["word"] * 30)

    def test_a_record_may_carry_what_the_user_wrote(self, models):
        batch = images(1)
        told, plain = models("vqa").write_answers(batch, [["Is it RED?!", "is it red?"]], ANSWER)[0]
        assert told.text == plain.text
        assert told.score == pytest.approx(plain.score, rel=1e-5)

    def test_prompts_are_left_out_in_tokens(self, models, folders):
        """A prompt in other letters or with other spaces than the tokenizer writes takes no words along."""
        model, batch = models("captioning"), images(1)
        plain = model.write_captions(batch, ["a photo of"], Decoding())
        for prompt in ("A PHOTO OF", "  a  photo   of ", "a photo of\n"):
            assert_alike(model.write_captions(batch, [prompt], Decoding()), plain)

    def test_prompts_that_leave_no_room(self, models):
        model = models("captioning")
        with pytest.raises(UsageError, match="takes 21 tokens, and max_length is 20: allow more"):
            model.write_captions(images(1), ["a " * 20], Decoding())
        with pytest.raises(UsageError, match="max_length must be at most 64 with captioning@"):
            model.check_prompt("", Decoding(max_length=65))
        with pytest.raises(UsageError, match="beams are too many for"):
            model.write_captions(images(1), [""], Decoding(beams=500))

    def test_texts_that_are_no_unicode(self, models):
        with pytest.raises(UsageError, match="no Unicode"):
            models("captioning").write_captions(images(1), ["a \udcff"], Decoding())

    def test_long_texts_are_cut_and_that_can_be_told(self, models):
        model, batch = models("itm"), images(1)
        long = " ".join(["a photo"] * 40)
        assert model.is_read_whole("a photo of a cat")
        assert not model.is_read_whole(long)
        assert model.is_read_whole("a photo.  of, a cat!")
        ((cut, whole),) = model.match_texts(batch, [[long, " ".join(["a photo"] * 15)]])
        assert cut.score == pytest.approx(whole.score, abs=1e-6)
        assert not models("vqa").is_read_whole("is it? " * 30)
        assert list(model.embed_texts(["a cat", long]).is_truncated) == [False, True]

    def test_several_captions_are_told_once_each(self, models):
        found = models("captioning").write_captions(
            images(2), ["", ""], Decoding(nucleus=1e-9, count=8)
        )
        for some in found:
            texts = [one.text for one in some]
            assert len(texts) == 1

    def test_tokens_that_are_no_words_leave_no_trace(self, folders):
        with quiet_transformers() as transformers:
            config = transformers.BlipConfig.from_pretrained(folders["captioning"])
        tokens = BertTokens(folders["captioning"], config.text_config)
        cat = tokens.numbers("a cat")
        assert tokens.text([tokens.start, *cat, tokens.together, tokens.end, 0]) == "a cat"
        assert tokens.text(tokens.numbers("xyz")[1:]) == "yz"
        assert tokens.text([]) == ""


class TestAnswers:
    def test_images_without_questions(self, models):
        model, batch = models("vqa"), images(3)
        found = model.write_answers(batch, [[], ["is it?", "how many?"], []], ANSWER)
        assert [len(some) for some in found] == [0, 2, 0]
        assert model.write_answers(batch, [[], [], []], ANSWER) == [[], [], []]

    def test_more_questions_than_are_answered_at_once(self, models):
        model, batch = models("vqa"), images(2)
        questions = [f"is it {word}?" for word in "abcdefghijklmnopqrstuvwxyz0123456789"]
        found = model.write_answers(batch, [questions, questions[::-1]], ANSWER)
        (alone,) = model.write_answers(batch[1:], [questions[:3]], ANSWER)
        assert [one.text for one in alone] == [one.text for one in found[1][:-4:-1]]

    def test_answers_that_make_no_sense(self, models):
        model, batch = models("vqa"), images(1)
        with pytest.raises(UsageError, match="at least one answer"):
            model.rank_answers(batch, [["is it?"]], [], 128)
        with pytest.raises(UsageError, match=r"the answer '  ' is empty"):
            model.rank_answers(batch, [["is it?"]], ["yes", "  "], 128)
        with pytest.raises(UsageError, match="longer than 33 tokens"):
            model.rank_answers(batch, [["is it?"]], ["a " * 34], 128)


def test_a_matcher_does_not_pretend_to_classify(models):
    with pytest.raises(UsageError, match="cannot classify"):
        _ = models("itm").similarity


class TestHub:
    """Repositories without a card: their settings, which are small, tell the family before anything large comes."""

    @pytest.fixture
    def server(self, monkeypatch, tmp_path):
        with running_hub(monkeypatch, tmp_path / "cache") as server:
            yield server

    def files_of(self, folder):
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def test_a_repository_is_of_the_family_that_its_settings_say(self, server, folders):
        server.add("someone/writer", self.files_of(folders["captioning"]))
        found = pull("hf:someone/writer", FP32)
        assert found.card.family == "blip"
        model = load_model("hf:someone/writer", FP32)
        assert model.write_captions(images(1), [""], Decoding())

    def test_nothing_large_is_fetched_of_another_kind(self, server, folders):
        files = self.files_of(folders["captioning"])
        files["config.json"] = files["config.json"].replace(
            b'"model_type": "blip"', b'"model_type": "llava"'
        )
        server.add("someone/llava", files)
        with pytest.raises(ModelError, match=r"'llava', which is none known here; known: .*blip"):
            pull("hf:someone/llava", FP32)
        assert not server.gets("model.safetensors")

    def test_nothing_is_fetched_that_cannot_run(self, server, folders, monkeypatch):
        """Without torch a run ends before the download; `pull` may fetch it for another machine."""
        server.add("Salesforce/blip-vqa-base", self.files_of(folders["vqa"]))
        monkeypatch.setattr(blip, "find_spec", lambda name: None)
        with pytest.raises(MissingExtra, match=r"blip-vqa-base needs .*annotary\[torch\]"):
            find("blip-vqa-base", RuntimeOptions())
        assert not server.gets("config.json")
        pull("blip-vqa-base", RuntimeOptions())
        assert server.gets("model.safetensors")

    def test_a_known_model_is_fetched_by_its_name(self, server, folders):
        server.add("Salesforce/blip-itm-base-coco", self.files_of(folders["itm"]))
        model = load_model("blip-itm-base-coco", FP32)
        assert model.card.name == "blip-itm-base-coco"
        assert model.card.licence == "BSD-3-Clause"
        # What the repository says of images goes before what the card of this package says.
        assert model.card.preprocess.size == (SIZE, SIZE)
        assert model.match_texts(images(1), [["a cat"]])
