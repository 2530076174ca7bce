"""The row that every image goes down: read, decode, prepare, run the network, write; and how a run is continued."""

from __future__ import annotations

from annotary.pipeline.local import PipelineOptions, Result, annotate
from annotary.pipeline.output import FileOutput, Output, Standing
from annotary.pipeline.reapply import Reapply
from annotary.pipeline.run import Outcome, Run
from annotary.pipeline.scores import SavedScores, ScoreWriter

__all__ = [
    "FileOutput",
    "Outcome",
    "Output",
    "PipelineOptions",
    "Reapply",
    "Result",
    "Run",
    "SavedScores",
    "ScoreWriter",
    "Standing",
    "annotate",
]
