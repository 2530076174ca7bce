"""The starter's smaller parts: rows of a table in bytes, graphs run in torch, and the decoder of captions as ONNX."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

ROOT = Path(__file__).parents[2]
PIECES, WIDTH = 1500, 512


@pytest.fixture(scope="module")
def recipe() -> SimpleNamespace:
    names = ("codes", "small_text", "graph_in_torch", "caption_export", "graph", "text_tower")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield SimpleNamespace(
            **{name: importlib.import_module(f"recipes.starter.{name}") for name in names}
        )
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tower(recipe, tmp_path_factory) -> Path:
    """A text tower of one product after a table as `text_tower` writes it."""
    random = np.random.default_rng(3)
    text_tower, graph = recipe.text_tower, recipe.text_tower.GraphBuilder()
    rest = PIECES - text_tower.WHOLE_ROWS
    table = text_tower.PackedTable(
        random.integers(0, 64, (text_tower.WHOLE_ROWS, WIDTH), dtype=np.uint8),
        random.integers(0, 256, (rest, WIDTH // 2), dtype=np.uint8),
        np.full(rest, 22, np.uint8),  # steps of 22 to 37
        np.full(17, 0.01, np.float32),
        np.full(17, -0.3, np.float32),
    )
    rows = graph.node("Transpose", text_tower.add_lookup(graph, table), perm=[0, 2, 1])
    mask = graph.node("Cast", "attention_mask", to=onnx.TensorProto.FLOAT)
    kept = graph.node("Mul", rows, graph.node("Unsqueeze", mask, text_tower._whole(graph, 1)))
    summed = graph.node("ReduceSum", kept, text_tower._whole(graph, 2), keepdims=0)
    product = text_tower.add_product(graph, summed, random.normal(size=(64, WIDTH)).astype("f4"))
    text_tower.add_unit(graph, product, name="text_embeds")
    path = tmp_path_factory.mktemp("tower") / "text.onnx"
    path.write_bytes(text_tower.finish(graph, 64).SerializeToString())
    return path


def run(path: Path, ids: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    asked = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}
    return session.run(["text_embeds"], asked)[0]


def test_codes_keep_what_the_reader_notices(recipe):
    """Only 8 of 32 directions count: with the right metric these are kept far better than without it."""
    torch.manual_seed(0)
    table = torch.randn(3000, 32) * 3
    seen = torch.zeros(32, 32)
    seen[:8, :8] = torch.eye(8)
    errors = []
    for metric in (seen + 0.01 * torch.eye(32), torch.eye(32)):
        coded = recipe.codes.encode(table, metric, groups=8, width=4, first=500)
        assert coded.codes.dtype == torch.uint8
        assert coded.codes.shape == (3000, 8)
        assert coded.extra_codes.shape == (500, 8)
        left = ((coded.rows(torch.arange(3000)) - table)[:, :8] ** 2).mean(1) / (table**2).mean()
        assert left[:500].mean() < 0.5 * left[500:].mean()  # twice the bytes
        errors.append(float(left[500:].mean()))
    assert errors[0] < 0.25 * errors[1]


def test_the_same_seed_gives_the_same_codes(recipe):
    table = torch.randn(1000, 16, generator=torch.Generator().manual_seed(1))
    one, other, third = (
        recipe.codes.encode(table, torch.eye(16), 4, 4, 100, seed=seed) for seed in (0, 0, 5)
    )
    assert torch.equal(one.codes, other.codes)
    assert not torch.equal(one.codes, third.codes)


def test_a_graph_gives_in_torch_what_it_gives_in_onnx(recipe, tower):
    table = recipe.small_text.read_table(tower)
    assert table.rows.shape == (PIECES, WIDTH)
    ids = np.array([[5, 1100, 1400, 7], [1023, 1024, 0, 0]])
    graph = recipe.graph_in_torch.TorchGraph(tower, [table.output], "text_embeds")
    mask = torch.from_numpy((ids > 0).astype(np.int64))
    given = {table.output: table.rows[torch.from_numpy(ids)], "attention_mask": mask}
    np.testing.assert_allclose(graph(given).detach().numpy(), run(tower, ids), atol=1e-5)
    with pytest.raises(ValueError, match="which is not known here"):
        recipe.graph_in_torch.TorchGraph(tower, [], "text_embeds")


def test_the_small_tower_reads_codes_and_the_rows_that_stay(recipe, tower, tmp_path):
    small_text = recipe.small_text
    options = small_text.SizeOptions(groups=32, width=4, first=1200, looked_at=2, batch_size=16)
    table = small_text.read_table(tower)
    graph = recipe.graph_in_torch.TorchGraph(tower, [table.output], "text_embeds")
    texts = small_text.Texts([[1, 40, 1100, 2], [1, 1300, 1450, 2]], PIECES)
    assert texts.used == [1, 2, 40, 1100, 1300, 1450]
    metric = small_text.metric_of(graph, table, texts, options)
    torch.testing.assert_close(metric, metric.T)
    coded = recipe.codes.encode(table.rows, metric, 32, 4, 1200)
    path = tmp_path / "text.onnx"
    small_text.write(path, tower, coded, table, texts.used)
    used = np.array([[1, 40, 1100, 2], [1450, 1300, 40, 40]])
    np.testing.assert_allclose(run(path, used), run(tower, used), atol=1e-5)
    ids = np.random.default_rng(0).integers(3, PIECES, (64, 5))
    rows = coded.rows(torch.from_numpy(ids))
    is_used = torch.isin(torch.from_numpy(ids), torch.tensor(texts.used))[..., None]
    rows = torch.where(is_used, table.rows[torch.from_numpy(ids)], rows)
    given = {table.output: rows, "attention_mask": torch.ones(ids.shape)}
    found = run(path, ids)
    np.testing.assert_allclose(found, graph(given).detach().numpy(), atol=5e-3)
    assert 0.8 < (found * run(tower, ids)).sum(1).mean() < 0.99999


def test_the_decoder_writes_in_onnx_what_it_writes_in_torch(recipe):
    from annotary.training.captioner import CaptionDecoder, CaptionerOptions

    torch.manual_seed(0)
    options = CaptionerOptions(width=32, heads=4, layers=2, prefix=3)
    decoder = CaptionDecoder(12, 50, options).eval()
    mean, scale = torch.randn(12), 0.5
    model = recipe.caption_export.build(decoder, mean, scale)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    images = torch.randn(5, 12)
    for length in (1, 9):
        numbers = torch.randint(1, 50, (5, length))
        given = {"numbers": numbers.numpy(), "image_embeds": images.numpy()}
        (found,) = session.run(["logits"], given)
        with torch.no_grad():
            wanted = decoder(((images - mean) / scale)[:, None], numbers)[:, -1]
        np.testing.assert_allclose(found, wanted.numpy(), atol=0.08)  # matrices are in 8 bits
        assert np.abs(wanted.numpy()).max() > 1
