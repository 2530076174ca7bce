"""Small BLIP checkpoints in the layout in which they are published; their weights are not trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.encoders import TEXT, quiet_transformers

SIZE = 32

KINDS = ("captioning", "vqa", "itm")

_CLASSES = {
    "captioning": "BlipForConditionalGeneration",
    "vqa": "BlipForQuestionAnswering",
    "itm": "BlipForImageTextRetrieval",
}

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MORE = (
    "what colour is this how many are there yes no two three red blue on in with ? ! . , - ' ( )"
)


def make_blip(directory: Path, kind: str, *, seed: int = 0) -> Path:
    """A checkpoint as transformers writes it: settings, safetensors, tokenizer, image processor.

    Args:
        directory: Where.
        kind: One of `KINDS`.
        seed: Of its random weights.
    """
    with quiet_transformers() as transformers:
        import torch
        from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

        torch.manual_seed(seed)
        tokenizer, words = bert_tokenizer(transformers)
        config = transformers.BlipConfig(
            text_config={
                "vocab_size": words + 2,  # [DEC] and [ENC], which the tokenizer does not know
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": 64,
                "bos_token_id": words,
                "sep_token_id": tokenizer.sep_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            vision_config={
                # What answers looks at states of questions with layers that are as wide as those of images.
                "hidden_size": 32 if kind == "vqa" else 48,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": SIZE,
                "patch_size": 8,
            },
            image_text_hidden_size=16,
        )
        model = getattr(transformers, _CLASSES[kind])(config).eval()
        with torch.no_grad():
            for name, value in model.named_parameters():
                if value.ndim > 1:
                    # With the usual numbers every image would have the same texts, which never end.
                    value.normal_(std=0.3 if "crossattention" in name else 0.15)
                elif "bias" in name:
                    value.normal_(std=0.1)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        processor = BlipImageProcessorPil(size={"height": SIZE, "width": SIZE})
        processor.save_pretrained(directory)
    return directory


def bert_tokenizer(transformers: Any) -> tuple[Any, int]:
    """A BERT tokenizer with a few words and every letter, and how many pieces it has."""
    words = list(dict.fromkeys([*TEXT.lower().split(), *_MORE.split()]))
    letters = sorted({*"abcdefghijklmnopqrstuvwxyz0123456789", *"".join(words)})
    pieces = [*words, *letters, *(f"##{letter}" for letter in letters), "##ing", "##s"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*_SPECIAL, *pieces]))}
    made = transformers.BertTokenizer(vocab=vocabulary, do_lower_case=True)
    return made, len(vocabulary)
