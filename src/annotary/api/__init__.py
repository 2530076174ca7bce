"""annotary from Python: the same pipeline as the command line, with records as results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from annotary import weights
from annotary.api._annotator import Annotator
from annotary.api._running import Records
from annotary.errors import UsageError
from annotary.inputs import ImageInput
from annotary.models import find, load_model
from annotary.runtime import RuntimeOptions
from annotary.tasks.label_sets import LabelSet
from annotary.tasks.text_cache import TextCache

__all__ = [
    "Annotator",
    "Records",
    "ask",
    "caption",
    "classify",
    "detect",
    "embed",
    "list_models",
    "load",
    "match",
    "tag",
]


def load(
    name: str | Sequence[str] = "starter",
    *,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto",
    runtime: Literal["auto", "onnxruntime", "openvino", "torch"] = "auto",
) -> Annotator:
    """Load a model, or several taggers that are asked together.

    Args:
        name: `starter`, another name of `annotary models`, `hf:OWNER/NAME`, or `dir:` and the path of a model
            directory. A model that is published elsewhere is fetched when it is not on disk yet. Several names: the
            mean of the taggers that know a tag.
        threads: Processor cores to use, at least 1; all that the process may use when nothing is said.
        device: Where networks run; `auto` takes a GPU when there is one that can be used.
        precision: Of the arithmetic; `auto` takes what is fast here and changes no result that matters.
        runtime: The library that runs networks; `auto` takes the fastest that is installed.

    Raises:
        UsageError: The name is unknown, and the message lists what exists; or what was asked cannot be had here.
        ModelError: The model's files are missing, damaged or do not fit its card.
    """
    if not isinstance(threads, int | None):
        raise UsageError(f"threads must be whole and at least 1, but got {threads!r}")
    try:
        options = RuntimeOptions(threads, device, precision, runtime)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not isinstance(name, str) and not isinstance(name, Sequence):
        raise UsageError(f"a model's name is text, such as 'dir:{name}', but got {name!r}")
    names = [name] if isinstance(name, str) else list(name)
    if not names or len(set(names)) < len(names):
        raise UsageError(f"name at least one model, and each once; but got {names}")
    found = [find(one, options) for one in names]
    models = [load_model(one, options) for one in found]
    return Annotator(*models, cache=lambda: TextCache.of(found[0].fingerprint(), models[0]))


def list_models() -> tuple[str, ...]:
    """The models that are known by name, for `load`; `annotary models` tells more of each."""
    return tuple(weights.known())


def tag(images: ImageInput, model: str | Sequence[str] = "starter", **options: Any) -> Records:
    """Tag images with a model by name; see `Annotator.tag` for what is taken and given."""
    return load(model).tag(images, **options)


def classify(
    images: ImageInput,
    labels: str | Iterable[str] | Mapping[str, Any] | LabelSet,
    model: str = "starter",
    **options: Any,
) -> Records:
    """Classify images with a model by name; see `Annotator.classify` for what is taken and given."""
    return load(model).classify(images, labels, **options)


def caption(images: ImageInput, model: str = "starter", **options: Any) -> Records:
    """Describe images with a model by name; see `Annotator.caption` for what is taken and given."""
    return load(model).caption(images, **options)


def ask(
    images: ImageInput,
    questions: str | Iterable[str] | Mapping[str, str | Iterable[str]],
    model: str = "starter",
    **options: Any,
) -> Records:
    """Ask questions about images with a model by name; see `Annotator.ask` for what is taken and given."""
    return load(model).ask(images, questions, **options)


def match(
    images: ImageInput,
    texts: str | Iterable[str] | Mapping[str, str | Iterable[str]],
    model: str = "starter",
    **options: Any,
) -> Records:
    """Judge texts with a model by name; see `Annotator.match` for what is taken and given."""
    return load(model).match(images, texts, **options)


def detect(
    images: ImageInput,
    labels: str | Iterable[str] | Mapping[str, Any] | LabelSet | None = None,
    model: str = "starter",
    **options: Any,
) -> Records:
    """Find things with a model by name; see `Annotator.detect` for what is taken and given."""
    return load(model).detect(images, labels, **options)


def embed(images: ImageInput, model: str = "starter", **options: Any) -> Records:
    """Embed images with a model by name; see `Annotator.embed` for what is taken and given."""
    return load(model).embed(images, **options)
