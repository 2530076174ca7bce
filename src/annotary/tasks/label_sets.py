"""The labels that a user offers, and the sentences that each stands for: lists, files, ontologies, tables, templates.

A label has one or more prompts. Where there are several, of an ontology or of templates, their vectors are averaged as
in the protocol of CLIP (Radford et al. 2021, section 3.1.4): normalise, mean, normalise.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from annotary.errors import MissingExtra, UsageError
from annotary.tasks._imagenet_templates import IMAGENET_TEMPLATES

DEFAULT_TEMPLATE = "a photo of a {}."
"""Of labels that are words. The prompts of an ontology are sentences already and get none."""

DEFAULT_BACKGROUND = ("a photo.", "a picture.", "an image of something.")
"""What an image without any of the labels is compared with, where a comparison is needed and none was told."""

_IMAGENET = "imagenet"
_MAPPINGS = (".yaml", ".yml", ".json")

_LONGEST_CELL = 1 << 24
"""Characters of a cell of CSV; the 20,000 labels of an image are more than Python's limit lets through."""


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """Which labels there are."""

    labels: str | None = field(default=None, metadata={"metavar": "A,B,..."})
    """Labels, with commas between them."""

    labels_file: Path | None = field(default=None, metadata={"metavar": "FILE"})
    """A file with one label on each line."""

    ontology: Path | None = field(default=None, metadata={"metavar": "FILE"})
    """A YAML or JSON file that maps prompts to labels, `a photo of a milk bottle: bottle`, or labels to lists of
    prompts."""

    labels_from: Path | None = field(default=None, metadata={"metavar": "TABLE"})
    """A CSV, JSONL or Parquet table with the columns image and labels: each image has labels of its own."""

    template: tuple[str, ...] = field(default=(), metadata={"metavar": "TEXT"})
    """What a label is put in, {} being its place: "a photo of a {}." May be given several times: the mean is taken."""

    templates: str | None = field(default=None, metadata={"metavar": "imagenet|FILE"})
    """The 80 templates of ImageNet, or those of a file, one on each line."""

    none_label: str | None = field(default=None, metadata={"metavar": "NAME"})
    """What is said of an image that none of the labels fits."""

    background: tuple[str, ...] = field(default=(), metadata={"metavar": "TEXT"})
    """A prompt for what is none of the labels; may be given several times."""

    def __post_init__(self) -> None:
        for template in self.template:
            _check_template("template", template)
        if self.template and self.templates:
            raise ValueError("templates take the place of --template; give one of them")
        if self.none_label is not None and not self.none_label.strip():
            raise ValueError("none_label must have a name")
        if not all(text.strip() for text in self.background):
            raise ValueError("background must not be empty")


@dataclass(frozen=True, slots=True)
class LabelClass:
    """A label and what it stands for.

    Attributes:
        name: The label, as the user wrote it.
        prompts: Sentences; templates are filled in already.
        threshold: From which score on it is given, 0..1; None where nothing is said.
    """

    name: str
    prompts: tuple[str, ...]
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.prompts or not all(map(str.strip, self.prompts)):
            raise ValueError(f"the label {self.name!r} needs a name and prompts that are not empty")
        if not _is_unicode("".join((self.name, *self.prompts))):
            raise ValueError(f"the label {self.name!r} is not valid Unicode")
        if self.threshold is not None and not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"the threshold of {self.name} must be in 0..1: {self.threshold!r}")


