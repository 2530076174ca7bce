"""A model that is ready to annotate: its abilities as methods."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from annotary.api._detecting import Detecting
from annotary.api._language import Language
from annotary.api._running import Records, run, told_truncated, words
from annotary.cards import Card, Preset, Vocabulary
from annotary.errors import UnreadableImage, UsageError
from annotary.images import DecodeOptions
from annotary.inputs import ImageInput, side_of
from annotary.models import Model
from annotary.records import Annotation
from annotary.runtime import Choice
from annotary.sources import SourceOptions
from annotary.tasks.calibration import read_calibration
from annotary.tasks.comparison import Comparer, Comparison, cosine_of
from annotary.tasks.embedding import Embed
from annotary.tasks.encoding import Vectors, dual_encoder, image_encoder
from annotary.tasks.ensemble import Ensemble
from annotary.tasks.label_sets import LabelSet, read_templates
from annotary.tasks.policy import Policy, read_policy
from annotary.tasks.tag_rules import TagRules
from annotary.tasks.tag_selection import TaggingOptions
from annotary.tasks.tagging import Scorer, SingleTagger, Tagging, tagger
from annotary.tasks.text_cache import TextCache
from annotary.tasks.zero_shot import ZeroShot, ZeroShotOptions


class Annotator(Language, Detecting):
    """A model that is ready to annotate, with the abilities that it has; or several taggers that are asked together.

    Args:
        models: The loaded models, the first of which speaks for all.
        cache: Makes what remembers the vectors of texts between runs; it is called when texts are embedded.
    """

    def __init__(self, *models: Model, cache: Callable[[], TextCache] | None = None) -> None:
        self._models = models
        self._cache = cache
        self._ensemble: Scorer | None = None
        if len(models) > 1:
            self._ensemble = Ensemble([tagger(model) for model in models])

    def __repr__(self) -> str:
        choice = self.choice
        ids = "+".join(model.card.id for model in self._models)
        return f"Annotator({ids!r}, {choice.library}, {choice.device}, {choice.precision})"

    @property
    def card(self) -> Card:
        """What the model is and where it comes from; of several the first one's."""
        return self._models[0].card

    @property
    def choice(self) -> Choice:
        """What the model runs on, and why; of several the first one's."""
        return self._models[0].choice

    @property
    def vocabulary(self) -> Vocabulary:
        """The tags that are known.

        Raises:
            UsageError: The model is no tagger.
        """
        return self._scorer().vocabulary

    def tag(
        self,
        images: ImageInput,
        *,
        threshold: float | None = None,
        preset: Preset | None = None,
        top: int | None = None,
        exclude: str | Iterable[str] = (),
        keep: str | Iterable[str] = (),
        category_threshold: Mapping[str, float] | None = None,
        tag_thresholds: str | os.PathLike[str] | None = None,
        mcut: bool = False,
        min_tags: int | None = None,
        rating: Literal["out", "in", "first", "last"] = "out",
        aliases: str | os.PathLike[str] | None = None,
        replace: str | Iterable[str] = (),
        implications: str | os.PathLike[str] | None = None,
        drop_substrings: bool = False,
        spaces: bool = False,
        order: Literal["score", "vocabulary", "category"] = "score",
        first: str | Iterable[str] = (),
        policy: str | os.PathLike[str] | Policy | None = None,
        source_options: SourceOptions | None = None,
        decode_options: DecodeOptions | None = None,
    ) -> Records:
        """Tag images, lazily and in the order of the input.

        Args:
            images: What to tag. An iterable is taken from in a thread of its own.
            threshold: Keep tags whose probability is at least this, 0..1. Takes the place of the preset.
            preset: `balanced` (the default), `precise` or `broad`.
            top: Keep at most this many tags.
            exclude: Leave out tags that match one of these patterns, such as "*fish*".
            keep: Keep only tags that match one of these patterns.
            category_threshold: Thresholds of single categories, 0..1: `{"character": 0.85}`.
            tag_thresholds: A CSV file with thresholds of single tags, `name,threshold`.
            mcut: Cut where the scores fall most steeply, in each category of each image.
            min_tags: Give at least this many tags, the best below their thresholds if need be.
            rating: What becomes of the rating of models that have one.
            aliases: A file of names and what to call them instead.
            replace: "old=new", or several: call a tag something else.
            implications: A file of what follows from what; what follows is left out.
            drop_substrings: Leave out tags whose words are all within a longer one.
            spaces: Write spaces for underscores, but leave faces such as ^_^ alone.
            order: What stands first.
            first: Patterns of tags that are moved to the front.
            policy: A file, or what `read_policy` gave: each record gets the `decision` that it makes of the scores.
            source_options: Which files of folders are taken, and how URLs are read.
            decode_options: How images are decoded.

        Returns:
            An iterator of an `Annotation` for every image, or a `Failure` where it could not be read; both have `ok`.

        Raises:
            UsageError: An option or the input makes no sense, or the model is no tagger. What is wrong with an element
                of an iterable is a `Failure`.
        """
        try:
            options = TaggingOptions(
                threshold=threshold,
                preset=preset,
                top=top,
                exclude=_texts(exclude),
                keep=_texts(keep),
                category_threshold=_by_category(category_threshold),
                tag_thresholds=_path(tag_thresholds),
                mcut=mcut,
                min_tags=min_tags,
                rating=rating,
            )
            rules = TagRules(
                aliases=_path(aliases),
                replace=_texts(replace),
                implications=_path(implications),
                drop_substrings=drop_substrings,
                spaces=spaces,
                order=order,
                first=_texts(first),
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
        judge = _policy(policy)
        if judge is not None:
            if judge.labels is not None:
                raise UsageError("the policy has labels of its own, which need classify")
            judge.check(self.vocabulary.names)
        task = Tagging(self._scorer(), options, rules, judge=judge)
        return run(images, task, source_options, decode_options)

    def classify(
        self,
        images: ImageInput,
        labels: str | Iterable[str] | Mapping[str, Any] | LabelSet | None = None,
        *,
        template: str | Sequence[str] | None = None,
        templates: str | os.PathLike[str] | None = None,
        multi_label: bool = False,
        none_label: str | None = None,
        background: str | Iterable[str] = (),
        threshold: float | None = None,
        label_thresholds: Mapping[str, float] | None = None,
        top: int | None = None,
        calibration: str | os.PathLike[str] | None = None,
        policy: str | os.PathLike[str] | Policy | None = None,
        source_options: SourceOptions | None = None,
        decode_options: DecodeOptions | None = None,
    ) -> Records:
        """Say which of some labels fit each image, lazily and in the order of the input.

        The texts are embedded once, before the first image, however many images there are.

        Args:
            images: What to classify, as for `tag`.
            labels: "cat, dog", a list of labels, or an ontology: a mapping of prompts to labels, or of labels to lists
                of prompts.
            template: What a label is put in, `{}` being its place, or several, of which the mean is taken; without it
                "a photo of a {}." for words, and nothing for an ontology's prompts.
            templates: `imagenet` for the 80 templates of ImageNet, or a file with one on each line.
            multi_label: Score each label by itself; otherwise the labels compete, where the weights are made so.
            none_label: What is said of an image that none of them fits.
            background: Prompts for what is none of them.
            threshold: Keep labels with at least this score, 0..1.
            label_thresholds: Thresholds of single labels, 0..1.
            top: Keep at most so many labels; without it all, up to 100.
            calibration: A file of `annotary calibrate`.
            policy: A file, or what `read_policy` gave: each record gets the `decision` that it makes of the scores. A
                policy with labels of its own takes the place of `labels`.
            source_options: Which files of folders are taken, and how URLs are read.
            decode_options: How images are decoded.

        Returns:
            An iterator of an `Annotation` with `labels` for every image, or a `Failure` where it could not be read.

        Raises:
            UsageError: An option or the input makes no sense, or the model does not know texts.
        """
        try:
            options = ZeroShotOptions(multi_label=multi_label, threshold=threshold, top=top)
            if templates is not None:
                if template is not None:
                    raise UsageError("give template or templates, not both")
                template = read_templates(os.fspath(templates))
            corrected = None if calibration is None else Path(calibration)
        except (ValueError, TypeError, OSError) as error:
            raise UsageError(str(error)) from error
        judge = _policy(policy)
        if judge is not None and judge.labels is not None:
            if labels is not None:
                raise UsageError("the policy has labels of its own; give no others")
            labels = judge.labels
        if labels is None:
            raise UsageError("say the labels, such as 'cat, dog'")
        if isinstance(labels, LabelSet):
            beside = (template, none_label, background)
            if any(told is not None and told != () for told in beside):
                raise UsageError(
                    "a LabelSet has its templates, none_label and background already; give them to LabelSet.of"
                )
        else:
            labels = LabelSet.of(labels, template, none_label=none_label, background=background)
        if judge is not None:
            judge.check(labels.names)
        task = ZeroShot(
            dual_encoder(self._models[0]),
            labels,
            options,
            judge=judge,
            calibration=None if corrected is None else read_calibration(corrected),
            thresholds=label_thresholds,
            cache=self._cache and self._cache(),
        )
        if task.truncated:
            warnings.warn(told_truncated(task.truncated), stacklevel=2)
        return run(images, task, source_options, decode_options)

    def embed(
        self,
        images: ImageInput,
        *,
        source_options: SourceOptions | None = None,
        decode_options: DecodeOptions | None = None,
    ) -> Records:
        """Embed images, lazily and in the order of the input.

        Args:
            images: What to embed, as for `tag`.
            source_options: Which files of folders are taken, and how URLs are read.
            decode_options: How images are decoded.

        Returns:
            An iterator of an `Annotation` with `embedding` for every image, or a `Failure` where it could not be read.

        Raises:
            UsageError: The input makes no sense, or the model does not embed images.
        """
        task = Embed(image_encoder(self._models[0]))
        return run(images, task, source_options, decode_options)

    def embed_texts(self, texts: str | Sequence[str]) -> Vectors:
        """Embed texts.

        Returns:
            float32[n, d]: one unit vector a text, on the sphere of the images.

        Raises:
            UsageError: The model does not know texts, or one of them is none.
        """
        told = words(texts)
        found = dual_encoder(self._models[0]).embed_texts(told)
        if found.is_truncated.any():
            long = [text for text, cut in zip(told, found.is_truncated, strict=True) if cut]
            warnings.warn(told_truncated(long), stacklevel=2)
        return found.vectors

    def compare(self, one: ImageInput, other: ImageInput) -> Comparison:
        """How alike two things are, images or texts.

        Args:
            one: An image, as for `tag`, or a text: a `str` that is neither a file nor an address. "text:" or "image:"
                before it leaves no doubt.
            other: The same.

        Returns:
            Their `cosine`, and for an image and a text the `probability` that they belong together.

        Raises:
            UsageError: One of them makes no sense, or the model does not know texts.
            ImageError: An image cannot be read.
        """
        return self.compare_all(one, [other])[0]

    def compare_all(self, one: ImageInput, others: Iterable[ImageInput]) -> list[Comparison]:
        """How alike something is to each of some others; see `compare`. It is embedded once."""
        kind, vector = self._side(one)
        comparer: Comparer | None = None
        found = []
        for other in others:
            other_kind, other_vector = self._side(other)
            if kind == other_kind:
                found.append(Comparison(cosine_of(vector, other_vector), None))
                continue
            comparer = comparer or Comparer(dual_encoder(self._models[0]))
            pair = (vector, other_vector) if kind == "image" else (other_vector, vector)
            found.append(comparer.match(*pair))
        return found

    def _side(self, told: ImageInput) -> tuple[str, Vectors]:
        """Whether something is an image or a text, and its vector float32[d]."""
        if isinstance(told, str):
            kind, told = side_of(told)
            if kind == "text":
                return kind, self.embed_texts(told)[0]
        with closing(self.embed(told)) as records:
            found = list(islice(records, 2))  # whatever else there may be: it is one too many
        if len(found) != 1:
            count = "more" if found else "none"
            raise UsageError(f"compare takes one image on each side, but got {count}")
        record = found[0]
        if not isinstance(record, Annotation):
            raise UnreadableImage(f"{record.image}: {record.message}")
        assert record.embedding is not None
        return "image", np.array(record.embedding.vector, dtype=np.float32)

    def _scorer(self) -> Scorer:
        return self._ensemble or SingleTagger(tagger(self._models[0]))


def _policy(told: str | os.PathLike[str] | Policy | None) -> Policy | None:
    return told if told is None or isinstance(told, Policy) else read_policy(Path(told))


def _path(told: str | os.PathLike[str] | None) -> Path | None:
    return None if told is None else Path(told)


def _by_category(told: Mapping[str, float] | None) -> tuple[str, ...]:
    if told is not None and not isinstance(told, Mapping):
        raise UsageError(f"category_threshold is like {{'character': 0.85}}, but got {told!r}")
    return tuple(f"{name}={value}" for name, value in (told or {}).items())


def _texts(told: str | Iterable[str] | None) -> tuple[str, ...]:
    if told is None:
        return ()
    return (told,) if isinstance(told, str) else tuple(told)
