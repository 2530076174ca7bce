"""BLIP beside transformers: the same network, saved by transformers and read by both."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from annotary import images as files
from annotary import preprocess
from annotary.models import load_model
from annotary.models._generation import Decoding
from annotary.runtime import RuntimeOptions
from tests.blip import KINDS, SIZE, make_blip
from tests.encoders import quiet_transformers

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

FP32 = RuntimeOptions(threads=1, precision="fp32", runtime="torch")
CLASSES = {
    "captioning": "BlipForConditionalGeneration",
    "vqa": "BlipForQuestionAnswering",
    "itm": "BlipForImageTextRetrieval",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("blip")
    return {kind: make_blip(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def ours(folders):
    return {kind: load_model(f"dir:{folder}", FP32) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def theirs(folders):
    with quiet_transformers() as transformers:
        return {
            kind: getattr(transformers, CLASSES[kind]).from_pretrained(folder).eval()
            for kind, folder in folders.items()
        }


@pytest.fixture(scope="module")
def tokenizer(folders):
    with quiet_transformers() as transformers:
        return transformers.BertTokenizer.from_pretrained(folders["captioning"])


def images(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


class TestCaptioning:
    def generated(self, theirs, tokenizer, batch, prompt="", **settings):
        model = theirs["captioning"]
        ids = None
        if prompt:
            ids = tokenizer([prompt] * len(batch), return_tensors="pt").input_ids
        with quiet_transformers():
            return model.generate(
                torch.from_numpy(batch), ids, do_sample=False, **settings
            ).tolist()

    def ids(self, model, batch, prompt, decoding):
        """The same as `generate` gives, through our decoder: beginnings, what was added, and the end."""
        from annotary.models._decoding import write

        beginning = [model._tokens.start, *model._tokens.numbers(prompt)]
        with model._tower.computing():
            states = [one.states for one in model._tower.encode(batch)]
            steps = model._writer.steps(model._writer.layers.memories(states))
            found = write(steps, np.array([beginning] * len(batch)), decoding, model._tokens.end)
        return [
            [*beginning, *one.tokens, *([model._tokens.end] if one.is_ended else [])]
            for some in found
            for one in some
        ]

    @pytest.mark.parametrize("prompt", ["", "a photo of", "the kittens puppies is"])
    @pytest.mark.parametrize(
        ("settings", "decoding"),
        [
            ({"num_beams": 3}, {"beams": 3}),
            ({"num_beams": 1}, {"beams": 1}),
            ({"num_beams": 5, "num_return_sequences": 3}, {"beams": 5, "count": 3}),
            ({"num_beams": 3, "no_repeat_ngram_size": 2}, {"beams": 3, "no_repeat": 2}),
            (
                {"num_beams": 3, "no_repeat_ngram_size": 3, "repetition_penalty": 1.5},
                {"beams": 3, "no_repeat": 3, "repetition_penalty": 1.5},
            ),
            (
                {"num_beams": 1, "repetition_penalty": 1.5},
                {"beams": 1, "repetition_penalty": 1.5},
            ),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("length", [(1, 12), (14, 20), (12, 12)], ids=str)
    def test_tokens_are_those_of_generate(
        self, ours, theirs, tokenizer, prompt, settings, decoding, length
    ):
        batch = images(4)
        least, most = length
        wanted = self.generated(
            theirs, tokenizer, batch, prompt, min_length=least, max_length=most, **settings
        )
        how = Decoding(**{"no_repeat": 0, **decoding}, min_length=least, max_length=most)
        found = self.ids(ours["captioning"], batch, prompt, how)
        pad = theirs["captioning"].config.text_config.pad_token_id
        filled = {pad, ours["captioning"]._tokens.end}
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert other[: len(one)] == one
            assert set(other[len(one) :]) <= filled

    def test_the_images_decide(self, ours):
        captions = ours["captioning"].write_captions(images(6), [""] * 6, Decoding())
        assert len({some[0].text for some in captions}) > 1

    def test_logits(self, ours, theirs):
        model, batch = ours["captioning"], images(3)
        tokens = np.array([[model._tokens.start, 7, 9, 30, 8]] * 3)
        with torch.no_grad():
            wanted = theirs["captioning"](torch.from_numpy(batch), torch.from_numpy(tokens)).logits
        with model._tower.computing():
            states = [one.states for one in model._tower.encode(batch)]
            steps = model._writer.steps(model._writer.layers.memories(states))
            found = [steps.begin(tokens[:, :2])]
            found += [steps.follow(tokens[:, place], np.arange(3)) for place in range(2, 5)]
        for place, logits in enumerate(found, 1):
            np.testing.assert_allclose(logits, wanted[:, place].numpy(), atol=1e-5)

    def test_states_of_images(self, ours, theirs):
        model, batch = ours["captioning"], images(3, seed=5)
        with torch.no_grad():
            wanted = theirs["captioning"].vision_model(torch.from_numpy(batch)).last_hidden_state
        with model._tower.computing():
            found = torch.stack([one.states for one in model._tower.encode(batch)])
        np.testing.assert_allclose(found.numpy(), wanted.numpy(), atol=1e-5)

    def test_the_score_is_the_mean_log_probability(self, ours, theirs, tokenizer):
        batch = images(3)
        decoding = Decoding(no_repeat=0, min_length=1, repetition_penalty=1.3)
        ids = self.ids(ours["captioning"], batch, "a photo of", decoding)
        captions = ours["captioning"].write_captions(batch, ["a photo of"] * 3, decoding)
        for image, row, found in zip(batch, ids, captions, strict=True):
            with torch.no_grad():
                logits = theirs["captioning"](
                    torch.from_numpy(image[None]), torch.tensor([row])
                ).logits[0]
            each = logits.log_softmax(-1)[range(3, len(row) - 1), row[4:]]
            assert found[0].score == pytest.approx(float(each.mean().exp()), rel=1e-4)

    def test_texts_are_those_of_the_tokenizer(self, ours, tokenizer):
        batch = images(3)
        ids = self.ids(ours["captioning"], batch, "a photo of", Decoding())
        captions = ours["captioning"].write_captions(batch, ["a photo of"] * 3, Decoding())
        for row, found in zip(ids, captions, strict=True):
            told = tokenizer.decode(row[4:], skip_special_tokens=True)
            assert found[0].text == " ".join(told.split()).removeprefix("##")


def with_enc(model, tokenizer, text):
    """A text in tokens as BLIP was trained: [ENC] and not [CLS] first (huggingface/transformers#25629)."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    ids[:, 0] = model.config.text_config.bos_token_id + 1
    return ids


class TestAnswering:
    QUESTIONS = ("what colour is this?", "how many cats are there?", "is the dog happy?")

    def test_answers_are_those_of_generate(self, ours, theirs, tokenizer):
        model, batch = theirs["vqa"], images(3)
        decoding = Decoding(min_length=1, max_length=10, no_repeat=0)
        found = ours["vqa"].write_answers(batch, [self.QUESTIONS] * 3, decoding)
        for image, answers in zip(batch, found, strict=True):
            for question, answer in zip(self.QUESTIONS, answers, strict=True):
                with quiet_transformers():
                    wanted = model.generate(
                        with_enc(model, tokenizer, question),
                        torch.from_numpy(image[None]),
                        num_beams=3,
                        max_length=10,
                        min_length=1,
                        do_sample=False,
                    )
                told = tokenizer.decode(wanted[0], skip_special_tokens=True)
                assert answer.text == " ".join(told.split()).removeprefix("##")

    def test_an_answer_does_not_depend_on_longer_questions(self, ours):
        """BLIP's own `generate` and transformers' cross-attention look at what fills questions up."""
        batch, decoding = images(2), Decoding(min_length=1, max_length=10)
        long = (
            "what is this picture of the big city with 3 red cars and people walking in the snow?"
        )
        alone = ours["vqa"].write_answers(batch, [["is it?"], ["is it?"]], decoding)
        beside = ours["vqa"].write_answers(batch, [["is it?", long], [long, "is it?"]], decoding)
        assert [beside[0][0].text, beside[1][1].text] == [one[0].text for one in alone]
        np.testing.assert_allclose(
            [beside[0][0].score, beside[1][1].score], [one[0].score for one in alone], rtol=1e-5
        )

    def test_transformers_looks_at_what_fills_up(self, ours, theirs, tokenizer):
        """What is made right here: if this fails, transformers has learnt to mask."""
        model, image = theirs["vqa"], images(1)
        short = with_enc(model, tokenizer, "is it?")
        filled = torch.cat([short, torch.full((1, 12), tokenizer.pad_token_id)], dim=1)
        mask = torch.ones_like(filled)
        mask[:, short.shape[1] :] = 0
        start = torch.tensor([[model.config.text_config.bos_token_id]])
        with torch.no_grad(), quiet_transformers():
            patches = model.vision_model(torch.from_numpy(image)).last_hidden_state
            states = model.text_encoder(
                filled, attention_mask=mask, encoder_hidden_states=patches
            ).last_hidden_state
            logits = [
                model.text_decoder(
                    start, encoder_hidden_states=some, encoder_attention_mask=its
                ).logits
                for some, its in (
                    (states, mask),
                    (states[:, : short.shape[1]], mask[:, : short.shape[1]]),
                )
            ]
        assert not torch.allclose(logits[0], logits[1], atol=1e-3)

    ANSWERS = ("yes", "no", "two", "red", "a red car", "a big dog", "in the snow", "blue", "cats")

    def likelihoods(self, theirs, tokenizer, image, question):
        """The probability of every answer, one at a time."""
        model = theirs["vqa"]
        found = []
        with torch.no_grad():
            image = torch.from_numpy(image[None])
            states = model.text_encoder(
                with_enc(model, tokenizer, question),
                encoder_hidden_states=model.vision_model(image).last_hidden_state,
            ).last_hidden_state
            for answer in self.ANSWERS:
                ids = tokenizer(answer, return_tensors="pt").input_ids
                ids[:, 0] = model.config.text_config.bos_token_id
                logits = model.text_decoder(ids, encoder_hidden_states=states).logits
                each = logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
                found.append(float(each.sum().exp()))
        return np.array(found)

    def test_ranked_answers_are_those_of_all_likelihoods(self, ours, theirs, tokenizer):
        batch = images(2)
        found = ours["vqa"].rank_answers(batch, [self.QUESTIONS] * 2, self.ANSWERS, 128)
        for image, ranked in zip(batch, found, strict=True):
            for question, answers in zip(self.QUESTIONS, ranked, strict=True):
                wanted = self.likelihoods(theirs, tokenizer, image, question)
                order = np.argsort(-wanted)
                assert [one.text for one in answers] == [self.ANSWERS[i] for i in order]
                np.testing.assert_allclose([one.score for one in answers], wanted[order], rtol=1e-3)

    def test_the_shortlist_is_by_the_first_token(self, ours):
        batch = images(1)
        (every,) = ours["vqa"].rank_answers(batch, [self.QUESTIONS[:1]], self.ANSWERS, 128)
        (some,) = ours["vqa"].rank_answers(batch, [self.QUESTIONS[:1]], self.ANSWERS, 4)
        assert len(some[0]) == 4
        scores = {one.text: one.score for one in every[0]}
        for one in some[0]:
            assert one.score == pytest.approx(scores[one.text], rel=1e-5)


class TestMatching:
    TEXTS = ("a photo of a cat", "two dogs", "the big city with 3 red cars")

    def test_scores_are_those_of_the_heads(self, ours, theirs, tokenizer):
        model, batch = theirs["itm"], images(3)
        found = ours["itm"].match_texts(batch, [self.TEXTS] * 3)
        for image, matches in zip(batch, found, strict=True):
            for text, match in zip(self.TEXTS, matches, strict=True):
                image_tensor = torch.from_numpy(image[None])
                with torch.no_grad():
                    logits = model(with_enc(model, tokenizer, text), image_tensor).itm_score[0]
                    alone = tokenizer(text, return_tensors="pt").input_ids
                    cosine = model(alone, image_tensor, use_itm_head=False).itm_score[0, 0]
                assert match.score == pytest.approx(float(logits.softmax(-1)[1]), abs=1e-5)
                assert match.logit == pytest.approx(float(logits[1]), abs=1e-5)
                assert match.cosine == pytest.approx(float(cosine), abs=1e-5)

    def test_transformers_begins_with_another_token(self, ours, theirs, tokenizer):
        """huggingface/transformers#25629: what its processor makes begins with [CLS]."""
        model, batch = theirs["itm"], images(1)
        (found,) = ours["itm"].match_texts(batch, [self.TEXTS])
        with torch.no_grad():
            for text, match in zip(self.TEXTS, found, strict=True):
                ids = tokenizer(text, return_tensors="pt").input_ids
                logits = model(ids, torch.from_numpy(batch)).itm_score[0]
                assert abs(match.score - float(logits.softmax(-1)[1])) > 1e-3

    def test_vectors_give_the_cosines(self, ours):
        batch = images(3)
        found = ours["itm"].match_texts(batch, [self.TEXTS] * 3)
        vectors = ours["itm"].embed_images(batch), ours["itm"].embed_texts(self.TEXTS).vectors
        cosines = [[match.cosine for match in matches] for matches in found]
        np.testing.assert_allclose(cosines, vectors[0] @ vectors[1].T, atol=1e-5)


class TestBatches:
    def test_captions_of_one_and_of_many(self, ours):
        model, batch = ours["captioning"], images(5, seed=2)
        prompts = ["", "a photo of", "a", "the big dog in", ""]
        for decoding in (Decoding(), Decoding(nucleus=0.9, count=2, seed=3), Decoding(beams=1)):
            together = model.write_captions(batch, prompts, decoding)
            for place, prompt in enumerate(prompts):
                (alone,) = model.write_captions(batch[place : place + 1], [prompt], decoding)
                assert [one.text for one in alone] == [one.text for one in together[place]]
                np.testing.assert_allclose(
                    [one.score for one in alone], [one.score for one in together[place]], rtol=1e-4
                )

    def test_matches_of_one_and_of_many(self, ours):
        model, batch = ours["itm"], images(3, seed=2)
        texts = [["a cat", "the quick brown fox"], [], ["two dogs"]]
        together = model.match_texts(batch, texts)
        for place, some in enumerate(texts):
            (alone,) = model.match_texts(batch[place : place + 1], [some])
            np.testing.assert_allclose(
                [[one.score, one.cosine] for one in alone] or np.zeros((0, 2)),
                [[one.score, one.cosine] for one in together[place]] or np.zeros((0, 2)),
                atol=1e-5,
            )


@pytest.mark.parametrize(
    ("mode", "size"), [("RGB", (200, 77)), ("L", (31, 90)), ("RGBA", (50, 50)), ("P", (97, 13))]
)
def test_images_are_prepared_as_transformers_does(ours, folders, mode, size, tmp_path):
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(noise, "RGBA").convert("RGB" if mode == "P" else mode).convert(mode).save(path)
    with quiet_transformers():
        processor = BlipImageProcessorPil.from_pretrained(folders["captioning"])
        with Image.open(path) as image:  # `load_image` of transformers leaves alpha out
            wanted = processor(image.convert("RGB"), return_tensors="np")["pixel_values"][0]
    spec = ours["captioning"].card.preprocess
    pixels = files.decode(path.read_bytes(), alpha=spec.alpha).pixels
    found = preprocess.to_batch([preprocess.fit(pixels, spec)], spec)[0]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
