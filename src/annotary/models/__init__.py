"""Models: one file a family, and the folder is the registry.

A family is a module with three functions and a constant; a new one is a new file (or a plugin, see
`annotary.registry`):

    def load(card: Card, directory: Path, options: RuntimeOptions) -> Model
        The model of a directory, ready to run, with the abilities that its family has.

    def files(names: Collection[str], options: RuntimeOptions) -> tuple[str, ...] | None
        Of the files of a directory or a repository, those that a run with these options needs; None when it is not a
        model of this family, or none that runs so. Nothing but the names may be looked at: nothing has been fetched
        yet. Files beside an ONNX file that hold weights of it need not be told.

    def describe(directory: Path) -> Card
        A card for a directory that holds those files and has no card.

    LOOKED_FOR: str
        What `files` looks for where there is no card, in words, for the message that nothing was found.

and four more, where they are needed:

    def check_libraries(name: str) -> None
        Raises `MissingExtra` where no model of this family can run here. Runs ask before they fetch a known one.

    FOLDERS: tuple[str, ...]
        Folders of a directory or repository whose files are told to `files`, too, as `folder/file`.

    READ_FIRST: tuple[str, ...]
        Of a repository without a card, the small files that `describe` reads: they are fetched before the others, so
        that nothing large is fetched of a model of another kind.

    MODEL_TYPES: tuple[str, ...]
        The `model_type`s of `config.json` that are of this family. Where several families would take the same names,
        the one is taken whose type it is.

A family that is only ever chosen by a card in the model's directory needs `load` alone.
"""

from __future__ import annotations

from annotary.models._finding import (
    Found,
    check_pullable,
    describe_known,
    find,
    pull,
    told_size,
)
from annotary.models._loading import Model, load_model

__all__ = [
    "Found",
    "Model",
    "check_pullable",
    "describe_known",
    "find",
    "load_model",
    "pull",
    "told_size",
]
