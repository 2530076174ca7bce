"""The steps that make the joint embedding from what the tagger's recipe left: inputs, texts, training, files."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from tokenizers import Tokenizer
from torch import Tensor

from recipes.starter import features, joint_export, joint_inputs, pairs, text_tokens
from recipes.starter.features import Table
from recipes.starter.joint import JointModel, JointOptions, Material, train_joint
from recipes.starter.joint_inputs import Normaliser
from recipes.starter.packages import SentencePackage
from recipes.starter.sentences import SentenceEncoder, padded
from recipes.starter.tables import Example, Vocabulary
from recipes.starter.text_tower import PackedTable

Say = Callable[[str], None]

TEXT_FILE, TOKENIZER_FILE = "text.onnx", "tokenizer.json"

OPTIONS = JointOptions()

CARD_SCALE = 22.0
"""What a cosine is multiplied by before the softmax over labels, for the card: where the likelihood of the labels of
held-aside photos is highest (`joint_report.best_scale`)."""

PHOTO_OF = "a photo of a {}"

_AT_ONCE = 256


@dataclass(frozen=True)
class Texts:
    """All texts of the training."""

    numbers: dict[str, int]
    """Text to its number."""

    means: Tensor
    """``[texts, 512]``: what the sentence encoder's convolutions give."""


@dataclass(frozen=True)
class Encoder:
    """The sentence encoder in its packed form."""

    table: PackedTable
    network: SentenceEncoder
    tokenizer: Tokenizer


def open_encoder(package: SentencePackage, folder: Path) -> Encoder:
    """Read the package; writes `tokenizer.json` into the folder."""
    pieces = text_tokens.read_pieces(package.pieces)
    folder.mkdir(parents=True, exist_ok=True)
    text_tokens.write_tokenizer(pieces, folder / TOKENIZER_FILE)
    table = PackedTable.read(package.weights, len(pieces.names))
    network = SentenceEncoder(table.rows()).read(package.weights).eval()
    return Encoder(table, network, Tokenizer.from_file(str(folder / TOKENIZER_FILE)))


@torch.no_grad()
def encode_texts(encoder: Encoder, texts: Sequence[str], path: Path, say: Say) -> Tensor:
    """``[texts, 512]``: what the convolutions give; kept in a file that names the texts' digest."""
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    if path.exists():
        kept = torch.load(path, weights_only=True)
        if kept["digest"] == digest:
            return torch.as_tensor(kept["means"])
    say(f"{len(texts):,} texts through the sentence encoder")
    ids = [found.ids for found in encoder.tokenizer.encode_batch(list(texts))]
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
    means = torch.zeros(len(texts), encoder.network.leave.out_features)
    for start in range(0, len(order), _AT_ONCE):
        some = order[start : start + _AT_ONCE]
        means[some] = encoder.network.mean(*padded([ids[place] for place in some]))
    torch.save({"digest": digest, "means": means}, path)
    return means


@dataclass(frozen=True)
class Joint:
    """What the files are written from."""

    model: JointModel
    """The heads."""

    normaliser: Normaliser
    """Of the image head's inputs."""

    encoder: Encoder
    """Of texts; its last layers are the trained ones."""

    tokenizer: Path
    """`tokenizer.json`."""


