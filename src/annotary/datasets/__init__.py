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

Files whose names begin with an underscore are the room's machinery.
"""

from __future__ import annotations

from annotary.datasets._building import Building
from annotary.datasets._contract import Row, Tables, check_format, formats, places_images
from annotary.datasets._dataset import Dataset, Description
from annotary.datasets._images import StoringReader
from annotary.datasets._labelling import Labelling
from annotary.datasets._options import DatasetOptions
from annotary.datasets._split import UNSURE, parse_shares
from annotary.datasets._task import LabelTask, label_task

__all__ = [
    "UNSURE",
    "Building",
    "Dataset",
    "DatasetOptions",
    "Description",
    "LabelTask",
    "Labelling",
    "Row",
    "StoringReader",
    "Tables",
    "check_format",
    "formats",
    "label_task",
    "parse_shares",
    "places_images",
]
