"""Small image-text encoders in the layout in which they are published; their weights are not trained."""

from __future__ import annotations

import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SIZE = 32
TEXT = (
    "a photo of a cat and a dog in the snow this is a picture of the big city with 3 red cars photographs of people"
    " walking kittens puppies birds don't worry be happy it's fine über schön 日本 the quick brown fox jumps over lazy"
    " dogs"
)

KINDS = ("clip", "clip-gelu", "metaclip2", "siglip", "siglip2", "siglip2-naflex")


@contextmanager
def quiet_transformers() -> Iterator[Any]:
    """transformers, whose own calls of what it deprecates are no errors of ours."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\..*")
        warnings.filterwarnings("ignore", "Palette images with Transparency", UserWarning)
        yield transformers
    logger.setLevel(before)


def make_encoder(directory: Path, kind: str, *, seed: int = 0) -> Path:
    """A checkpoint as transformers writes it: settings, safetensors, tokenizer, image processor.

    Args:
        directory: Where.
        kind: One of `KINDS`.
        seed: Of its random weights.
    """
    with quiet_transformers() as transformers:
        import torch

        torch.manual_seed(seed)
        tokenizer, words = _TOKENIZERS[kind](transformers)
        model = _MODELS[kind](transformers, words).eval()
        with torch.no_grad():  # so that scores differ and sigmoids are neither 0 nor 1
            for name, value in model.named_parameters():
                if value.ndim > 1:
                    value.mul_(3.0)
                if "bias" in name and value.ndim == 1 and "logit" not in name:
                    value.normal_(std=0.1)
            model.logit_scale.fill_(2.5)
            if hasattr(model, "logit_bias"):
                model.logit_bias.fill_(-1.5)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        image_processor(kind, transformers).save_pretrained(directory)
    return directory


def image_processor(kind: str, transformers: Any) -> Any:
    """The image processor of a kind, on Pillow."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    if kind == "siglip2-naflex":
        return Siglip2ImageProcessorPil(patch_size=8, max_num_patches=20)
    if kind.startswith("siglip"):
        return SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )


_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def _vision(**more: Any) -> dict[str, Any]:
    return {
        **_SMALL,
        "image_size": SIZE,
        "patch_size": 8,
        **more,
    }


def _text(words: int, **more: Any) -> dict[str, Any]:
    return {
        **_SMALL,
        "vocab_size": words,
        "max_position_embeddings": 77,
        **more,
    }


def _clip(transformers: Any, words: int, activation: str) -> Any:
    config = transformers.CLIPConfig(
        text_config=_text(
            words,
            hidden_act=activation,
            eos_token_id=2,
            bos_token_id=0,
            pad_token_id=1,
            projection_dim=16,
        ),
        vision_config=_vision(hidden_act=activation, projection_dim=16),
        projection_dim=16,
    )
    return transformers.CLIPModel(config)


def _metaclip2(transformers: Any, words: int) -> Any:
    config = transformers.MetaClip2Config(
        text_config=_text(words, eos_token_id=2, bos_token_id=0, pad_token_id=1, projection_dim=16),
        vision_config=_vision(projection_dim=16),
        projection_dim=16,
    )
    return transformers.MetaClip2Model(config)


def _siglip(transformers: Any, words: int) -> Any:
    config = transformers.SiglipConfig(
        text_config=_text(words, max_position_embeddings=64), vision_config=_vision()
    )
    return transformers.SiglipModel(config)


def _siglip2_naflex(transformers: Any, words: int) -> Any:
    vision = _vision(num_patches=16)
    del vision["image_size"]
    config = transformers.Siglip2Config(
        text_config=_text(words, max_position_embeddings=64), vision_config=vision
    )
    return transformers.Siglip2Model(config)


