"""Small OWL-ViT and OWLv2 detectors in the layout in which they are published; their weights are not trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.encoders import clip_tokenizer, quiet_transformers

SIZE = 64
PATCH = 16
PLACES = (SIZE // PATCH) ** 2
WIDTH = 16
"""Numbers of a query."""

KINDS = ("owlvit", "owlv2")

_SMALL = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def make_owl(directory: Path, kind: str, *, seed: int = 0) -> Path:
    """A checkpoint as transformers writes it: settings, safetensors, tokenizer, image processor.

    Args:
        directory: Where.
        kind: One of `KINDS`.
        seed: Of its random weights.
    """
    with quiet_transformers() as transformers:
        import torch

        torch.manual_seed(seed)
        tokenizer, words = clip_tokenizer(transformers)
        tokenizer.pad_token = "!"  # as published ones have it: number 0
        model = _model(transformers, kind, words).eval()
        with torch.no_grad():  # so that scores and boxes differ from place to place
            for name, value in model.named_parameters():
                if value.ndim > 1:
                    value.normal_(std=0.15)
                if "bias" in name and value.ndim == 1:
                    value.normal_(std=0.1)
            model.class_head.logit_shift.bias.fill_(-0.2)
            model.class_head.logit_scale.bias.fill_(4.0)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        image_processor(kind).save_pretrained(directory)
    return directory


def image_processor(kind: str, size: int = SIZE) -> Any:
    """The image processor of a kind, on Pillow and SciPy."""
    from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil
    from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil

    processors = {"owlvit": OwlViTImageProcessorPil, "owlv2": Owlv2ImageProcessorPil}
    return processors[kind](size={"height": size, "width": size})


def reference(directory: Path, kind: str) -> Any:
    """The same checkpoint as transformers loads it, in float32."""
    with quiet_transformers() as transformers:
        names = {"owlvit": "OwlViTForObjectDetection", "owlv2": "Owlv2ForObjectDetection"}
        return getattr(transformers, names[kind]).from_pretrained(directory).eval()


def _model(transformers: Any, kind: str, words: int) -> Any:
    prefix = {"owlvit": "OwlViT", "owlv2": "Owlv2"}[kind]
    config = getattr(transformers, f"{prefix}Config")(
        text_config={
            **_SMALL,
            "hidden_size": WIDTH,
            "vocab_size": words,
            "max_position_embeddings": 16,
            "bos_token_id": words - 2,
            "eos_token_id": words - 1,
        },
        vision_config={**_SMALL, "hidden_size": 32, "image_size": SIZE, "patch_size": PATCH},
        projection_dim=WIDTH,
    )
    return getattr(transformers, f"{prefix}ForObjectDetection")(config)
