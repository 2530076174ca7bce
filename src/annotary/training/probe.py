"""Linear probes: a new head on a model that stays as it is, trained in seconds on features that were computed once.

The features are what the model's own head reads (JoyTag, taggers of vision networks, the starter and other ONNX files
that give `features`), or the summary of a vision network that has no head yet (DINOv2 and 3, SigLIP, CLIP, ViT; of an
encoder of images and texts its image network, before the projection). What comes of it is a model directory: of a
JoyTag and of a vision network one like a checkpoint's, of an ONNX file one with the same network and another head.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from annotary.cards import (
    CARD_FILE,
    TAGS_FILE,
    Card,
    PreprocessSpec,
    Vocabulary,
    card_text,
    digest_of,
    fingerprint,
    vocabulary_text,
)
from annotary.errors import MissingExtra, ModelError, OutputError, UsageError
from annotary.models import find, load_model
from annotary.models._onnx_graph import head_input, read_graph
from annotary.models._vision_tagger_files import WEIGHTS_FILE, backbone_directory
from annotary.models.onnx_tagger import MODEL_FILE, network_file
from annotary.runtime import RuntimeOptions, decide, offers
from annotary.training.checkpoints import publish, save_checkpoint
from annotary.training.network import TaggerNetwork, build_network
from annotary.training.recipe import NetworkRecipe
from annotary.training.tagger import TaggerData, TaggerHead, TaggerOptions, train_tagger

Features = npt.NDArray[np.float32]
Thresholds = Mapping[str, float | Sequence[float]]


@dataclass(frozen=True)
class FeatureSource:
    """A model whose features are read.

    Attributes:
        name: As it was asked for.
        directory: Where its files are.
        card: What it is.
        kind: How it is written with another head: as a `joytag`, as a `backbone`, or as an `onnx` file.
        fingerprint: Changes with anything that the features depend on.
        run: From a batch prepared as the card says to float32[b, d].
    """

    name: str
    directory: Path
    card: Card
    kind: Literal["joytag", "backbone", "onnx"]
    fingerprint: str
    run: Callable[[npt.NDArray[np.generic]], Features]

    @property
    def spec(self) -> PreprocessSpec:
        """How images are prepared."""
        return self.card.preprocess


@dataclass(frozen=True)
class Probe:
    """A trained head.

    Attributes:
        source: What it reads the features of.
        tags: In the order of the outputs.
        weight: float32[t, d].
        bias: float32[t].
    """

    source: FeatureSource
    tags: tuple[str, ...]
    weight: Features
    bias: Features

    def scores(self, features: Features) -> Features:
        """Probabilities float32[n, t], 0..1, of features float32[n, d]."""
        logits = features @ self.weight.T + self.bias
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), np.float32)

    def write(
        self,
        folder: Path,
        thresholds: Thresholds | None = None,
        categories: Sequence[str] | None = None,
    ) -> Path:
        """Write the model with this head, as a directory that tags at once.

        Args:
            folder: Its name; one that is there is replaced.
            thresholds: Preset to a threshold 0..1 for all tags, or one for each.
            categories: One for each tag.

        Raises:
            UsageError: The tags cannot stand in a file, or thresholds do not fit them.
            ModelError: The model cannot be read.
            OutputError: The folder cannot be written.
        """
        if self.source.kind == "onnx":
            return _write_onnx(self, folder, thresholds or {}, categories)
        network = _network_of(self.source, self.tags)
        with torch.no_grad():
            network.head.weight.copy_(torch.from_numpy(self.weight))
            network.head.bias.copy_(torch.from_numpy(self.bias))
        return save_checkpoint(
            folder,
            network,
            self.tags,
            self.source.spec,
            thresholds,
            categories=categories,
            about=_about(self.source, folder),
        )


def open_source(name: str, options: RuntimeOptions | None = None) -> FeatureSource:
    """The model whose features shall be read.

    Args:
        name: As for `annotary.load`; or a vision network of Hugging Face, a folder or a repository.
        options: How it runs.

    Raises:
        UsageError: There is no such model, or it gives no features.
        ModelError: It is damaged.
    """
    try:
        found = find(name, options)
    except UsageError:
        if ":" not in name and "/" not in name:  # neither a folder nor a repository
            raise
        directory = backbone_directory(name)  # tells what is wrong with it
        return _backbone_source(name, directory, options)
    except ModelError as error:
        # Without a network nobody can say that a repository is no tagger, but its backbone may be here.
        if not name.startswith("hf:"):
            raise
        try:
            return _backbone_source(name, backbone_directory(name), options)
        except (UsageError, ModelError):
            raise error from None
    if found.card.family == "dual_encoder":
        return _backbone_source(name, found.directory, options)
    model: Any = load_model(found, options)
    if not hasattr(model, "features"):
        raise UsageError(f"{found.card.id} gives no features that a head could read")
    in_torch = (found.directory / WEIGHTS_FILE).is_file() or (
        found.directory / "model.pt"
    ).is_file()
    kind: Literal["joytag", "backbone", "onnx"] = "onnx"
    if found.card.family == "joytag" and in_torch:
        kind = "joytag"
    elif found.card.family == "vision_tagger":
        kind = "backbone"
    return FeatureSource(
        name, found.directory, found.card, kind, found.fingerprint(), model.features
    )


def train_probe(
    source: FeatureSource,
    features: Features,
    targets: npt.NDArray[np.uint8],
    tags: Sequence[str],
    options: TaggerOptions | None = None,
    *,
    is_known: npt.NDArray[np.bool_] | None = None,
    weights: npt.NDArray[np.float32] | None = None,
    state: Path | None = None,
    report: Callable[[int, float], None] | None = None,
) -> Probe:
    """Train a linear head.

    Args:
        source: What the features are of.
        features: float32[views, n, d], as `feature_cache.cached_features` gives them.
        targets: [n, t], 0 or 1.
        tags: In the order of the targets' columns.
        options: How; 30 epochs of AdamW with binary cross entropy when nothing is said.
        is_known: bool[n], images that count.
        weights: [n, t], how much each target counts, 0 or more; 1 when nothing is said.
        state: File from which a stopped training goes on, and to which it is saved; the bits are the same.
        report: Called after every step with its number and its loss.

    Raises:
        UsageError: There is nothing to train on, or the head would not be linear.
    """
    options = options or TaggerOptions()
    if options.hidden:
        raise UsageError("a probe is linear, so hidden must be 0")
    rows = np.flatnonzero(is_known) if is_known is not None else np.arange(len(targets))
    if not len(rows) or len(tags) != targets.shape[1]:
        raise UsageError(
            f"a probe needs images and their tags, but got {len(rows)} images and {len(tags)} tags"
        )
    data = TaggerData(
        torch.from_numpy(np.ascontiguousarray(features[:, rows])),
        torch.from_numpy(np.ascontiguousarray(targets[rows])),
        None if weights is None else torch.from_numpy(np.ascontiguousarray(weights[rows])),
    )
    head = train_tagger(
        replace(data, targets=data.targets.float()), options, checkpoint=state, report=report
    )
    weight, bias = folded(head)
    return Probe(source, tuple(tags), weight.numpy(), bias.numpy())


@torch.no_grad()
def folded(head: TaggerHead) -> tuple[Tensor, Tensor]:
    """Weight [t, d] and bias [t] that read features as they are, where the head reads them standardised.

    Args:
        head: A linear one.
    """
    weight = head.last.weight.double() / head.scale.double()
    bias = head.last.bias.double() - weight @ head.mean.double()
    return weight.float(), bias.float()


def _backbone_source(name: str, directory: Path, options: RuntimeOptions | None) -> FeatureSource:
    """A vision network without a head, whose own summary is read."""
    from annotary.models._checkpoint_preprocess import read_preprocess
    from annotary.models._vision_tagger_network import (
        VisionTaggerForUse,
        load_backbone,
        vision_config,
    )
    from annotary.runtime.torch_runtime import TorchSession

    options = options or RuntimeOptions()
    decide(options, offers(None, has_torch=True), name=name)  # it says what can be had

    spec = read_preprocess(directory, vision_config(directory).model_type)
    card = Card(
        name=directory.name,
        version="unversioned",
        family="vision_tagger",
        licence="unknown",
        preprocess=spec,
        activation="sigmoid",
    )
    names = [path.name for path in directory.iterdir() if path.is_file()]
    network = VisionTaggerForUse(load_backbone(directory), 1)
    network.check_size(*spec.size)
    session = TorchSession(network.eval(), ("tags", "features"), options, (3, *spec.size))

    def run(batch: npt.NDArray[np.generic]) -> Features:
        return session.run(batch, "features")

    told = fingerprint(directory, names, extra="pooled")
    return FeatureSource(name, directory, card, "backbone", told, run)


def _network_of(source: FeatureSource, tags: Sequence[str]) -> TaggerNetwork:
    """The network in torch, with a head for some tags."""
    kind: Literal["joytag", "backbone"] = "joytag" if source.kind == "joytag" else "backbone"
    recipe = NetworkRecipe(kind=kind, start=f"dir:{source.directory}")
    side = source.spec.size[0]
    return build_network(recipe, tags, image_size=side)


def _about(source: FeatureSource, folder: Path) -> dict[str, str]:
    return {
        "name": folder.name,
        "version": "1.0",
        "licence": source.card.licence,  # what is made of weights keeps their licence
        "source": source.card.id,
        "description": f"A linear probe on {source.card.id}, trained with annotary.",
    }


def _write_onnx(
    probe: Probe, folder: Path, thresholds: Thresholds, categories: Sequence[str] | None
) -> Path:
    """A directory with the network of an ONNX file and another head."""
    count = len(probe.tags)
    try:
        each = {
            name: (float(value),) * count if isinstance(value, float | int) else tuple(value)
            for name, value in thresholds.items()
        }
        vocabulary = Vocabulary(probe.tags, tuple(categories or ("",) * count), each)
    except ValueError as error:
        raise UsageError(f"the tags make no vocabulary: {error}") from error
    model = _with_head(probe)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / MODEL_FILE).write_bytes(model.SerializeToString())
        (partial / TAGS_FILE).write_text(vocabulary_text(vocabulary), encoding="utf-8")
        about = _about(probe.source, folder)
        card = Card(
            name=about["name"],
            version=about["version"],
            family="onnx_tagger",
            licence=about["licence"],
            description=about["description"],
            source=about["source"],
            preprocess=probe.source.spec,
            thresholds={} if each else {"balanced": {"*": 0.4}},
            files={MODEL_FILE: digest_of(partial / MODEL_FILE)},
        )
        (partial / CARD_FILE).write_text(card_text(card), encoding="utf-8")
        publish(partial, folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def _with_head(probe: Probe) -> Any:
    """The network of an ONNX file that gives `scores` of the new head, and `features`, and nothing else."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra("Writing ONNX files", "export") from error
    path = probe.source.directory / network_file(probe.source.card)
    outputs = [value.name for value in read_graph(path).outputs]
    features = "features" if "features" in outputs else head_input(path, outputs[0])
    try:
        model = cast(Any, onnx.load(path))
    except Exception as error:  # protobuf's own errors have no common name that can be imported
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"cannot read {path}: {told}") from error
    graph = model.graph
    _keep_what_makes(graph, features)
    for node in graph.node:  # another value may have the name that the new output gets
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == "scores":
                    names[place] = "scores_before"
    make, tensor = onnx.helper.make_node, onnx.numpy_helper.from_array
    graph.initializer.extend(
        [tensor(probe.weight, "probe_weight"), tensor(probe.bias, "probe_bias")]
    )
    graph.node.extend(
        [
            make("Gemm", [features, "probe_weight", "probe_bias"], ["probe_logits"], transB=1),
            make("Sigmoid", ["probe_logits"], ["scores"]),
        ]
    )
    kind, (tags, width) = onnx.TensorProto.FLOAT, probe.weight.shape
    del graph.output[:]
    value = onnx.helper.make_tensor_value_info
    graph.output.extend([value("scores", kind, ["n", tags]), value(features, kind, ["n", width])])
    return model


def _keep_what_makes(graph: Any, name: str) -> None:
    """Leave out nodes and weights that a value does not depend on."""
    makers = {output: node for node in graph.node for output in node.output}
    waiting, needed = [name], set()
    while waiting:
        wanted = waiting.pop()
        if wanted in needed:
            continue
        needed.add(wanted)
        if wanted in makers:
            waiting.extend(_read_by(makers[wanted]))
    nodes = [node for node in graph.node if needed & set(node.output)]
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)


def _read_by(node: Any) -> list[str]:
    """Values that a node reads, those inside its branches and loops, too."""
    inside = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return [
        *node.input,
        *(name for graph in inside for one in graph.node for name in _read_by(one)),
    ]