def make_joint(
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    tagger: Path,
    texts: Sequence[pairs.ImageTexts],
    package: SentencePackage,
    tables: dict[str, Table],
    work: Path,
    say: Say,
) -> Joint:
    """Train the joint embedding.

    Args:
        examples: All images.
        vocabulary: The tags.
        tagger: Its ONNX file.
        texts: Of all images.
        package: The sentence encoder's files.
        tables: View name to what the tower gave; the sharp views first.
        work: Folder for everything on the way.
        say: Called with a line of text.
    """
    folder = work / "joint"
    encoder = open_encoder(package, folder)
    groups = [own for each in texts for own in (each.captions, each.names, each.phrases)]
    in_words = [PHOTO_OF.format(name) for name in vocabulary.names]
    numbers = pairs.numbered([*groups, vocabulary.names, in_words])
    means = encode_texts(encoder, list(numbers), folder / "texts.pt", say)
    scores = joint_inputs.tag_scores(tagger, tables, folder / "scores")
    plain = np.array([e.treatment == "none" and not e.is_held_aside for e in examples])
    captioned = plain & np.array([bool(each.captions) for each in texts])
    mean, scale = standardising(onnx.load(tagger))
    normaliser = joint_inputs.make_normaliser(
        tables["whole"], scores["whole"], mean, scale, captioned
    )
    inputs = joint_inputs.normalise(normaliser, tables, scores, say)
    material = _material(texts, numbers, means, vocabulary, plain, tables, scores, inputs)
    run = hashlib.sha256(json.dumps(asdict(OPTIONS), sort_keys=True).encode()).hexdigest()[:12]
    said = f"{len(material.captions):,} images with captions, {len(material.names):,} with names"
    say(f"joint embedding: {said}, {len(numbers):,} texts")
    model = train_joint(material, encoder.network, OPTIONS, folder / f"run_{run}.pt")
    return Joint(model, normaliser, encoder, folder / TOKENIZER_FILE)


def standardising(tagger: onnx.ModelProto) -> tuple[npt.NDArray[np.float32], ...]:
    """What the tagger's file subtracts from its features, and what it divides them by."""
    constants = {entry.name: entry for entry in tagger.graph.initializer}
    makers = {output: node for node in tagger.graph.node for output in node.output}
    multiplied = makers["features"]
    subtracted = makers[multiplied.input[0]]
    mean, inverse = (
        onnx.numpy_helper.to_array(constants[node.input[1]]) for node in (subtracted, multiplied)
    )
    return mean.copy(), (1 / inverse).astype(np.float32)


def _material(
    texts: Sequence[pairs.ImageTexts],
    numbers: dict[str, int],
    means: Tensor,
    vocabulary: Vocabulary,
    plain: npt.NDArray[np.bool_],
    tables: dict[str, Table],
    scores: dict[str, npt.NDArray[np.float16]],
    inputs: Tensor,
) -> Material:
    rows = np.flatnonzero(plain).tolist()

    def numbered(some: Sequence[str]) -> list[int]:
        return [numbers[text] for text in some]

    captions = {row: numbered(texts[row].captions) for row in rows if texts[row].captions}
    names = {
        # A phrase is drawn twice as often as a name.
        row: numbered(texts[row].names + texts[row].phrases * 2)
        for row in rows
        if texts[row].names
    }
    return Material(
        inputs,
        torch.stack([torch.from_numpy(scores[name]) for name in tables]),
        len(features.VIEWS),
        means,
        captions,
        names,
        {row: frozenset(captions.get(row, [])) | frozenset(names.get(row, [])) for row in rows},
        [numbered([name, PHOTO_OF.format(name)]) for name in vocabulary.names],
    )


def write_joint(tagger: Path, joint: Joint, folder: Path, output: Path) -> None:
    """Write `model.onnx` and the compressed tokenizer for the model, and the text tower as it is before it is small.

    Args:
        tagger: Its ONNX file.
        joint: What the files are written from.
        folder: Work folder of the joint embedding, which gets `text.onnx`.
        output: Folder of the model.
    """
    joined = joint_export.add_image_embeds(onnx.load(tagger), joint.normaliser, joint.model)
    joint_export.write(joined, output / "model.onnx")
    text = joint_export.build_text_tower(joint.encoder.table, joint.model)
    joint_export.write(text, folder / TEXT_FILE)
    packed = gzip.compress(joint.tokenizer.read_bytes(), mtime=0)
    (output / f"{TOKENIZER_FILE}.gz").write_bytes(packed)