@dataclass(frozen=True, slots=True)
class LabelSet:
    """All labels of a run.

    Attributes:
        classes: Each name once.
        background: Prompts for what is none of them; may be empty.
        none_label: What is said of an image that none of them fits; None when that is not asked.
        of_image: Image name to indices of `classes`, where images have labels of their own; None when all have all.
        names: The labels, in their order.
    """

    classes: tuple[LabelClass, ...]
    background: tuple[str, ...] = ()
    none_label: str | None = None
    of_image: Mapping[str, tuple[int, ...]] | None = None
    names: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(label.name for label in self.classes))
        names = set(self.names)
        if not names:
            raise ValueError("there are no labels")
        if len(names) < len(self.classes):
            double = [name for name, count in Counter(self.names).items() if count > 1]
            raise ValueError(f"labels must be different, but {', '.join(double)} is there twice")
        if not all(text.strip() for text in self.background):
            raise ValueError("background must not be empty")
        if not isinstance(self.none_label, str | None):
            raise TypeError(f"none_label must be text, but got {self.none_label!r}")
        if self.none_label is not None and not self.none_label.strip():
            raise ValueError("none_label must have a name")
        for what, texts in (("background", self.background), ("none_label", (self.none_label,))):
            for text in texts:
                if text is not None and not _is_unicode(text):
                    raise ValueError(f"{what} is not valid Unicode: {text!r}")
        if self.none_label in names:
            raise ValueError(
                f"none_label must differ from the labels, but {self.none_label!r} is one"
            )

    @classmethod
    def of(
        cls,
        labels: str | Iterable[str] | Mapping[str, Any],
        template: str | Sequence[str] | None = None,
        *,
        none_label: str | None = None,
        background: str | Iterable[str] = (),
    ) -> LabelSet:
        """Labels of Python values.

        Args:
            labels: "a, b, c", a list of words, or an ontology: prompts to labels, or labels to lists of prompts.
            template: What each is put in, or several; of words `DEFAULT_TEMPLATE` when nothing is said.
            none_label: What is said of an image that none fits.
            background: A prompt for what is none of them, or several; one that is said twice counts once.

        Raises:
            UsageError: There are none, one is empty, or a template has no place for them.
        """
        try:
            told = _texts("template", () if template is None else template)
            for text in told:
                _check_template("template", text)
            if isinstance(labels, Mapping):
                classes = filled(ontology_classes(labels), told or ("{}",))
            else:
                words = split_labels(labels) if isinstance(labels, str) else _each("labels", labels)
                classes = filled(word_classes(words), told or (DEFAULT_TEMPLATE,))
            return cls(classes, _texts("background", background), none_label)
        except (ValueError, TypeError) as error:
            raise UsageError(str(error)) from error


def read_labels(options: LabelOptions) -> LabelSet:
    """The labels that options tell.

    Raises:
        UsageError: None are told, or more than one way; a file cannot be read or makes no sense.
    """
    told = [
        name
        for name in ("labels", "labels_file", "ontology", "labels_from")
        if getattr(options, name) is not None
    ]
    if len(told) != 1:
        flags = ", ".join("--" + name.replace("_", "-") for name in told)
        asked = "with --labels, --labels-file, --ontology or --labels-from"
        raise UsageError(f"say the labels in one way{f'; got {flags}' if told else f', {asked}'}")
    if options.labels_file is not None and options.labels_file.suffix.lower() in _MAPPINGS:
        raise UsageError(
            f"{options.labels_file} is no list of labels but an ontology: say --ontology"
        )
    path = options.labels_file or options.ontology or options.labels_from
    try:
        of_image = None
        if options.ontology is not None:
            classes = ontology_classes(_read_mapping(options.ontology))
        elif options.labels_from is not None:
            words, of_image = _read_table(options.labels_from)
            classes = word_classes(words)
        elif options.labels_file is not None:
            classes = word_classes(_lines(options.labels_file))
        else:
            classes = word_classes(split_labels(options.labels or ""))
        templates = _templates(options, has_prompts=options.ontology is not None)
        background = _texts("background", options.background)
        return LabelSet(filled(classes, templates), background, options.none_label, of_image)
    except (OSError, ValueError, TypeError, csv.Error, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"{path}: {reason}" if path else f"--labels: {reason}") from error


def shortened(text: str) -> str:
    """A text of at most 80 characters, for messages."""
    return text if len(text) <= 80 else text[:77] + "..."


def split_labels(text: str) -> list[str]:
    """The labels of "a, b, c". A label with a comma in it needs a file."""
    return [label for part in text.split(",") if (label := part.strip())]


