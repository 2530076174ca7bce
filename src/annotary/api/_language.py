"""What a model says of images in words, from Python: captions, answers, and whether texts fit."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

from annotary.api._running import Records, run, told_truncated
from annotary.errors import UsageError
from annotary.images import DecodeOptions
from annotary.inputs import ImageInput
from annotary.models import Model, load_model
from annotary.sources import SourceOptions
from annotary.tasks.answering import ANSWERS, SHORTLIST, Answering, Question
from annotary.tasks.captioning import Captioning, CaptioningOptions
from annotary.tasks.matching import Matching
from annotary.tasks.own_texts import OwnTexts
from annotary.tasks.writing import Decoding, Matcher, answerer, captioner, matcher


class Language:
    """The abilities of a model that reads and writes texts about images."""

    _models: tuple[Model, ...]

    def caption(
        self,
        images: ImageInput,
        *,
        prompt: str = "",
        beams: int | None = None,
        nucleus: float | None = None,
        captions: int = 1,
        min_length: int = 5,
        max_length: int = 20,
        no_repeat: int = 3,
        repetition_penalty: float | None = None,
        seed: int = 0,
        matcher: str | Language | None = None,
        min_match: float | None = None,
        source_options: SourceOptions | None = None,
        decode_options: DecodeOptions | None = None,
    ) -> Records:
        """Describe images in sentences, lazily and in the order of the input.

        Args:
            images: What to describe, as for `tag`.
            prompt: What each caption goes on from, such as "a picture of"; it is left out of the captions.
            beams: How many beginnings are kept at each step (beam search); 3 without it, or as many as `captions`; 1
                always takes the likeliest word.
            nucleus: Draw each word from the likeliest that together have this probability, 0..1, instead of searching.
            captions: How many captions each image gets, at most: what comes twice is told once.
            min_length: Tokens that a caption has at least, with those of the prompt, its start and its end.
            max_length: Tokens that a caption has at most, with those of the prompt, its start and its end.
            no_repeat: No row of so many tokens is written twice; 0 lets it be.
            repetition_penalty: Above 1, what was written becomes less likely to be written again; without it 1, and
                1.1 with `nucleus`.
            seed: Of what is drawn; the same image and seed give the same captions, whatever else is in the run.
            matcher: A model that judges every caption, by name or loaded: each gets its `match`, 0..1, and the best
                matching stands first.
            min_match: Leave out captions whose `match` is less than this, 0..1.
            source_options: Which files of folders are taken, and how URLs are read.
            decode_options: How images are decoded.

        Returns:
            An iterator of an `Annotation` with `captions` for every image, or a `Failure` where it could not be read.

        Raises:
            UsageError: An option or the input makes no sense, or the model writes no captions.
        """
        try:
            options = CaptioningOptions(
                prompt=prompt,
                beams=beams,
                nucleus=nucleus,
                captions=captions,
                min_length=min_length,
                max_length=max_length,
                no_repeat=no_repeat,
                repetition_penalty=repetition_penalty,
                seed=seed,
                min_match=min_match,
            )
        except (ValueError, TypeError) as error:
            raise UsageError(str(error)) from error
        task = Captioning(
            captioner(self._models[0]),
            options.decoding(),
            prompt,
            matcher=_matcher(matcher),
            min_match=min_match,
        )
        return run(images, task, source_options, decode_options)

    def ask(
        self,
        images: ImageInput,
        questions: str | Iterable[str] | Mapping[str, str | Iterable[str]],
        *,
        answers: Iterable[str] | None = None,
        top: int = 1,
        shortlist: int = SHORTLIST,
        max_length: int = ANSWERS.max_length,
        source_options: SourceOptions | None = None,
        decode_options: DecodeOptions | None = None,
    ) -> Records:
        """Ask questions about images, lazily and in the order of the input.

        Args:
            images: What to ask about, as for `tag`.
            questions: A question, or several for every image; or a mapping of the images' names to questions of their
                own.
            answers: What may be answered, such as `["yes", "no"]`; without it the model finds its own words.
            top: How many of these answers are told of each question, the best first.
            shortlist: How many of these answers are looked at to their end: those that begin the likeliest.
            max_length: Tokens that an answer in the model's own words has at most.
            source_options: Which files of folders are taken, and how URLs are read.
            decode_options: How images are decoded.

        Returns:
            An iterator of an `Annotation` with `answers` for every image, in the order of the questions, or a `Failure`
            where it could not be read. An image that a mapping does not name has none.

        Raises:
            UsageError: An option or the input makes no sense, or the model answers no questions.
        """
        offered = None if answers is None else tuple(dict.fromkeys(_texts(answers, "answers")))
        own: OwnTexts[Question] | None = None
        every: tuple[Question, ...] = ()
        if isinstance(questions, Mapping):
            own = OwnTexts(
                {
                    name: [Question(text, offered) for text in _texts(some, "questions")]
                    for name, some in questions.items()
                }
            )
        else:
            every = tuple(Question(text, offered) for text in _texts(questions, "questions"))
        try:
            decoding = Decoding(ANSWERS.beams, min_length=1, max_length=max_length)
        except (ValueError, TypeError) as error:
            raise UsageError(str(error)) from error
        model = answerer(self._models[0])
        task = Answering(model, every, decoding, shortlist=shortlist, top=top, of_image=own)
        if task.truncated:
            warnings.warn(told_truncated(task.truncated), stacklevel=2)
        return run(images, task, source_options, decode_options)

    def match(
        self,
        images: ImageInput,
        texts: str | Iterable[str] | Mapping[str, str | Iterable[str]],
        *,
        source_options: SourceOptions | None = None,
        decode_options: DecodeOptions | None = None,
    ) -> Records:
        """Say how probably texts belong to images, lazily and in the order of the input.

        Args:
            images: What to judge, as for `tag`.
            texts: A text, or several for every image; or a mapping of the images' names to texts of their own.
            source_options: Which files of folders are taken, and how URLs are read.
            decode_options: How images are decoded.

        Returns:
            An iterator of an `Annotation` with `matches` for every image, in the order of the texts, or a `Failure`
            where it could not be read. An image that a mapping does not name has none.

        Raises:
            UsageError: The input makes no sense, or the model does not judge texts.
        """
        own: OwnTexts[str] | None = None
        every: tuple[str, ...] = ()
        if isinstance(texts, Mapping):
            own = OwnTexts({name: _texts(some, "texts") for name, some in texts.items()})
        else:
            every = _texts(texts, "texts")
        task = Matching(matcher(self._models[0]), every, of_image=own)
        if task.truncated:
            warnings.warn(told_truncated(task.truncated), stacklevel=2)
        return run(images, task, source_options, decode_options)


def _matcher(told: str | Language | None) -> Matcher | None:
    """What judges captions.

    Raises:
        UsageError: It does not judge texts.
    """
    if told is None:
        return None
    if isinstance(told, str):
        return matcher(load_model(told))
    if not isinstance(told, Language):
        raise UsageError(f"matcher is a model's name or a loaded model, but got {told!r}")
    return matcher(told._models[0])


def _texts(told: str | Iterable[str], what: str) -> tuple[str, ...]:
    """Texts, of one or of several.

    Raises:
        UsageError: Something is no text.
    """
    if isinstance(told, bytes) or not isinstance(told, Iterable):
        raise UsageError(f"{what} are a text or a list of texts, but got {told!r}")
    texts = (told,) if isinstance(told, str) else tuple(told)
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(f"{what} must be texts, but got {text!r}")
    return texts
