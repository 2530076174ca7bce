"""How good annotations are: metrics with the rules of the published numbers they are compared with."""

from annotary.evaluation.box_files import DrawnBoxes, FoundBoxes, found_in, read_drawn, read_found
from annotary.evaluation.box_matching import Matches, match_boxes
from annotary.evaluation.calibration import CalibrationOptions, Fit, Measured, Scale, calibrate
from annotary.evaluation.captions import CaptionResult, measure_captions
from annotary.evaluation.class_names import named_classes
from annotary.evaluation.detection import DetectionResult, LabelResult, measure_detection
from annotary.evaluation.detection_thresholds import ThresholdFit, fit_box_thresholds
from annotary.evaluation.labelled import CaptionedImages, Labelled, LabelledImages
from annotary.evaluation.protocols import PROTOCOLS, Protocol, protocol_named
from annotary.evaluation.reference_free import clip_scores, ref_clip_scores
from annotary.evaluation.resampling import Correlation, correlation
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
    "CaptionResult",
    "CaptionedImages",
    "Confusion",
    "Correlation",
    "DetectionResult",
    "Direction",
    "DrawnBoxes",
    "Fit",
    "FoundBoxes",
    "Interval",
    "LabelResult",
    "Labelled",
    "LabelledImages",
    "Matches",
    "Measured",
    "Protocol",
    "Ranks",
    "Reliability",
    "RetrievalResult",
    "Scale",
    "Summary",
    "TagCounts",
    "TagRates",
    "ThresholdFit",
    "Thresholds",
    "ZeroShotClassifier",
    "ZeroShotResult",
    "ZeroShotScore",
    "average_precision",
    "calibrate",
    "calibration_error",
    "clip_scores",
    "correlation",
    "expected_calibration_error",
    "fit_box_thresholds",
    "fit_thresholds",
    "five_tag_protocol",
    "found_in",
    "match_boxes",
    "measure_captions",
    "measure_detection",
    "measure_retrieval",
    "named_classes",
    "protocol_named",
    "read_drawn",
    "read_found",
    "ref_clip_scores",
    "reliability",
    "roc_auc",
    "wilson",
]