def clip_tokenizer(transformers: Any) -> tuple[Any, int]:
    """A CLIP tokenizer with every byte and a few words."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    for letter in letters:
        vocabulary[letter + "</w>"] = len(vocabulary)
    merges = [("p", "h"), ("ph", "o"), ("pho", "t"), ("phot", "o</w>"), ("c", "a"), ("ca", "t</w>")]
    merges += [("d", "o"), ("do", "g</w>"), ("o", "f</w>"), ("t", "h"), ("th", "e</w>")]
    for first, second in merges:
        vocabulary[first + second] = len(vocabulary)
    vocabulary["<|startoftext|>"] = len(vocabulary)
    vocabulary["<|endoftext|>"] = len(vocabulary)
    made = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
    return made, len(vocabulary)


def xlm_tokenizer(transformers: Any) -> tuple[Any, int]:
    """A tokenizer of XLM-V's kind."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = ["▁" + word for word in dict.fromkeys(TEXT.split())]
    letters = sorted({*TEXT.replace(" ", ""), "▁", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?{}"})
    pieces += [(piece, -2.0 - i / 100) for i, piece in enumerate(words)]
    pieces += [(letter, -9.0 - i / 100) for i, letter in enumerate(letters)]
    pieces.append(("<mask>", 0.0))
    return transformers.XLMRobertaTokenizer(vocab=pieces), len(pieces)


def siglip_tokenizer(transformers: Any) -> tuple[Any, int]:
    """A SigLIP tokenizer around a small sentencepiece model."""
    path = Path(_sentencepiece_folder()) / "spiece.model"
    made = transformers.SiglipTokenizer(str(path), model_input_names=["input_ids"])
    return made, made.vocab_size


def _sentencepiece_folder() -> str:
    """A folder with a small sentencepiece model, made once."""
    import tempfile

    sentencepiece = pytest.importorskip("sentencepiece")
    if not _made:
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([TEXT.lower()] * 10),
            model_writer=written,
            vocab_size=90,
            model_type="unigram",
            pad_id=-1,
            bos_id=-1,
            eos_id=1,
            unk_id=2,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        folder = tempfile.TemporaryDirectory(prefix="annotary-test-")
        (Path(folder.name) / "spiece.model").write_bytes(written.getvalue())
        _made.append(folder)
    return str(_made[0].name)


_made: list[Any] = []


def gemma_tokenizer(transformers: Any) -> tuple[Any, int]:
    """A tokenizer of SigLIP 2's kind: Gemma's, which ends texts and fills them up on the right."""
    vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for letter in sorted({*TEXT.replace(" ", ""), "▁", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?"}):
        vocabulary.setdefault(letter, len(vocabulary))
    merges = [
        ("▁", "a"),
        ("p", "h"),
        ("ph", "o"),
        ("▁", "pho"),
        ("c", "a"),
        ("ca", "t"),
        ("▁", "cat"),
    ]
    for first, second in merges:
        vocabulary.setdefault(first + second, len(vocabulary))
    made = transformers.Siglip2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        add_bos_token=False,
        add_eos_token=True,
        padding_side="right",
        model_input_names=["input_ids"],
    )
    return made, len(vocabulary)


_TOKENIZERS: dict[str, Any] = {
    "clip": clip_tokenizer,
    "clip-gelu": clip_tokenizer,
    "metaclip2": xlm_tokenizer,
    "siglip": siglip_tokenizer,
    "siglip2": gemma_tokenizer,
    "siglip2-naflex": gemma_tokenizer,
}
_MODELS: dict[str, Any] = {
    "clip": lambda transformers, words: _clip(transformers, words, "quick_gelu"),
    "clip-gelu": lambda transformers, words: _clip(transformers, words, "gelu"),
    "metaclip2": _metaclip2,
    "siglip": _siglip,
    "siglip2": _siglip,
    "siglip2-naflex": _siglip2_naflex,
}


def as_older_files(directory: Path, target: Path) -> Path:
    """A CLIP with `vocab.json` and `merges.txt` in place of `tokenizer.json`, as early ones were published."""
    shutil.copytree(directory, target)
    held = json.loads((target / "tokenizer.json").read_text())
    (target / "tokenizer.json").unlink()
    (target / "vocab.json").write_text(json.dumps(held["model"]["vocab"]))
    lines = [" ".join(pair) if isinstance(pair, list) else pair for pair in held["model"]["merges"]]
    (target / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
    return target


MODEL_TYPES = {
    "clip": "clip",
    "clip-gelu": "clip",
    "metaclip2": "metaclip_2",
    "siglip": "siglip",
    "siglip2": "siglip",
    "siglip2-naflex": "siglip2",
}


def export_towers(directory: Path, target: Path, kind: str, *, ending: str = "") -> Path:
    """The same encoder as it is published for browsers: two networks in the folder `onnx`, and no weights for torch.

    Args:
        directory: Of `make_encoder`.
        target: Where; it may be there already.
        kind: Its kind.
        ending: Of the files' names, such as `_fp16`; what they compute in is not changed by it.
    """
    import torch

    from annotary.models._transformers_towers import load_towers

    towers = load_towers(directory, MODEL_TYPES[kind])
    target.mkdir(exist_ok=True)
    (target / "onnx").mkdir(exist_ok=True)
    for path in directory.iterdir():
        if path.suffix != ".safetensors" and path.is_file():
            shutil.copy(path, target)
    outputs = ("pooler_output",) * 2 if "siglip" in kind else ("image_embeds", "text_embeds")
    length = 64 if "siglip" in kind else 9
    inputs = (torch.randn(2, 3, SIZE, SIZE), torch.randint(3, 60, (2, length)))
    names = (("vision_model", "pixel_values"), ("text_model", "input_ids"))
    modules = (towers.images, towers.texts)
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter is deprecated, and ten times as fast
        for (name, entry), module, example, output in zip(
            names, modules, inputs, outputs, strict=True
        ):
            axes = (
                {0: "batch", 1: "length"} if entry == "input_ids" and length == 9 else {0: "batch"}
            )
            torch.onnx.export(
                *(module, (example,), str(target / "onnx" / f"{name}{ending}.onnx")),
                input_names=[entry],
                output_names=[output],
                dynamic_axes={entry: axes, output: {0: "batch"}},
                dynamo=False,
            )
    return target


def make_joint(path: Path, scale: float, bias: float | None) -> None:
    """A file like the published one with both towers, of which only the score's two numbers are there."""
    import onnx
    from onnx import TensorProto, helper

    numbers = [helper.make_tensor("model.logit_scale", TensorProto.FLOAT, [], [scale])]
    if bias is not None:
        numbers.append(helper.make_tensor("logit_bias", TensorProto.FLOAT, [1], [bias]))
    numbers.append(helper.make_tensor("x.logit_scale_of_another", TensorProto.FLOAT, [], [9.0]))
    graph = helper.make_graph(
        [helper.make_node("Mul", ["cosine", "model.logit_scale"], ["logits_per_image"])],
        "joint",
        [helper.make_tensor_value_info("cosine", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("logits_per_image", TensorProto.FLOAT, ["n"])],
        numbers,
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