def word_classes(words: Iterable[str]) -> tuple[LabelClass, ...]:
    """A class for each word; a word that is said twice counts once.

    Raises:
        TypeError: One is no text.
        ValueError: One is empty, or there are none.
    """
    kept: dict[str, LabelClass] = {}
    for word in words:
        if not isinstance(word, str):
            raise TypeError(f"a label must be text, but got {word!r}")
        text = str(word)  # NumPy's are texts of their own kind
        kept.setdefault(text, LabelClass(text, (text,)))
    if not kept:
        raise ValueError("there are no labels")
    return tuple(kept.values())


def ontology_classes(ontology: Mapping[Any, Any]) -> tuple[LabelClass, ...]:
    """The classes of an ontology, in the order in which they are named first.

    Args:
        ontology: Prompt to label, where several prompts may have one label; or label to a list of prompts; or label to
            a table with `prompts` and `threshold`. These may be mixed. A label without any prompts is its own prompt.

    Raises:
        TypeError: It is no such thing.
        ValueError: A label or a prompt is empty.
    """
    prompts: dict[str, dict[str, None]] = {}
    thresholds: dict[str, float] = {}
    bare: set[str] = set()
    for key, value in ontology.items():
        if isinstance(value, str):
            name, told = value, [key]
        elif isinstance(value, Mapping):
            if unknown := [one for one in value if one not in ("prompts", "threshold")]:
                raise ValueError(f"{key!r} has unknown keys: {', '.join(map(str, unknown))}")
            name, told = key, value.get("prompts", [])
            if "prompts" not in value:
                bare.add(key)
            if "threshold" in value:
                thresholds[key] = _threshold(key, value["threshold"])
        else:
            name, told = key, value
        told = [told] if isinstance(told, str) else told
        if not isinstance(told, list | tuple):
            raise TypeError(
                f"{key!r} must have a label or a list of prompts, but has {told!r}; put texts in quotes"
            )
        for text in (name, *told):
            if not isinstance(text, str):
                raise TypeError(
                    f"labels and prompts must be texts, but {text!r} is none; put it in quotes"
                )
        prompts.setdefault(name, {}).update(dict.fromkeys(told))
    for name in bare:
        prompts[name] = prompts[name] or {name: None}
    return tuple(
        LabelClass(name, tuple(texts), thresholds.get(name)) for name, texts in prompts.items()
    )


def _threshold(label: Any, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"the threshold of {label!r} must be a number in 0..1, but is {value!r}")
    return float(value)


def filled(classes: Iterable[LabelClass], templates: Sequence[str]) -> tuple[LabelClass, ...]:
    """The classes with each prompt put in each template."""
    return tuple(
        replace(
            label,
            prompts=tuple(
                dict.fromkeys(
                    template.replace("{}", prompt)
                    for prompt in label.prompts
                    for template in templates
                )
            ),
        )
        for label in classes
    )


def read_templates(told: str) -> tuple[str, ...]:
    """The templates of ImageNet, or of a file.

    Args:
        told: `imagenet`, or the path of a file with one template on each line.

    Raises:
        ValueError: A template has no place for the label, or there is none.
        OSError: The file cannot be read.
    """
    if told == _IMAGENET:
        return IMAGENET_TEMPLATES
    templates = tuple(_lines(Path(told)))
    for template in templates:
        _check_template(told, template)
    if not templates:
        raise ValueError(f"{told} has no templates")
    return templates


