"""JoyTag: a vision transformer that knows 5,813 tags of Danbooru's vocabulary and is at home in photos, too.

Original code: fpgaminer/joytag on GitHub; weights: fancyfeast/joytag on Hugging Face (both Apache-2.0). The network is
in `_joytag_vit.py`.

A directory holds `top_tags.txt`, one tag on each line in the order of the outputs, and the weights in one or more
forms: `model.onnx`, which runs without torch, or `config.json` with `model.safetensors` or `model.pt` for torch. What
differs here: the sigmoid is computed in float32 (the reference's example does it in float16), nothing is dropped from
transparent images (they stand on white), files that the reference's own training writes are read, too, and beside the
tags there may be a `tags.csv` with their categories and thresholds.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from annotary.cards import TAGS_FILE as TABLE_FILE
from annotary.cards import Card, PreprocessSpec, Vocabulary, read_vocabulary
from annotary.errors import MissingExtra, ModelError, UsageError
from annotary.models._onnx_graph import check_input, head_input, read_graph, with_output
from annotary.models._probabilities import probabilities
from annotary.models._vision_tagger_files import TAGGER_FILE
from annotary.runtime import Choice, RuntimeOptions, Session, decide, offers, open_onnx

MODEL_FILE = "model.onnx"
TAGS_FILE = "top_tags.txt"
CONFIG_FILE = "config.json"
WEIGHT_FILES = ("model.safetensors", "model.pt")
LOOKED_FOR = f"{TAGS_FILE} with {MODEL_FILE}, or with {CONFIG_FILE} and {' or '.join(WEIGHT_FILES)}"

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's images, RGB, on the scale 0..1 (README sample of fpgaminer/joytag)."""

THRESHOLDS = {"balanced": {"*": 0.4}}
"""What the model card recommends, and what its published metrics were measured with."""


class JoyTag:
    """A JoyTag model.

    Attributes:
        card: What it is.
        vocabulary: Its tags, in the order of the outputs, which is that of how often they were used.
    """

    def __init__(
        self,
        card: Card,
        vocabulary: Vocabulary,
        session: Session,
        path: Path,
        options: RuntimeOptions,
    ) -> None:
        self.card = card
        self.vocabulary = vocabulary
        self.streams = session.choice.streams
        self.batch_size = session.fixed_batch or session.choice.batch_size
        self._session = session
        self._path = path
        self._options = options
        self._lock = threading.Lock()
        self._features: tuple[Session, str] | None = None

    @property
    def choice(self) -> Choice:
        """What it runs on, and why."""
        return self._session.choice

    def tag_scores(self, batch: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Probabilities float32[b, t], 0..1, for a batch prepared as the card says."""
        logits = self._session.run(batch, self._session.outputs[0])
        return probabilities(self.card, logits, len(batch), len(self.vocabulary))

    def features(self, batch: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """The embedding float32[b, d] that the head reads, the mean of the normalised tokens; not normalised itself.

        Raises:
            ModelError: The network has none: its head comes before the mean.
        """
        with self._lock:
            if self._features is None:
                self._features = self._with_features()
            session, output = self._features
        found = session.run(batch, output)
        if found.ndim != 2:
            raise ModelError(f"{self.card.id} gives no features: {output!r} is {found.shape}")
        return found

    def _with_features(self) -> tuple[Session, str]:
        """A session that gives the embedding, and its output's name."""
        if self._path.name != MODEL_FILE:
            if "features" not in self._session.outputs:
                raise ModelError(
                    f"{self.card.id} gives no features: its head comes before the mean"
                )
            return self._session, "features"
        # The published file has one output; the embedding is there, but is not given out.
        output = head_input(self._path, self._session.outputs[0])
        if output in self._session.outputs:
            return self._session, output
        with _temporary_folder() as folder:
            extended = folder / MODEL_FILE
            with_output(self._path, output, extended)
            self._session = open_onnx(extended, self._options, origin=self._path)
        return self._session, output


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="annotary-", ignore_cleanup_errors=True)
    except OSError as error:
        raise ModelError(f"no temporary folder can be made: {error.strerror or error}") from error
    with folder as name:
        yield Path(name)


def files(names: Collection[str], options: RuntimeOptions) -> tuple[str, ...] | None:
    """The files that a run with these options needs; without tags and weights it is not this family's."""
    if TAGS_FILE not in names or TAGGER_FILE in names:  # the latter is of a `vision_tagger`
        return None
    tags = (TAGS_FILE, *((TABLE_FILE,) if TABLE_FILE in names else ()))
    weights = next((name for name in WEIGHT_FILES if name in names), None)
    in_torch = (*tags, CONFIG_FILE, weights) if weights and CONFIG_FILE in names else None
    in_onnx = (*tags, MODEL_FILE) if MODEL_FILE in names else None
    if options.runtime == "torch":
        return in_torch
    if options.runtime != "auto":
        return in_onnx
    if in_torch and in_onnx:
        return in_torch if prefers_torch(options) else in_onnx
    return in_onnx or in_torch


