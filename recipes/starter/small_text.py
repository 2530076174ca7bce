"""Makes the text tower small: its table of pieces in product codes.

The tower that `joint_export` writes has half a byte a number, 256 bytes a piece. Here the pieces of the captions and
names that the starter was trained on stay as they are, and the others have 96 bytes, or 192 if they are frequent. The
codes are chosen by how far the text vectors move (`codes`), which is measured on those texts and on pieces of all
languages put together by chance: no text of the languages is needed.

``python -m recipes.starter.small_text --data ../shared/data --output text.onnx``
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from tokenizers import Tokenizer
from torch import Tensor

from recipes.starter import features
from recipes.starter.codes import CENTRES, CodedRows, encode
from recipes.starter.graph import GraphBuilder
from recipes.starter.graph_in_torch import TorchGraph
from recipes.starter.sentences import WIDTH, padded
from recipes.starter.tables import read_vocabulary
from recipes.starter.text_tower import PackedTable, add_lookup

IDS, MASK, OUTPUT = "input_ids", "attention_mask", "text_embeds"

FIRST_WORD = 30
"""Pieces before it are no text."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class SizeOptions:
    """Chosen on Flickr8k dev, see the page."""

    groups: int = 96
    """Bytes of a piece."""

    width: int = 5
    """Directions that a byte tells of."""

    first: int = 22_000
    """The most frequent pieces, which have as many bytes again."""

    floor: float = 0.03
    """What every direction counts at least, as a share of the mean."""

    looked_at: int = 24
    """Batches that tell what the text vectors notice."""

    batch_size: int = 96
    """Texts of a batch."""

    seed: int = 0
    """Of everything."""


@dataclass(frozen=True)
class WideTable:
    """The table of the tower as `text_tower` writes it, and where it is in the graph."""

    output: str
    """The tensor of rows."""

    packed: PackedTable
    """As it is kept."""

    rows: Tensor
    """``[pieces, 512]``: all rows."""