def _templates(options: LabelOptions, *, has_prompts: bool) -> tuple[str, ...]:
    if options.templates is not None:
        try:
            return read_templates(options.templates)
        except OSError as error:
            raise UsageError(f"--templates {options.templates}: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"--templates: {error}") from error
    return options.template or (("{}",) if has_prompts else (DEFAULT_TEMPLATE,))


def _check_template(what: str, template: str) -> None:
    if "{}" not in template:
        raise ValueError(f"{what} must have {{}} where the label goes, but got {template!r}")


def _texts(what: str, told: str | Iterable[str]) -> tuple[str, ...]:
    """One text or several, each once."""
    texts = (told,) if isinstance(told, str) else tuple(dict.fromkeys(_each(what, told)))
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{what} must be text, but got {text!r}")
    return texts


def _is_unicode(text: str) -> bool:
    """Whether a text can be written, which the names of some files cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _each(what: str, told: Iterable[str]) -> list[str]:
    if not isinstance(told, Iterable) or isinstance(told, bytes):
        raise TypeError(f"{what} must be text or a list of texts, but got {told!r}")
    return list(told)


def _lines(path: Path) -> list[str]:
    """The lines of a text that are not empty."""
    text = _text(path)
    return [line for part in text.splitlines() if (line := part.strip())]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not text in UTF-8") from error


def _read_mapping(path: Path) -> Mapping[Any, Any]:
    """A YAML or JSON file that holds a mapping.

    Raises:
        ValueError: It holds something else, or a key twice, of which one would be lost.
    """
    text = _text(path)
    if path.suffix.lower() == ".json":
        value = json.loads(text, object_pairs_hook=_without_doubles)
    else:
        value = _of_yaml(text)
    if not isinstance(value, Mapping) or not value:
        raise ValueError("an ontology maps prompts to labels, or labels to lists of prompts")
    return value


def _of_yaml(text: str) -> Any:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        node = loader.get_single_node()
        if isinstance(node, yaml.MappingNode):
            scalars = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            _without_doubles([(key.value, None) for key in scalars])
        return None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (LookupError, AttributeError) as error:  # of scalars that are not what their tag says
        raise ValueError(f"this is no YAML that could be read: {error}") from error
    finally:
        loader.dispose()


def _without_doubles(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"{key!r} is there twice; give a label a list of its prompts")
    return found


def _read_table(path: Path) -> tuple[list[str], dict[str, tuple[int, ...]]]:
    """All labels of a table, and for each image which of them are its own."""
    place: dict[str, int] = {}
    of_image: dict[str, tuple[int, ...]] = {}
    for row, (image, told) in enumerate(_rows(path), 1):
        labels = split_labels(told) if isinstance(told, str) else told
        if not isinstance(image, str) or not image or not isinstance(labels, list | tuple):
            raise ValueError(f"row {row} needs an image and labels, but has {image!r} and {told!r}")
        if not all(isinstance(label, str) and label.strip() for label in labels):
            raise ValueError(f"the labels of {image!r} must be texts: {told!r}")
        places = tuple(dict.fromkeys(place.setdefault(label, len(place)) for label in labels))
        of_image[image] = tuple(dict.fromkeys((*of_image.get(image, ()), *places)))
    return list(place), of_image


def _rows(path: Path) -> Iterator[tuple[Any, Any]]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(path)
    elif suffix in (".jsonl", ".ndjson"):
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _json_row(line, number)
    elif suffix in (".csv", ".tsv"):
        with path.open(encoding="utf-8-sig", newline="") as file:
            csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
            reader = csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ",")
            _check_columns(reader.fieldnames or ())
            for row in reader:
                if None in row:
                    raise ValueError(
                        f"line {reader.line_num} has more cells than the head; put labels with commas in quotes"
                    )
                yield row["image"], row["labels"]
    else:
        raise ValueError("the table must be .csv, .tsv, .jsonl or .parquet")


def _json_row(line: str, number: int) -> tuple[Any, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"line {number} must be a JSON object with image and labels")
    return value.get("image"), value.get("labels")


def _parquet_rows(path: Path) -> Iterator[tuple[Any, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("Reading Parquet", "parquet") from error
    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(file.schema_arrow.names)
            for batch in file.iter_batches(columns=["image", "labels"], batch_size=10_000):
                yield from zip(
                    batch.column("image").to_pylist(),
                    batch.column("labels").to_pylist(),
                    strict=True,
                )
    except (pyarrow.ArrowException, KeyError) as error:  # KeyError: a column is there twice
        raise ValueError(" ".join(str(error).split())) from error


def _check_columns(names: Iterable[str]) -> None:
    if lacking := {"image", "labels"} - set(names):
        raise ValueError(f"it has no column {' and no column '.join(sorted(lacking))}")