def prefers_torch(options: RuntimeOptions) -> bool:
    """Whether torch is to run a network that is there for torch and in ONNX."""
    try:
        return decide(options, offers("fp32", has_torch=True), name="joytag").library == "torch"
    except UsageError:  # what was asked cannot be had; opening the file tells why
        return False


def describe(directory: Path) -> Card:
    """A card for a directory that has none; `config.json` or the network tells the size.

    Raises:
        ModelError: They are damaged.
    """
    return Card(
        name=directory.name or "joytag",
        version="unversioned",
        family="joytag",
        licence="unknown",
        description="A JoyTag model.",
        preprocess=preprocess_of(_image_size(directory)),
        thresholds=THRESHOLDS,
        activation="sigmoid",
    )


def preprocess_of(size: int) -> PreprocessSpec:
    """How JoyTag wants its images: a white square, bicubic, RGB, CLIP's mean and deviation."""
    return PreprocessSpec(
        size=(size, size),
        fit="pad",
        resample="bicubic",
        pad_colour=(255, 255, 255),
        layout="nchw",
        dtype="float32",
        scale=255.0,
        mean=MEAN,
        std=STD,
    )


def load(card: Card, directory: Path, options: RuntimeOptions) -> JoyTag:
    """The tagger of a directory or a repository.

    Raises:
        ModelError: A file is missing, damaged, or does not fit the others.
        MissingExtra: There are weights for torch alone, and no torch.
    """
    here = [
        name
        for name in (TAGS_FILE, TABLE_FILE, MODEL_FILE, CONFIG_FILE, *WEIGHT_FILES)
        if (directory / name).is_file()
    ]
    chosen = files(here, options) or files(here, RuntimeOptions())
    if chosen is None:
        raise ModelError(f"{card.id}: {directory} is no JoyTag model: it needs {LOOKED_FOR}")
    vocabulary = read_tags(directory / TAGS_FILE, card)
    path = directory / chosen[-1]
    if path.name == MODEL_FILE:
        has_torch = files(here, RuntimeOptions(runtime="torch")) is not None
        session = open_onnx(path, options, has_torch=has_torch, name=card.name)
        check_input(path, card)
    else:
        session = _torch_session(card, directory, vocabulary, options)
    return JoyTag(card, vocabulary, session, path, options)


def read_tags(path: Path, card: Card) -> Vocabulary:
    """The vocabulary of a `top_tags.txt`, with categories and thresholds of a `tags.csv` beside it, if there is one.

    Raises:
        ModelError: One cannot be read, holds something else, or they have other tags.
    """
    names = tag_lines(path)
    try:
        vocabulary = Vocabulary(names, ("",) * len(names))
        if (path.parent / TABLE_FILE).is_file():
            vocabulary = read_vocabulary(path.parent)
            if vocabulary.names != names:
                raise ValueError(f"{TABLE_FILE} has other tags, or in another order")
        return vocabulary.with_thresholds(card.thresholds)
    except ValueError as error:
        raise ModelError(f"cannot read the tags of {path}: {error}") from error


def tag_lines(path: Path) -> tuple[str, ...]:
    """The tags of a `top_tags.txt`: one on each line, in the order of the outputs.

    Raises:
        ModelError: It cannot be read, or holds none.
    """
    try:
        lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n"))
        names = tuple(line for line in lines if line)
        if not names:
            raise ValueError("it has no tags")
        return names
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read the tags of {path}: {error}") from error


def _torch_session(
    card: Card, directory: Path, vocabulary: Vocabulary, options: RuntimeOptions
) -> Session:
    if find_spec("torch") is None:
        raise MissingExtra(f"JoyTag without {MODEL_FILE}", "torch")
    decide(options, offers(None, has_torch=True), name=card.name)  # it says what can be had
    from annotary.models._joytag_vit import load_network
    from annotary.runtime.torch_runtime import TorchSession

    network = load_network(directory)
    network.check_size(*card.preprocess.size)
    if network.config.n_tags != len(vocabulary):
        raise ModelError(
            f"{card.id}: {TAGS_FILE} has {len(vocabulary)} tags, but {CONFIG_FILE} says"
            f" {network.config.n_tags}"
        )
    outputs = ("tags",) if network.config.head_mean_after else ("tags", "features")
    shape = (3, *card.preprocess.size)
    return TorchSession(network, outputs, options, shape)


def _image_size(directory: Path) -> int:
    """The side in pixels that the weights were trained with."""
    path = directory / CONFIG_FILE
    if path.is_file():
        try:
            size = json.loads(path.read_text(encoding="utf-8"))["image_size"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(f"cannot read image_size of {path}: {error}") from error
        if not isinstance(size, int) or size < 1:
            raise ModelError(f"{path}: image_size must be a whole number of at least 1: {size!r}")
        return size
    shape = read_graph(directory / MODEL_FILE).inputs[0].shape
    return (shape[2] if len(shape) == 4 else None) or 448
