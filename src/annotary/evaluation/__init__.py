"""How good annotations are: metrics with the rules of the published numbers they are compared with."""

from annotary.evaluation.tagging import (
    AnnotationScore,
    Reliability,
    Summary,
    TagCounts,
    TagRates,
    Thresholds,
    average_precision,
    calibration_error,
    fit_thresholds,
    five_tag_protocol,
    reliability,
)

__all__ = [
    "AnnotationScore",
    "Reliability",
    "Summary",
    "TagCounts",
    "TagRates",
    "Thresholds",
    "average_precision",
    "calibration_error",
    "fit_thresholds",
    "five_tag_protocol",
    "reliability",
]
