"""The row that every image goes down: read, decode, prepare, run the network, write; and how a run is continued."""

from __future__ import annotations

from annotary.pipeline.local import PipelineOptions, annotate
from annotary.pipeline.output import FileOutput, Output, Standing
from annotary.pipeline.run import Outcome, Run

__all__ = ["FileOutput", "Outcome", "Output", "PipelineOptions", "Run", "Standing", "annotate"]
