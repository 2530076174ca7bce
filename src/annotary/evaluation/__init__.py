"""How good annotations are: metrics with the rules of the published numbers they are compared with."""

from annotary.evaluation.calibration import CalibrationOptions, Fit, Measured, Scale, calibrate
from annotary.evaluation.class_names import named_classes
from annotary.evaluation.labelled import CaptionedImages, Labelled, LabelledImages
from annotary.evaluation.protocols import PROTOCOLS, Protocol, protocol_named
from annotary.evaluation.retrieval import Direction, RetrievalResult, measure_retrieval
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
from annotary.evaluation.zero_shot import (
    Confusion,
    Interval,
    Ranks,
    ZeroShotClassifier,
    ZeroShotResult,
    ZeroShotScore,
    expected_calibration_error,
    roc_auc,
    wilson,
)

__all__ = [
    "PROTOCOLS",
    "AnnotationScore",
    "CalibrationOptions",
    "CaptionedImages",
    "Confusion",
    "Direction",
    "Fit",
    "Interval",
    "Labelled",
    "LabelledImages",
    "Measured",
    "Protocol",
    "Ranks",
    "Reliability",
    "RetrievalResult",
    "Scale",
    "Summary",
    "TagCounts",
    "TagRates",
    "Thresholds",
    "ZeroShotClassifier",
    "ZeroShotResult",
    "ZeroShotScore",
    "average_precision",
    "calibrate",
    "calibration_error",
    "expected_calibration_error",
    "fit_thresholds",
    "five_tag_protocol",
    "measure_retrieval",
    "named_classes",
    "protocol_named",
    "reliability",
    "roc_auc",
    "wilson",
]