def read_table(path: Path) -> WideTable:
    """Read the table out of the file: its lookup is asked for every piece."""
    model = onnx.load(path)
    graph = model.graph
    output = next(node for node in graph.node if node.op_type == "Transpose").input[0]
    makers = {name: node for node in graph.node for name in node.output}
    arrays = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    scaled, low = (makers[name] for name in makers[output].input)
    scale = makers[scaled.input[1]]
    whole = next(a for a in arrays.values() if a.dtype == np.uint8 and a.shape[1:] == (WIDTH,))
    halves = next(a for a in arrays.values() if a.shape[1:] == (WIDTH // 2,))
    levels = next(a for a in arrays.values() if a.shape == halves.shape[:1])
    pieces = len(whole) + len(halves)
    packed = PackedTable(
        whole, halves, levels, arrays[scale.input[0]][:, 0], arrays[low.input[0]][:, 0]
    )
    places = np.arange(pieces, dtype=np.int64)[None]
    session = features.open_session(_with_output(model, output))
    (rows,) = session.run([output], {IDS: places, MASK: np.ones_like(places)})
    return WideTable(output, packed, torch.from_numpy(rows[0].copy()))


def _with_output(model: onnx.ModelProto, name: str) -> bytes:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    data: bytes = copy.SerializeToString()
    return data


class Texts:
    """Texts as pieces: captions and names, and pieces put together by chance.

    Args:
        texts: Captions and names, as pieces.
        pieces: How many pieces there are.

    Attributes:
        used: The pieces of the texts.
    """

    def __init__(self, texts: Sequence[list[int]], pieces: int) -> None:
        self._texts = texts
        self._pieces = pieces
        self.used = sorted({piece for text in texts for piece in text})

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pieces and mask of a batch: a third texts, the others one to eight pieces of any language."""
        share = count // 3
        chosen = torch.randint(len(self._texts), (share,), generator=generator).tolist()
        found = [self._texts[place] for place in chosen]
        for _ in range(count - share):
            length = int(torch.randint(1, 9, (1,), generator=generator))
            low, high = FIRST_WORD, self._pieces
            if torch.rand(1, generator=generator) < 0.5:  # as often frequent pieces alone
                high = self._pieces // 4
            found.append([1, *torch.randint(low, high, (length,), generator=generator).tolist(), 2])
        return padded(found)


def metric_of(tower: TorchGraph, table: WideTable, texts: Texts, options: SizeOptions) -> Tensor:
    """How much a change of a piece's shape changes the text vectors ``[512, 512]``, with mean 1 on the diagonal."""
    generator = torch.Generator().manual_seed(options.seed)
    width = table.rows.shape[1]
    total = torch.zeros(width, width)
    for _ in range(options.looked_at):
        ids, mask = texts.draw(options.batch_size, generator)
        rows = table.rows[ids].requires_grad_()
        vectors = tower({table.output: rows, MASK: mask})
        # A random direction of the output: its squared gradient is, on average, that of all.
        direction = torch.randn(vectors.shape, generator=generator)
        (found,) = torch.autograd.grad((vectors * direction).sum(), rows)
        is_word = (mask > 0) & (ids >= FIRST_WORD)
        lengths = table.rows[ids[is_word]].norm(dim=1, keepdim=True)
        each = found[is_word] * lengths
        # A text counts once, however much of it a piece is.
        each = each / each.norm(dim=1, keepdim=True).clamp(min=1e-9).sqrt()
        total += each.T @ each
    total = total / total.trace() * width
    return total + options.floor * torch.eye(width)


def write(
    path: Path,
    source: Path,
    coded: CodedRows,
    table: WideTable,
    used: Sequence[int],
) -> None:
    """Write the small tower: the source's graph with another lookup."""
    model = onnx.load(source)
    kept = [node for node in model.graph.node if not _leads_to(node, model.graph, table.output)]
    graph = GraphBuilder("coded_")
    _add_rows(graph, coded, table, used)
    needed = {name for node in kept for name in node.input}
    arrays = [entry for entry in model.graph.initializer if entry.name in needed]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend([*graph.nodes, *kept])
    model.graph.initializer.extend([*graph.constants, *arrays])
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _leads_to(node: onnx.NodeProto, graph: onnx.GraphProto, output: str) -> bool:
    """Whether a node is part of the old lookup: it stands before its end and nothing after it needs it."""
    names = [name for each in graph.node for name in each.output]
    end = names.index(output)
    later = {
        name for each in graph.node for name in each.input if names.index(each.output[0]) > end
    }
    return names.index(node.output[0]) <= end and not (set(node.output) - {output}) & later


def _add_rows(graph: GraphBuilder, coded: CodedRows, table: WideTable, used: Sequence[int]) -> None:
    """Rows of the pieces ``[b, t, 512]``, under the name that the graph knows."""
    packed, kept = table.packed, np.array(used)
    limit = len(packed.whole)
    whole, rest = kept[kept < limit], kept[kept >= limit] - limit
    small = replace(
        packed, whole=packed.whole[whole], halves=packed.halves[rest], levels=packed.levels[rest]
    )
    slots = np.full(len(table.rows), -1, np.int16)
    slots[kept] = np.arange(len(kept))
    zero = graph.constant(np.array(0, np.int64))
    slot = graph.node("Gather", graph.constant(slots), IDS)
    slot = graph.node("Cast", slot, to=TensorProto.INT64)
    as_before = add_lookup(graph, small, graph.node("Max", slot, zero))
    is_coded = graph.node("Less", slot, zero)
    is_coded = graph.node("Unsqueeze", is_coded, graph.constant(np.array([2], np.int64)))
    graph.node("Where", is_coded, _add_coded(graph, coded), as_before, name=table.output)


def _add_coded(graph: GraphBuilder, coded: CodedRows) -> str:
    """Rows of the pieces ``[b, t, 512]`` as `CodedRows.rows` gives them."""
    groups, width = coded.centres.shape[0], coded.centres.shape[2]
    first = len(coded.extra_codes)
    found = _add_centres(graph, coded.codes, coded.centres, IDS)
    place = graph.node("Min", IDS, graph.constant(np.array(first - 1, np.int64)))
    extra = _add_centres(graph, coded.extra_codes, coded.extra_centres, place)
    is_first = graph.node("Less", IDS, graph.constant(np.array(first, np.int64)))
    axes = graph.constant(np.array([2, 3], np.int64))
    shares = graph.node("Unsqueeze", graph.node("Cast", is_first, to=TensorProto.FLOAT), axes)
    found = graph.node("Add", found, graph.node("Mul", extra, shares))
    shape = graph.constant(np.array([0, 0, groups * width], np.int64))
    turn = graph.wide(coded.turn.half().numpy())
    turned = graph.node("MatMul", graph.node("Reshape", found, shape), turn)
    turned = graph.node("Add", turned, graph.constant(coded.middle.numpy()))
    lengths = graph.node("Gather", graph.constant(coded.lengths.numpy()), IDS)
    lengths = graph.node("Cast", lengths, to=TensorProto.INT64)
    length = graph.node("Gather", graph.constant(coded.length.numpy()), lengths)
    length = graph.node("Unsqueeze", length, graph.constant(np.array([2], np.int64)))
    return graph.node("Mul", turned, length)


def _add_centres(graph: GraphBuilder, codes: Tensor, centres: Tensor, places: str) -> str:
    """The centres that the codes of some places choose, ``[b, t, groups, width]``."""
    starts = np.arange(centres.shape[0], dtype=np.int64) * CENTRES
    chosen = graph.node("Gather", graph.constant(codes.numpy()), places)
    chosen = graph.node("Cast", chosen, to=TensorProto.INT64)
    chosen = graph.node("Add", chosen, graph.constant(starts))
    flat = graph.wide(centres.flatten(0, 1).half().numpy())
    return graph.node("Gather", flat, chosen)


def make(
    source: Path,
    tokenizer: Path,
    texts: Sequence[str],
    output: Path,
    options: SizeOptions,
    say: Say,
) -> None:
    """Write the small tower.

    Args:
        source: The tower as `joint_export` wrote it.
        tokenizer: Its `tokenizer.json`.
        texts: Captions of the training and names, in any language.
        output: The file to write.
        options: How small.
        say: Called with a line of text.
    """
    pieces = [found.ids for found in Tokenizer.from_file(str(tokenizer)).encode_batch(list(texts))]
    table = read_table(source)
    tower = TorchGraph(source, [table.output], OUTPUT)
    drawn = Texts(pieces, len(table.rows))
    say("what the text vectors notice of the pieces")
    metric = metric_of(tower, table, drawn, options)
    say(f"codes of {len(table.rows):,} pieces")
    coded = encode(table.rows, metric, options.groups, options.width, options.first, options.seed)
    write(output, source, coded, table, drawn.used)
    say(f"{output}: {output.stat().st_size / 1e6:.1f} MB, {json.dumps(asdict(options))}")


def training_texts(data: Path) -> list[str]:
    """Captions of the training split of Flickr8k, and the tags, alone and as photos."""
    rows = (data / "flickr8k" / "index.jsonl").read_text(encoding="utf-8").splitlines()
    captions = [
        caption.strip().rstrip(" .")
        for row in map(json.loads, rows)
        if row["split"] == "train"
        for caption in row["captions"]
    ]
    names = read_vocabulary().names
    return [*captions, *names, *(f"a photo of a {name}" for name in names)]


def main() -> int:
    """``python -m recipes.starter.small_text --data ../shared/data --work build/starter``."""
    parser = argparse.ArgumentParser(prog="python -m recipes.starter.small_text")
    parser.add_argument("--data", type=Path, required=True, help="folder with flickr8k")
    parser.add_argument("--work", type=Path, default=Path("build/starter"), help="work folder")
    parser.add_argument("--output", type=Path, required=True, help="the file to write")
    arguments = parser.parse_args()
    start = time.perf_counter()
    torch.set_num_threads(features.THREADS)
    make(
        arguments.work / "joint" / "text.onnx",
        arguments.work / "joint" / "tokenizer.json",
        training_texts(arguments.data),
        arguments.output,
        SizeOptions(),
        lambda line: print(f"[{time.perf_counter() - start:5.0f} s] {line}", flush=True),
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
