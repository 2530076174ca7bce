"""OWL-ViT and OWLv2: detectors that find what words or example images say, as they are published on Hugging Face.

Papers: Minderer et al., "Simple Open-Vocabulary Object Detection with Vision Transformers" (OWL-ViT, 2022) and "Scaling
Open-Vocabulary Object Detection" (OWLv2, 2023). Original code: google-research/scenic, projects/owl_vit (Apache-2.0).
The networks are those of the library transformers (Apache-2.0); the weights are under Apache-2.0.

What differs from transformers: the vision tower runs once an image, however many queries there are; texts are brought
to the form that they had in training; the query of an example is found on non-overlapping boxes, too, where
transformers gives none (huggingface/transformers#25490); the heads compute in float32 whatever the tower computes in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from annotary.cards import Card
from annotary.errors import MissingExtra, ModelError, UsageError
from annotary.models._checkpoint_files import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    read_json,
    tokenizer_files,
    weight_files,
)
from annotary.models._checkpoint_preprocess import (
    PREPROCESSOR_FILE,
    PROCESSOR_FILE,
    check_size,
    read_preprocess,
)
from annotary.models._located import Located
from annotary.models._owl_examples import chosen_place
from annotary.models._texts import Texts
from annotary.models._tokens import TextTokens, TokenRule, open_tokens
from annotary.runtime import Choice, RuntimeOptions

if TYPE_CHECKING:
    from annotary.models._owl_network import OwlParts
    from annotary.runtime.torch_runtime import TorchSession

READ_FIRST = (CONFIG_FILE, PREPROCESSOR_FILE, PROCESSOR_FILE)
"""What tells whether a repository is of this family, before anything large is fetched."""

_TITLES = {"owlvit": "OWL-ViT", "owlv2": "OWLv2"}

MODEL_TYPES = tuple(_TITLES)
"""What `config.json` calls checkpoints of this family."""

LOOKED_FOR = (
    f"{CONFIG_FILE} of an OWL-ViT or OWLv2, {PREPROCESSOR_FILE} and {TOKENIZER_FILE} with model.safetensors or"
    " pytorch_model.bin"
)

_TEXTS_IN_A_BATCH = 512

_LENGTH = 16
"""Tokens of a text, with those that begin and end it (scenic, `max_query_length`)."""

_OUTPUT = "hidden"
_EMBEDDING = "embedding"

_NO_WORDS = re.compile(r"[^\w -]|_")


class Owl:
    """A detector.

    Attributes:
        card: What it is.
        streams: How many batches of images it works on at once.
        batch_size: Images in a batch, at its best.
    """

    def __init__(self, card: Card, parts: OwlParts, tokens: TextTokens, options: RuntimeOptions):
        from annotary.runtime.torch_runtime import TorchSession

        # Whatever a conversion may make faster, what is behind the tower needs torch.
        in_torch = replace(options, runtime="torch")
        self.card = card
        shape = (3, *card.preprocess.size)
        self._images: TorchSession = TorchSession(parts.images, (_OUTPUT,), in_torch, shape)
        # Texts are few, and every box of a run depends on them.
        exact = replace(in_torch, precision="fp32")
        self._texts: TorchSession = TorchSession(parts.texts, (_EMBEDDING,), exact)
        self._heads = parts.heads.to(self._images.choice.device)
        self._tokens = tokens
        self.streams = self._images.choice.streams
        self.batch_size = self._images.choice.batch_size

    @property
    def choice(self) -> Choice:
        """What its images run on, and why."""
        return self._images.choice

    def embed_queries(self, texts: Sequence[str]) -> Texts:
        """Texts as queries float32[q, e] of length 1, in their order. Thread-safe. No template is added."""
        if isinstance(texts, str):
            raise UsageError("texts must be several texts, but got one; put it in a list")
        vectors: npt.NDArray[np.float32] | None = None
        is_truncated = np.zeros(len(texts), np.bool_)
        told = [canonical(text) for text in texts] or ["a"]
        for batch, cut in self._tokens.batches(told, _TEXTS_IN_A_BATCH):
            found = self._texts.run(batch.numbers, _EMBEDDING)
            if vectors is None:
                vectors = np.zeros((len(texts), found.shape[1]), np.float32)
            if len(texts):
                vectors[batch.places] = found
                is_truncated[list(cut)] = True
        assert vectors is not None
        self._check_numbers(vectors)
        return Texts(vectors, is_truncated)

    def locate(self, batch: npt.NDArray[np.generic], queries: npt.NDArray[np.float32]) -> Located:
        """All places of all images, in one pass of the vision tower. Thread-safe.

        Args:
            batch: b images, prepared as the card says.
            queries: float32[q, e]: unit vectors, or means of some, which give the mean of their logits.

        Raises:
            ModelError: The batch does not fit the network, or it gives what are no numbers.
        """
        import torch

        with self._images.computing():
            places = self._places(batch)
            of_queries = torch.from_numpy(np.ascontiguousarray(queries, np.float32))
            boxes = self._heads.boxes(places).cpu().numpy()
            logits = self._heads.logits(places, of_queries.to(places.device)).cpu().numpy()
        self._check_numbers(boxes, logits)
        return Located(boxes, logits)

    def queries_like(
        self, batch: npt.NDArray[np.generic], boxes: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """What is in a box of each image, as queries float32[b, e]. Thread-safe.

        Args:
            batch: b images, prepared as the card says.
            boxes: float32[b, 4], `xyxy`, 0..1 of the network's input.
        """
        from annotary.models._owl_network import unit

        queries = []
        for number, box in enumerate(boxes):
            with self._images.computing():
                places = self._places(batch[number : number + 1])
                classes = self._heads.classes(places)[0]
                objectness = self._heads.objectness(places)
                place = chosen_place(
                    self._heads.boxes(places)[0].cpu().numpy(),
                    np.asarray(box, np.float32),
                    classes.cpu().numpy(),
                    None if objectness is None else objectness[0].cpu().numpy(),
                )
                queries.append(unit(classes[place]).cpu().numpy())
        found = np.stack(queries).astype(np.float32, copy=False)
        self._check_numbers(found)
        return found

    def _places(self, batch: npt.NDArray[np.generic]) -> Any:
        """Features of every place, a tensor float32[b, n, d]; only while `computing`."""
        import torch

        images = torch.from_numpy(np.ascontiguousarray(batch)).to(self.choice.device)
        try:
            (hidden,) = self._images.compute(images)
        except (RuntimeError, ValueError, IndexError) as error:
            told = str(error).strip().split("\n", 1)[0]
            raise ModelError(f"torch cannot run the network: {told}") from error
        assert hidden is not None
        return self._heads.places(hidden)

    def _check_numbers(self, *arrays: npt.NDArray[np.float32]) -> None:
        if not all(np.isfinite(array).all() for array in arrays):
            raise ModelError(
                f"{self.card.id} gives what are no numbers; does it need --precision fp32?"
            )


def canonical(text: str) -> str:
    """A text as the weights saw texts in training and in their evaluation.

    Lower case, words with single spaces, single dashes; whatever else there is stands for a space, so that
    `teddy_bear` is two words and full stops of templates are none (scenic, `label_ops._canonicalize_string_tf`).
    Letters beyond a..z, which that leaves out, stay: without them a text could be empty. One that is nothing but signs
    stays as it is.
    """
    plain = " ".join(_NO_WORDS.sub(" ", text.lower()).split())
    return re.sub("-+", "-", plain) or text


def files(names: Collection[str], options: RuntimeOptions) -> tuple[str, ...] | None:
    """The files that a run with these options needs; None without settings, a tokenizer or weights for torch."""
    settings = [name for name in (PREPROCESSOR_FILE, PROCESSOR_FILE) if name in names][:1]
    tokenizer, weights = tokenizer_files(names), weight_files(names)
    if CONFIG_FILE not in names or not settings or not tokenizer or not weights:
        return None
    if options.runtime not in ("auto", "torch"):
        return None
    return (CONFIG_FILE, *settings, *tokenizer, *weights)


def describe(directory: Path) -> Card:
    """A card for a directory that has none, from the checkpoint's own settings.

    Raises:
        ModelError: They are damaged, or those of another kind of model.
    """
    model_type, config = _read_config(directory)
    preprocess = read_preprocess(directory, model_type)
    check_size(directory, config, preprocess)
    return Card(
        name=directory.name or model_type,
        version="unversioned",
        family="owl",
        licence="unknown",
        description=f"An {_TITLES[model_type]} checkpoint: finds what words or example images say.",
        preprocess=preprocess,
    )


def check_libraries(name: str) -> None:
    """Check that there is what runs a model of this name.

    Raises:
        MissingExtra: There is no torch, or no transformers.
    """
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise MissingExtra(name, "torch")


def load(card: Card, directory: Path, options: RuntimeOptions) -> Owl:
    """The detector of a directory or a repository.

    Raises:
        ModelError: A file is missing, damaged, or does not fit the others.
        MissingExtra: torch or transformers is not installed.
    """
    names = [entry.name for entry in os.scandir(directory) if entry.is_file()]
    if files(names, RuntimeOptions()) is None:
        raise ModelError(f"{card.id}: {directory} is no OWL detector: it needs {LOOKED_FOR}")
    if options.runtime not in ("auto", "torch"):
        raise UsageError(f"{card.name} runs in torch alone; leave --runtime out, or say torch")
    check_libraries(card.name)
    model_type, config = _read_config(directory)
    # The checkpoint's own settings say it best; a card of this package only tells what they are.
    card = replace(card, preprocess=read_preprocess(directory, model_type))
    check_size(directory, config, card.preprocess)
    tokens = _open_tokens(directory, config)
    from annotary.models._owl_network import load_parts

    return Owl(card, load_parts(directory, model_type), tokens, options)


def _read_config(directory: Path) -> tuple[str, dict[str, Any]]:
    """`model_type`, and all of `config.json`.

    Raises:
        ModelError: It cannot be read, or is that of another kind of model.
    """
    path = directory / CONFIG_FILE
    config = read_json(path)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _TITLES:
        raise ModelError(
            f"{path} is of a model of the type {model_type!r}, which is no OWL detector; known:"
            f" {', '.join(_TITLES)}"
        )
    return model_type, config


def _open_tokens(directory: Path, config: Mapping[str, Any]) -> TextTokens:
    """The tokenizer.

    What fills texts up is behind their end, where nothing is read, so that they are only filled up to the longest.

    Raises:
        ModelError: The network would read texts at another place than where they end: it looks for the highest number.
    """
    text = config.get("text_config") or {}
    length = text.get("max_position_embeddings", _LENGTH)
    if not isinstance(length, int) or length < 3:
        raise ModelError(f"max_position_embeddings must be at least 3, but is {length!r}")
    rule = TokenRule(length, is_padded=False, end=("<|endoftext|>",))
    tokens = open_tokens(directory, rule, is_sigmoid=False)
    words = text.get("vocab_size")
    if isinstance(words, int) and tokens.end != words - 1:
        raise ModelError(
            f"{directory}: texts end with token {tokens.end}, but the network reads them at {words - 1}"
        )
    return tokens
