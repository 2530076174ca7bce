"""Labelled datasets, split into parts: one file a format, and the folder is the registry.

First every image is labelled, into a journal that is continued when a run was stopped (`Labelling`). Then the dataset
is made of the journal (`Building`): a part is chosen for every image, and images, tables or both are written. However
many there are, no more than some bytes of each are kept in memory.

A format is a module; a new one is a new file (or a plugin, see `annotary.registry`):

    PLACES_IMAGES: bool
        Whether images are put into the dataset, as PART/LABEL/NAME; otherwise tables say where they are.

    def open(output: Path) -> Tables
        What is written beside `labels.csv` and `dataset.json`, which every dataset has. Files that exist are replaced
        when all went well, and not before.

A format of boxes has:

    TASK = "detect"
    PLACES_IMAGES = True
    FOLDERS: tuple[str, ...]
        The folders of a part, `{part}` being its name, that of the images first: ("{part}/images", "{part}/labels").

    def open(output: Path, classes: Sequence[str], parts: Sequence[str]) -> Tables
        The same, of all labels and parts in their order.

    def beside(row: Row, classes: Sequence[str]) -> tuple[str, bytes]
        Optional: the file of each image's own, as its path in the dataset and its content. It is written when the image
        comes into the dataset, and never again, so that corrections by hand stay. It is named by the image without its
        suffix, which then no two images share.

    PLAIN_NAMES: bool
        Optional: whether its readers stumble over spaces in names.

Files whose names begin with an underscore are the room's machinery.
"""

from __future__ import annotations

from annotary.datasets._building import Building
from annotary.datasets._contract import (
    Row,
    Tables,
    TaskName,
    check_format,
    formats,
    places_images,
    task_of,
)
from annotary.datasets._dataset import Dataset, Description
from annotary.datasets._images import StoringReader
from annotary.datasets._labelling import Labelling
from annotary.datasets._options import DatasetOptions
from annotary.datasets._split import UNSURE, parse_shares
from annotary.datasets._task import BoxTask, LabelTask, box_task, label_task, lowest_kept

__all__ = [
    "UNSURE",
    "BoxTask",
    "Building",
    "Dataset",
    "DatasetOptions",
    "Description",
    "LabelTask",
    "Labelling",
    "Row",
    "StoringReader",
    "Tables",
    "TaskName",
    "box_task",
    "check_format",
    "formats",
    "label_task",
    "lowest_kept",
    "parse_shares",
    "places_images",
    "task_of",
]
