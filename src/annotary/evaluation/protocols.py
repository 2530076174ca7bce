"""The 26 datasets that CLIP and MetaCLIP are compared on: which number is reported, with how many templates.

From the evaluation of SLIP (Mu et al. 2021, "SLIP: Self-supervision meets Language-Image Pre-training"), which MetaCLIP
(Xu et al. 2023) took over. The datasets, names and templates themselves are not part of this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from annotary.errors import UnknownName
from annotary.evaluation.zero_shot import ZeroShotResult

Metric: TypeAlias = Literal["top1", "mean_per_class", "top1_and_top5", "roc_auc"]

METRICS: dict[Metric, str] = {
    "top1": "top-1",
    "mean_per_class": "mean per class",
    "top1_and_top5": "mean of top-1 and top-5",
    "roc_auc": "ROC-AUC",
}
"""What numbers are called for people."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """What is reported on a dataset.

    Attributes:
        name: Of the dataset.
        templates: How many a class is averaged over.
        classes: How many there are.
        metric: The number that is reported.
    """

    name: str
    templates: int
    classes: int
    metric: Metric = "top1"

    def suits(self, classes: int) -> bool:
        """Whether there are as many classes as its number needs."""
        least, most = {"roc_auc": (2, 2), "top1_and_top5": (5, classes)}.get(
            self.metric, (1, classes)
        )
        return least <= classes <= most

    def value(self, result: ZeroShotResult) -> float | None:
        """The number that is reported; None where the classes do not allow for it."""
        return {
            "top1": result.top1,
            "mean_per_class": result.mean_per_class,
            "top1_and_top5": result.top1_and_top5,
            "roc_auc": result.roc_auc,
        }[self.metric]


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("imagenet", 80, 1000),
        Protocol("food101", 1, 101),
        Protocol("cifar10", 18, 10),
        Protocol("cifar100", 18, 100),
        Protocol("cub", 1, 200),
        Protocol("sun397", 2, 397),
        Protocol("cars", 8, 196),
        Protocol("aircraft", 2, 100, "mean_per_class"),
        Protocol("dtd", 8, 47),
        Protocol("pets", 1, 37, "mean_per_class"),
        Protocol("caltech101", 34, 102, "mean_per_class"),
        Protocol("flowers", 1, 102, "mean_per_class"),
        Protocol("mnist", 1, 10),
        Protocol("fer2013", 6, 7),
        Protocol("stl10", 2, 10),
        Protocol("eurosat", 3, 10),
        Protocol("resisc45", 18, 45),
        Protocol("gtsrb", 3, 43),
        Protocol("kitti", 1, 4),
        Protocol("country211", 5, 211),
        Protocol("pcam", 1, 2),
        Protocol("ucf101", 48, 101),
        Protocol("kinetics700", 28, 700, "top1_and_top5"),
        Protocol("clevr", 1, 8),
        Protocol("hateful-memes", 1, 2, "roc_auc"),
        Protocol("sst2", 1, 2),
    )
}
"""By name."""


def protocol_named(name: str) -> Protocol:
    """The protocol of a dataset.

    Raises:
        UnknownName: There is none; the message lists all.
    """
    if name not in PROTOCOLS:
        raise UnknownName("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
