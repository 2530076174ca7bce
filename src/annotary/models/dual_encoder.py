"""Encoders of images and texts: CLIP, MetaCLIP, SigLIP and SigLIP 2, as they are published on Hugging Face.

Papers: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (CLIP, 2021); Xu et al.,
"Demystifying CLIP Data" (MetaCLIP, 2023) and "Meta CLIP 2: A Worldwide Scaling Recipe" (2025); Zhai et al., "Sigmoid
Loss for Language Image Pre-Training" (SigLIP, 2023); Tschannen et al., "SigLIP 2" (2025). The networks are those of
the library transformers (Apache-2.0), or ONNX files made of them; the weights have licences of their own.

What differs from transformers' pipeline: texts that are too long are cut, and that is told; SigLIP's are filled up by
what the checkpoint is and not by how it is called; texts go through the tower once and not once an image; weights that
are missing are an error.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from annotary.cards import Card, Similarity
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
from annotary.models._onnx_towers import (
    CLIP_SCALE,
    FOLDER,
    check_images,
    joint_similarity,
    output_of,
    tower_files,
)
from annotary.models._texts import Texts
from annotary.models._tokens import TextTokens, TokenRule, open_tokens
from annotary.runtime import (
    Choice,
    Decision,
    RuntimeOptions,
    Session,
    decide,
    offers,
    open_onnx,
)

if TYPE_CHECKING:
    from torch import nn

FOLDERS = (FOLDER,)
READ_FIRST = (CONFIG_FILE, PREPROCESSOR_FILE, PROCESSOR_FILE)
"""What tells whether a repository is of this family, before anything large is fetched."""

LOOKED_FOR = (
    f"{CONFIG_FILE}, {PREPROCESSOR_FILE} and {TOKENIZER_FILE} with model.safetensors or pytorch_model.bin, or"
    f" with {FOLDER}/vision_model.onnx and {FOLDER}/text_model.onnx"
)

_TEXTS_IN_A_BATCH = 512

_EMBEDDING = "embedding"

_Inputs: TypeAlias = tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]]]
"""The main input of a network, and others by name."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is true of all checkpoints of one `model_type`.

    Attributes:
        title: What it is called.
        is_sigmoid: Whether each text is scored by itself.
        rule: What its texts are like.
    """

    title: str
    is_sigmoid: bool
    rule: TokenRule


_CLIP_RULE = TokenRule(77, is_padded=False, end=("<|endoftext|>", "</s>"))
_SIGLIP_RULE = TokenRule(64, is_padded=True, end=("</s>", "<eos>"), fill=("<pad>", "</s>"))

_KINDS = {
    "clip": _Kind("CLIP", is_sigmoid=False, rule=_CLIP_RULE),
    "metaclip_2": _Kind("MetaCLIP 2", is_sigmoid=False, rule=_CLIP_RULE),
    "siglip": _Kind("SigLIP", is_sigmoid=True, rule=_SIGLIP_RULE),
    "siglip2": _Kind("SigLIP 2", is_sigmoid=True, rule=_SIGLIP_RULE),
}
"""By `model_type` of `config.json`. MetaCLIP is a CLIP, and SigLIP 2 of one resolution is a SigLIP."""


MODEL_TYPES = tuple(_KINDS)
"""What `config.json` calls checkpoints of this family."""


class DualEncoder:
    """An encoder of images and texts.

    Attributes:
        card: What it is.
        streams: How many batches of images it works on at once.
        batch_size: Images in a batch, at its best.
        similarity: How a cosine becomes a score.
        similarity_source: Where that comes from, in words.
    """

    def __init__(
        self,
        card: Card,
        images: Tower,
        texts: Callable[[], Tower],
        tokens: TextTokens,
        similarity: tuple[Similarity, str],
    ) -> None:
        self.card = card
        self.streams = images.session.choice.streams
        self.batch_size = images.session.fixed_batch or images.session.choice.batch_size
        self.similarity, self.similarity_source = similarity
        self._images = images
        self._open_texts = texts
        self._texts: Tower | None = None
        self._tokens = tokens
        self._lock = threading.Lock()

    @property
    def choice(self) -> Choice:
        """What its images run on, and why."""
        return self._images.session.choice

    def embed_images(self, batch: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Unit vectors float32[b, d] for a batch prepared as the card says. Thread-safe."""
        return self._unit(self._images.run(batch))

    def embed_texts(self, texts: Sequence[str]) -> Texts:
        """Unit vectors of any number of texts, in their order. Thread-safe.

        It works through them in batches of its own; memory grows with the result alone. No template is added.

        Raises:
            ModelError: The text tower cannot be run, or does not fit the image tower.
        """
        if isinstance(texts, str):
            raise UsageError("texts must be several texts, but got one; put it in a list")
        tower = self._text_tower()
        vectors: npt.NDArray[np.float32] | None = None
        is_truncated = np.zeros(len(texts), np.bool_)
        for batch, cut in self._tokens.batches(texts or [""], _TEXTS_IN_A_BATCH):
            found = self._unit(tower.run(batch.numbers, batch.mask))
            if vectors is None:
                vectors = np.zeros((len(texts), found.shape[1]), np.float32)
            if len(texts):
                vectors[batch.places] = found
                is_truncated[list(cut)] = True
        assert vectors is not None
        return Texts(vectors, is_truncated)

    def _text_tower(self) -> Tower:
        with self._lock:
            if self._texts is None:
                self._texts = self._open_texts()
            return self._texts

    def _unit(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
        if vectors.ndim != 2 or not np.isfinite(lengths).all() or not lengths.all():
            raise ModelError(
                f"{self.card.id} gives embeddings that are no numbers; does it need --precision fp32?"
            )
        return np.asarray(vectors / lengths, np.float32)


class Tower:
    """One of the two networks.

    Args:
        session: Runs it.
        output: Which of its outputs is the embedding.
        split: Makes its inputs of a batch; the first is the main one.
    """

    def __init__(
        self,
        session: Session,
        output: str,
        split: Callable[..., _Inputs] | None = None,
    ) -> None:
        self.session = session
        self._output = output
        self._split: Callable[..., _Inputs] = split or _alone

    def run(self, *inputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """float32[b, d]."""
        batch, beside = self._split(*inputs)
        return self.session.run(batch, self._output, beside)


def files(names: Collection[str], options: RuntimeOptions) -> tuple[str, ...] | None:
    """The files that a run with these options needs; None without settings, a tokenizer or weights."""
    settings = [name for name in (PREPROCESSOR_FILE, PROCESSOR_FILE) if name in names][:1]
    tokenizer = tokenizer_files(names)
    if CONFIG_FILE not in names or not settings or not tokenizer:
        return None
    needed = (CONFIG_FILE, *settings, *tokenizer)
    weights, towers = weight_files(names), tower_files(names, options)
    in_torch = (*needed, *weights) if weights else None
    in_onnx = (*needed, *towers) if towers else None
    if options.runtime == "torch":
        return in_torch
    if options.runtime == "onnxruntime":
        return in_onnx
    if in_torch and in_onnx and options.runtime == "auto":
        return in_torch if _prefers_torch(options) else in_onnx
    return in_onnx or in_torch


def _prefers_torch(options: RuntimeOptions) -> bool:
    """Whether torch is to run a network that is there for torch and in ONNX."""
    try:
        found = decide(options, offers("fp32", has_torch=True), name="the model")
        return found.library == "torch"
    except UsageError:  # what was asked cannot be had; opening the file tells why
        return False


def describe(directory: Path) -> Card:
    """A card for a directory that has none, from the checkpoint's own settings.

    Raises:
        ModelError: They are damaged, or those of another kind of model.
    """
    model_type, config = _read_config(directory)
    kind = _KINDS[model_type]
    preprocess = read_preprocess(directory, model_type)
    check_size(directory, config, preprocess)
    return Card(
        name=directory.name or model_type,
        version="unversioned",
        family="dual_encoder",
        licence="unknown",
        description=f"A {kind.title} checkpoint: embeds images and texts.",
        preprocess=preprocess,
        similarity=joint_similarity(directory, is_sigmoid=kind.is_sigmoid),
    )


def load(card: Card, directory: Path, options: RuntimeOptions) -> DualEncoder:
    """The encoder of a directory or a repository.

    Raises:
        ModelError: A file is missing, damaged, or does not fit the others.
        MissingExtra: There are weights for torch alone, and no torch.
    """
    here = _names_in(directory)
    chosen = files(here, options) or files(here, RuntimeOptions())
    if chosen is None:
        raise ModelError(f"{card.id}: {directory} is no image-text encoder: it needs {LOOKED_FOR}")
    model_type, config = _read_config(directory)
    kind = _KINDS[model_type]
    # The checkpoint's own settings say it best; a card of this package only tells what they are.
    card = replace(card, preprocess=read_preprocess(directory, model_type))
    check_size(directory, config, card.preprocess)
    rule = _rule_of(kind, config)
    tokens = open_tokens(directory, rule, is_sigmoid=kind.is_sigmoid)
    if not kind.is_sigmoid:
        _check_end(directory, model_type, config, tokens)
    if chosen[-1].endswith(".onnx"):
        has_torch = bool(weight_files(here))
        return _in_onnx(card, directory, options, kind, tokens, has_torch=has_torch)
    return _in_torch(card, directory, options, model_type, tokens)


def _in_onnx(
    card: Card,
    directory: Path,
    options: RuntimeOptions,
    kind: _Kind,
    tokens: TextTokens,
    *,
    has_torch: bool,
) -> DualEncoder:
    towers = tower_files(_names_in(directory), options)
    assert towers is not None
    paths = [directory / name for name in towers]
    similarity = _onnx_similarity(card, directory, kind)
    session = open_onnx(paths[0], options, has_torch=has_torch, name=card.name)
    spec = card.preprocess
    if not spec.is_in_patches:
        check_images(paths[0], (3, *spec.size))
    output = output_of(session, paths[0], is_sigmoid=kind.is_sigmoid, embeds="image_embeds")
    images = Tower(session, output, _split_patches if spec.is_in_patches else None)

    def texts() -> Tower:
        session = open_onnx(paths[1], options, has_torch=has_torch, name=card.name)
        output = output_of(session, paths[1], is_sigmoid=kind.is_sigmoid, embeds="text_embeds")
        takes_mask = "attention_mask" in session.inputs
        return Tower(session, output, _beside_mask if takes_mask else None)

    return DualEncoder(card, images, texts, tokens, similarity)


def _alone(batch: npt.NDArray[Any], *_: npt.NDArray[Any]) -> _Inputs:
    return batch, {}


def _beside_mask(numbers: npt.NDArray[Any], mask: npt.NDArray[Any]) -> _Inputs:
    return numbers, {"attention_mask": mask}


def _split_patches(patches: npt.NDArray[Any]) -> _Inputs:
    """The inputs of SigLIP 2's NaFlex of what `fit = "patches"` gives."""
    values, places = patches[..., :-2], patches[..., -2:]
    return np.ascontiguousarray(values), {
        "pixel_attention_mask": (places[..., 0] >= 0).astype(np.int64),
        "spatial_shapes": places.max(axis=1).astype(np.int64) + 1,
    }


def _onnx_similarity(card: Card, directory: Path, kind: _Kind) -> tuple[Similarity, str]:
    """How a cosine becomes a score, which the towers apart do not say.

    Raises:
        ModelError: It is not known, and cannot be taken for granted.
    """
    if card.similarity is not None:
        return card.similarity, "the card"
    found = joint_similarity(directory, is_sigmoid=kind.is_sigmoid)
    if found is not None:
        return found, "the file with both towers"
    if not kind.is_sigmoid:
        return Similarity("softmax", CLIP_SCALE), "what CLIP's training ends at (its paper, 2.5)"
    raise ModelError(
        f"{card.id}: the towers of a {kind.title} do not say its scale and bias, without which there are no"
        f" probabilities; put {FOLDER}/model.onnx beside them, use the checkpoint for torch, or write a card with"
        ' [similarity] kind = "sigmoid", scale and bias (exp(logit_scale) and logit_bias of the checkpoint)'
    )


def _in_torch(
    card: Card, directory: Path, options: RuntimeOptions, model_type: str, tokens: TextTokens
) -> DualEncoder:
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise MissingExtra(f"{card.name}, which has no ONNX files,", "torch")
    # Of patches the network looks at how many there are, so it cannot be taken down as it is.
    offered = offers(None, has_torch=True, is_convertible=not card.preprocess.is_in_patches)
    decision = decide(options, offered, name=card.name)  # it says what can be had
    from annotary.models._transformers_towers import load_towers
    from annotary.runtime.torch_runtime import TorchSession

    images, of_texts, similarity = load_towers(directory, model_type)
    in_torch = replace(options, runtime="torch", device=decision.device)
    if decision.library == "openvino" and options.precision == "fp16":
        in_torch = replace(in_torch, precision="fp32")  # torch has no other there
    session = _image_session(card, directory, options, decision, images, in_torch)

    def texts() -> Tower:
        # They are of many lengths, and few: they stay in torch whatever images run in.
        return Tower(TorchSession(of_texts, (_EMBEDDING,), in_torch), _EMBEDDING)

    found = (similarity, "the checkpoint")
    return DualEncoder(card, Tower(session, _EMBEDDING), texts, tokens, found)


def _image_session(
    card: Card,
    directory: Path,
    options: RuntimeOptions,
    decision: Decision,
    images: nn.Module,
    in_torch: RuntimeOptions,
) -> Session:
    """The image tower in OpenVINO or torch."""
    from annotary.models._transformers_loading import quiet
    from annotary.runtime.torch_runtime import TorchSession

    why_not = ""
    if decision.library == "openvino":
        import torch

        from annotary.runtime.openvino_runtime import OpenVinoSession, convert_torch

        try:
            with quiet():
                example = torch.zeros(1, 3, *card.preprocess.size)
                converted = convert_torch(images, example, _EMBEDDING)
            return OpenVinoSession(directory, options, decision, converted=converted)
        except ModelError as error:
            if options.runtime != "auto":
                raise
            why_not = f"; {error}"
    session = TorchSession(images, (_EMBEDDING,), in_torch, (3, *card.preprocess.size))
    session.choice = replace(session.choice, reason=session.choice.reason + why_not)
    return session


def _read_config(directory: Path) -> tuple[str, dict[str, Any]]:
    """`model_type`, and all of `config.json`.

    Raises:
        ModelError: It cannot be read, or is that of another kind of model.
    """
    path = directory / CONFIG_FILE
    config = read_json(path)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _KINDS:
        known = ", ".join(_KINDS)
        raise ModelError(
            f"{path} is of a model of the type {model_type!r}, which is no image-text encoder known here; known:"
            f" {known}"
        )
    return model_type, config


def _rule_of(kind: _Kind, config: Mapping[str, Any]) -> TokenRule:
    """How long texts are: as many places as the text tower has."""
    text = config.get("text_config") or {}
    length = text.get("max_position_embeddings", kind.rule.length)
    if not isinstance(length, int) or length < 3:
        raise ModelError(f"max_position_embeddings must be at least 3, but is {length!r}")
    return TokenRule(length, kind.rule.is_padded, kind.rule.end, kind.rule.fill)


def _check_end(
    directory: Path, model_type: str, config: Mapping[str, Any], tokens: TextTokens
) -> None:
    """Check that the network reads a text's meaning where the tokenizer ends it, and not at the beginning.

    Raises:
        ModelError: It does not.
    """
    end = (config.get("text_config") or {}).get("eos_token_id")
    # 2 stands for the highest number of a text in early checkpoints (huggingface/transformers#24773).
    is_early = model_type == "clip" and end == 2
    if isinstance(end, int) and end != tokens.end and not is_early:
        raise ModelError(
            f"{directory}: {CONFIG_FILE} says that texts end with token {end}, but its tokenizer ends them with"
            f" {tokens.end}"
        )


def _names_in(directory: Path) -> tuple[str, ...]:
    """The files of a directory, and of the folder with ONNX files in it."""
    try:
        names = [entry.name for entry in os.scandir(directory) if entry.is_file()]
        if (directory / FOLDER).is_dir():
            inside = os.scandir(directory / FOLDER)
            names += [f"{FOLDER}/{entry.name}" for entry in inside if entry.is_file()]
    except OSError as error:
        raise ModelError(f"cannot read {directory}: {error.strerror}") from error
    return tuple(sorted(names))
