"""annotary as base models of autodistill: zero-shot labels and boxes as `supervision` has them, datasets, embeddings.

    from annotary.autodistill import Annotary, AnnotaryDetection, CaptionOntology

    base_model = Annotary(ontology=CaptionOntology({"a forklift": "forklift", "person": "person"}))
    results = base_model.predict("context_images/one.jpeg")
    base_model.label("context_images")

`Annotary` classifies images and takes the place of autodistill-metaclip; `AnnotaryDetection` finds boxes in them. Needs
the extra `autodistill`, and is not imported without it.
"""

from __future__ import annotations

from annotary.autodistill._classifying import Annotary
from annotary.autodistill._detecting import AnnotaryDetection
from annotary.autodistill._imported import CaptionOntology

__all__ = ["Annotary", "AnnotaryDetection", "CaptionOntology"]
