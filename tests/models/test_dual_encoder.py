"""Image-text encoders as files: which are needed, which are found, and what is said of those that are wrong."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest

from annotary import hub, preprocess, weights
from annotary.cards import card_text, read_card
from annotary.errors import MissingExtra, ModelError, UsageError
from annotary.models import dual_encoder, find, load_model, pull
from annotary.models._onnx_towers import CLIP_SCALE, tower_files
from annotary.runtime import RuntimeOptions
from tests.encoders import export_towers, make_encoder, make_joint
from tests.hub_server import running_hub

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

FP32 = RuntimeOptions(precision="fp32", runtime="torch")
ONNX = RuntimeOptions(precision="fp32", runtime="onnxruntime")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("made") / "clip", "clip")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("made") / "siglip", "siglip2")


@pytest.fixture(scope="module")
def clip_onnx(clip, tmp_path_factory):
    return export_towers(clip, tmp_path_factory.mktemp("made") / "clip-onnx", "clip")


@pytest.fixture(scope="module")
def siglip_onnx(siglip, tmp_path_factory):
    return export_towers(siglip, tmp_path_factory.mktemp("made") / "siglip-onnx", "siglip2")


@pytest.fixture
def copy_of(tmp_path):
    def copied(directory):
        return shutil.copytree(directory, tmp_path / "copy")

    return copied


def noise(model, count=2, size=(40, 50)):
    spec = model.card.preprocess
    generator = np.random.default_rng(3)
    pixels = generator.integers(0, 256, (count, *size, 3), np.uint8)
    return preprocess.to_batch([preprocess.fit(one, spec) for one in pixels], spec)


SETTINGS = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")


class TestFiles:
    """By names alone."""

    def chosen(self, names, **options):
        return dual_encoder.files(names, RuntimeOptions(**options))

    def test_a_checkpoint_for_torch(self):
        names = (*SETTINGS, "model.safetensors", "pytorch_model.bin", "tf_model.h5", "README.md")
        assert self.chosen(names) == (*SETTINGS, "model.safetensors")
        assert self.chosen(names, runtime="torch") == (*SETTINGS, "model.safetensors")
        assert self.chosen(names, runtime="onnxruntime") is None

    def test_the_original_weights_beside_it_are_left_alone(self):
        """facebook/metaclip-b32-400m has both."""
        names = (*SETTINGS, "metaclip_b32_400m.bin", "pytorch_model.bin")
        assert self.chosen(names) == (*SETTINGS, "pytorch_model.bin")

    def test_weights_in_several_files(self):
        parts = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        names = (*SETTINGS, "model.safetensors.index.json", *parts, "model.fp16.safetensors")
        assert self.chosen(names) == (*SETTINGS, "model.safetensors.index.json", *parts)

    @pytest.mark.parametrize("missing", ["config.json", "preprocessor_config.json"])
    def test_settings_are_needed(self, missing):
        names = {*SETTINGS, "model.safetensors"} - {missing}
        assert self.chosen(sorted(names)) is None

    def test_some_tokenizer_is_needed(self):
        names = ["config.json", "processor_config.json", "model.safetensors"]
        assert self.chosen(names) is None
        assert self.chosen([*names, "vocab.json"]) is None
        assert self.chosen([*names, "vocab.json", "merges.txt"]) is not None
        assert self.chosen([*names, "spiece.model"]) is not None

    @pytest.mark.parametrize(
        ("precision", "ending"),
        [("auto", ""), ("fp32", ""), ("fp16", "_fp16"), ("int8", "_int8"), ("bf16", "")],
    )
    def test_towers_by_precision(self, precision, ending):
        towers = [
            f"onnx/{tower}{end}.onnx"
            for tower in ("vision_model", "text_model")
            for end in ("", "_fp16", "_int8", "_quantized", "_q4", "_bnb4", "_uint8")
        ]
        names = (*SETTINGS, "onnx/model.onnx", *towers)
        expected = (f"onnx/vision_model{ending}.onnx", f"onnx/text_model{ending}.onnx")
        assert self.chosen(names, precision=precision) == (*SETTINGS, *expected)
        assert self.chosen(names, runtime="torch") is None

    def test_other_towers_where_the_best_are_not_there(self):
        pair = ("onnx/vision_model_quantized.onnx", "onnx/text_model_quantized.onnx")
        for precision in ("auto", "fp32", "int8"):
            assert tower_files(pair, RuntimeOptions(precision=precision)) == pair
        assert tower_files(pair[:1], RuntimeOptions()) is None
        beside = ("vision_model.onnx", "text_model.onnx")
        assert tower_files(beside, RuntimeOptions()) == beside


def test_known_cards_are_of_this_family_and_say_what_their_weights_do():
    cards = [read_card(folder) for folder in weights.known().values()]
    ours = [card for card in cards if card.family == "dual_encoder"]
    assert len(ours) >= 10
    for card in ours:
        is_light = card.name.endswith("-onnx")
        assert (card.similarity is not None) == is_light
        assert card.preprocess.alpha in ("key", "drop")
        is_meta = "metaclip" in card.name
        assert (card.licence == "CC-BY-NC-4.0") == is_meta
        assert card.paper.startswith('"')


def test_a_folder_is_found_and_counts_all_it_uses(clip, copy_of):
    folder = copy_of(clip)
    found = find(f"dir:{folder}", FP32)
    assert found.card.family == "dual_encoder"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(found.card.files)
    before = found.fingerprint()
    path = folder / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    assert find(f"dir:{folder}", FP32).fingerprint() != before


def test_no_texts_and_one_text(clip):
    model = load_model(f"dir:{clip}", FP32)
    none = model.embed_texts([])
    assert none.vectors.shape == (0, 16)
    assert none.is_truncated.shape == (0,)
    one = model.embed_texts([""])
    assert one.vectors.shape == (1, 16)
    with pytest.raises(UsageError, match="put it in a list"):
        model.embed_texts("a cat")


def test_many_texts_are_in_their_order(clip):
    model = load_model(f"dir:{clip}", FP32)
    texts = [f"{'cat ' * (i % 9)}{i}" for i in range(150)]
    every = model.embed_texts(texts).vectors
    some = [0, 17, 64, 149]
    alone = np.concatenate([model.embed_texts([texts[i]]).vectors for i in some])
    np.testing.assert_allclose(every[some], alone, atol=1e-6)


def test_the_text_tower_is_opened_when_it_is_needed(clip_onnx, copy_of):
    folder = copy_of(clip_onnx)
    model = load_model(f"dir:{folder}", ONNX)
    (folder / "onnx" / "text_model.onnx").write_bytes(b"no network")
    assert model.embed_images(noise(model)).shape == (2, 16)
    with pytest.raises(ModelError, match=r"text_model\.onnx"):
        model.embed_texts(["a"])


@pytest.mark.parametrize(
    ("runtime", "precision"), [("torch", "bf16"), ("torch", "auto"), ("openvino", "auto")]
)
def test_halves_are_near(clip, runtime, precision):
    from annotary.runtime import processor_features

    if "bf16" not in processor_features():
        pytest.skip("this processor does not compute in bf16")
    if runtime == "openvino":
        pytest.importorskip("openvino")
    whole = load_model(f"dir:{clip}", FP32)
    half = load_model(f"dir:{clip}", RuntimeOptions(precision=precision, runtime=runtime))
    assert half.choice.precision == "bf16"
    cosines = (whole.embed_images(noise(whole, 5)) * half.embed_images(noise(whole, 5))).sum(1)
    assert cosines.min() > 0.999
    texts = ["a cat", "the quick brown fox"]
    cosines = (whole.embed_texts(texts).vectors * half.embed_texts(texts).vectors).sum(1)
    assert cosines.min() > 0.999


def test_torch_takes_over_where_openvino_cannot(clip, monkeypatch):
    pytest.importorskip("openvino")
    from annotary.runtime import openvino_runtime

    def refuse(*_):
        raise ModelError("OpenVINO cannot take the network from torch: why")

    monkeypatch.setattr(openvino_runtime, "convert_torch", refuse)
    model = load_model(f"dir:{clip}", RuntimeOptions())
    assert model.choice.library.startswith("torch")
    assert model.choice.reason.endswith("OpenVINO cannot take the network from torch: why")
    assert model.embed_images(noise(model)).shape == (2, 16)
    with pytest.raises(ModelError, match="cannot take the network"):
        load_model(f"dir:{clip}", RuntimeOptions(runtime="openvino"))


class TestWeights:
    """What is wrong is one line, and nothing is made up."""

    def refused(self, folder, match, options=FP32):
        with pytest.raises(ModelError, match=match) as caught:
            load_model(f"dir:{folder}", options)
        assert "\n" not in str(caught.value)

    def changed(self, folder, change):
        from safetensors.torch import load_file, save_file

        path = folder / "model.safetensors"
        state = load_file(path)
        change(state)
        save_file(state, path, {"format": "pt"})

    def test_missing_weights_are_not_random_ones(self, clip, copy_of):
        folder = copy_of(clip)
        self.changed(folder, lambda state: state.pop("visual_projection.weight"))
        self.refused(folder, r"the weights of .* lack visual_projection\.weight")

    def test_many_missing_weights_are_named_in_part(self, clip, copy_of):
        def drop(state):
            for name in [name for name in state if name.startswith("text_model.encoder")]:
                del state[name]

        folder = copy_of(clip)
        self.changed(folder, drop)
        self.refused(folder, r"lack text_model.* and \d+ more")

    def test_weights_of_more_layers(self, clip, copy_of):
        folder = copy_of(clip)
        config = json.loads((folder / "config.json").read_text())
        config["vision_config"]["num_hidden_layers"] -= 1
        (folder / "config.json").write_text(json.dumps(config))
        self.refused(folder, r"have more layers than config\.json says: vision_model.*layers\.1")

    def test_weights_of_other_tasks_are_left_alone(self, clip, copy_of):
        folder = copy_of(clip)
        self.changed(folder, lambda s: s.update({"head.layers.3.weight": torch.zeros(7, 32)}))
        assert load_model(f"dir:{folder}", FP32).embed_texts(["a cat"]).vectors.shape[0] == 1

    def test_weights_of_another_shape(self, clip, copy_of):
        folder = copy_of(clip)
        self.changed(folder, lambda s: s.update({"text_projection.weight": torch.zeros(7, 32)}))
        self.refused(
            folder, r"have other shapes than config\.json says for text_projection\.weight"
        )

    def test_a_scale_that_is_no_number(self, clip, copy_of):
        folder = copy_of(clip)
        self.changed(folder, lambda s: s.update({"logit_scale": torch.tensor(float("nan"))}))
        self.refused(folder, "make no scores")

    def test_weights_that_are_no_numbers_are_told_when_they_are_used(self, clip, copy_of):
        folder = copy_of(clip)
        self.changed(folder, lambda s: s["visual_projection.weight"].fill_(float("nan")))
        model = load_model(f"dir:{folder}", FP32)
        with pytest.raises(ModelError, match="embeddings that are no numbers"):
            model.embed_images(noise(model))

    def test_damaged_weights(self, clip, copy_of):
        folder = copy_of(clip)
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
        self.refused(folder, "cannot load")

    def test_pickled_weights_are_read_and_nobody_is_asked(self, clip, copy_of, monkeypatch):
        """transformers looks for safetensors of such repositories on the hub; of a folder it does not."""
        import socket

        from safetensors.torch import load_file

        def refuse(*_):
            raise AssertionError("a connection was opened")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)

        folder = copy_of(clip)
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        ours, whole = load_model(f"dir:{folder}", FP32), load_model(f"dir:{clip}", FP32)
        batch = noise(whole)
        np.testing.assert_array_equal(ours.embed_images(batch), whole.embed_images(batch))

    def test_pickled_code_is_not_run(self, clip, copy_of, tmp_path):
        class Evil:
            def __reduce__(self):
                return open, (str(tmp_path / "was-here"), "w")

        folder = copy_of(clip)
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"logit_scale": Evil()}))
        self.refused(folder, "cannot load")
        torch.save({"logit_scale": Evil()}, folder / "pytorch_model.bin")
        self.refused(folder, "cannot load")
        assert not (tmp_path / "was-here").exists()

    def test_weights_in_several_files_are_read(self, clip, copy_of):
        folder = copy_of(clip)
        from transformers import CLIPModel

        from annotary.models._transformers_loading import quiet

        with quiet():
            model = CLIPModel.from_pretrained(folder)
            (folder / "model.safetensors").unlink()
            model.save_pretrained(folder, max_shard_size="50KB")
        assert (folder / "model.safetensors.index.json").exists()
        ours, whole = load_model(f"dir:{folder}", FP32), load_model(f"dir:{clip}", FP32)
        batch = noise(whole)
        np.testing.assert_array_equal(ours.embed_images(batch), whole.embed_images(batch))

    @pytest.mark.parametrize("model_type", ["llama", None, 5])
    def test_other_kinds_of_models(self, clip, copy_of, model_type):
        folder = copy_of(clip)
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": model_type}))
        self.refused(folder, "which is no.* known here; known: .*clip, metaclip_2")

    def test_images_of_another_size_than_the_network_takes(self, clip, copy_of):
        folder = copy_of(clip)
        path = folder / "preprocessor_config.json"
        text = path.read_text().replace("32", "40")
        path.write_text(text)
        self.refused(folder, "says images of 32 pixels, but they would be prepared as 40 x 40")

    @pytest.mark.parametrize("length", [2, "x", None])
    def test_text_towers_without_places(self, clip, copy_of, length):
        folder = copy_of(clip)
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["text_config"]["max_position_embeddings"] = length
        path.write_text(json.dumps(config))
        self.refused(folder, "max_position_embeddings must be")

    def test_texts_that_end_otherwise_than_the_network_reads_them(self, clip, copy_of):
        """transformers would read the meaning at the beginning, without a word."""
        folder = copy_of(clip)
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["text_config"]["eos_token_id"] = 49407
        path.write_text(json.dumps(config))
        self.refused(folder, "says that texts end with token 49407, but its tokenizer ends them")

    def test_no_code_of_a_repository_is_run(self, clip, copy_of, tmp_path):
        folder = copy_of(clip)
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["auto_map"] = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}
        path.write_text(json.dumps(config))
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'was-here')!r}, 'w')\n")
        load_model(f"dir:{folder}", FP32)
        assert not (tmp_path / "was-here").exists()


class TestOnnx:
    """The light install."""

    def test_clips_scale_is_where_its_training_ends(self, clip_onnx):
        model = load_model(f"dir:{clip_onnx}", ONNX)
        assert model.similarity.kind == "softmax"
        assert model.similarity.scale == CLIP_SCALE == 100.0
        assert "its paper" in model.similarity_source

    def test_siglips_scale_and_bias_are_never_guessed(self, siglip_onnx):
        with pytest.raises(ModelError, match="do not say its scale and bias") as caught:
            load_model(f"dir:{siglip_onnx}", ONNX)
        for remedy in ("onnx/model.onnx", "for torch", "[similarity]"):
            assert remedy in str(caught.value)

    def test_they_are_in_the_file_with_both_towers(self, siglip_onnx, copy_of):
        folder = copy_of(siglip_onnx)
        make_joint(folder / "onnx" / "model.onnx", 4.7, -16.7)
        model = load_model(f"dir:{folder}", ONNX)
        assert model.similarity.scale == pytest.approx(np.exp(4.7), rel=1e-6)
        assert model.similarity.bias == pytest.approx(-16.7, rel=1e-6)
        assert model.similarity_source == "the card"  # that was made of the file

    def test_a_joint_file_without_a_bias_is_not_enough(self, siglip_onnx, copy_of):
        folder = copy_of(siglip_onnx)
        make_joint(folder / "onnx" / "model.onnx", 4.7, None)
        with pytest.raises(ModelError, match="do not say its scale and bias"):
            load_model(f"dir:{folder}", ONNX)

    def test_a_joint_file_that_makes_no_sense(self, clip_onnx, copy_of):
        folder = copy_of(clip_onnx)
        make_joint(folder / "onnx" / "model.onnx", 1000.0, None)
        with pytest.raises(ModelError, match="makes no scores"):
            load_model(f"dir:{folder}", ONNX)

    def test_a_card_says_them(self, siglip_onnx, copy_of):
        folder = copy_of(siglip_onnx)
        card = card_text(find(f"dir:{folder}").card)
        extra = '\n[similarity]\nkind = "sigmoid"\nscale = 112.5\nbias = -16.5\n'
        (folder / "card.toml").write_text(card.split("[files]")[0] + extra)
        model = load_model(f"dir:{folder}", ONNX)
        assert (model.similarity.scale, model.similarity.bias) == (112.5, -16.5)

    def test_torch_is_not_asked_for(self, clip_onnx, monkeypatch):
        monkeypatch.setattr(dual_encoder, "find_spec", lambda _name: None)
        model = load_model(f"dir:{clip_onnx}", ONNX)
        assert model.embed_images(noise(model)).shape == (2, 16)

    def test_weights_for_torch_without_torch(self, clip, monkeypatch):
        monkeypatch.setattr(dual_encoder, "find_spec", lambda _name: None)
        with pytest.raises(MissingExtra, match=r"annotary\[torch\]"):
            load_model(f"dir:{clip}", RuntimeOptions())

    def test_towers_without_their_projection(self, clip, tmp_path, monkeypatch):
        import onnx

        folder = export_towers(clip, tmp_path / "copy", "clip")
        path = folder / "onnx" / "vision_model.onnx"
        network = onnx.load(path)
        for node in network.graph.node:
            names = [n if n != "image_embeds" else "pooler_output" for n in node.output]
            node.output[:] = names
        network.graph.output[0].name = "pooler_output"
        onnx.save(network, path)
        with pytest.raises(ModelError, match="gives no image_embeds, only pooler_output"):
            load_model(f"dir:{folder}", ONNX)

    def test_images_of_another_size(self, clip, copy_of, tmp_path):
        folder = export_towers(clip, tmp_path / "copy", "clip")
        for name, text in (("config.json", '"image_size": 32'), ("preprocessor_config.json", "32")):
            path = folder / name
            assert text in path.read_text()
            path.write_text(path.read_text().replace(text, text.replace("32", "40")))
        with pytest.raises(ModelError, match="but its settings say"):
            load_model(f"dir:{folder}", ONNX)


def make_towers_with_masks(folder, width):
    """Towers of SigLIP 2's NaFlex whose outputs can be worked out by hand, with all inputs of published ones."""
    import onnx
    from onnx import TensorProto, helper

    def save(name, nodes, inputs, weights):
        made = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info(*entry) for entry in inputs],
            [helper.make_tensor_value_info("pooler_output", TensorProto.FLOAT, ["n", width + 2])],
            [
                helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
                helper.make_tensor("last", TensorProto.INT64, [1], [2]),
                *weights,
            ],
        )
        opset = [helper.make_opsetid("", 18)]
        path = folder / "onnx" / f"{name}.onnx"
        path.parent.mkdir(exist_ok=True)
        onnx.save(helper.make_model(made, opset_imports=opset, ir_version=8), path)

    node, kinds = helper.make_node, TensorProto
    masked = [
        node("Cast", ["mask"], ["floats"], to=kinds.FLOAT),
        node("Unsqueeze", ["floats", "last"], ["column"]),
        node("Mul", ["values", "column"], ["kept"]),
        node("ReduceSum", ["kept", "axis"], ["sums"], keepdims=0),
    ]
    save(
        "vision_model",
        [
            node("Identity", ["pixel_attention_mask"], ["mask"]),
            node("Identity", ["pixel_values"], ["values"]),
            *masked,
            node("Cast", ["spatial_shapes"], ["shapes"], to=kinds.FLOAT),
            node("Concat", ["sums", "shapes"], ["pooler_output"], axis=1),
        ],
        [
            ("pixel_values", kinds.FLOAT, ["n", "p", width]),
            ("pixel_attention_mask", kinds.INT64, ["n", "p"]),
            ("spatial_shapes", kinds.INT64, ["n", 2]),
        ],
        [],
    )
    table = np.random.default_rng(0).normal(size=(1000, width + 2)).astype(np.float32)
    save(
        "text_model",
        [
            node("Identity", ["attention_mask"], ["mask"]),
            node("Gather", ["table", "input_ids"], ["values"]),
            *masked,
            node("Identity", ["sums"], ["pooler_output"]),
        ],
        [(name, kinds.INT64, ["n", "l"]) for name in ("attention_mask", "input_ids")],
        [helper.make_tensor("table", kinds.FLOAT, table.shape, table.tobytes(), raw=True)],
    )
    return table


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_masks_and_shapes_go_to_the_towers_that_take_them(tmp_path, runtime):
    if runtime == "openvino":
        pytest.importorskip("openvino")
    folder = make_encoder(tmp_path / "naflex", "siglip2-naflex")
    (folder / "model.safetensors").unlink()
    table = make_towers_with_masks(folder, 3 * 8 * 8)
    make_joint(folder / "onnx" / "model.onnx", 1.0, -1.0)
    options = RuntimeOptions(precision="fp32", runtime=runtime)
    model = load_model(f"dir:{folder}", options)
    batch = noise(model, size=(40, 40))
    count = int((batch[0, :, -1] >= 0).sum())
    assert count < batch.shape[1]
    rows, columns = (batch[0, :count, -2:].max(axis=0) + 1).tolist()
    wanted = np.concatenate([batch[0, :, :-2].sum(axis=0), [rows, columns]])
    np.testing.assert_allclose(
        model.embed_images(batch)[0], wanted / np.linalg.norm(wanted), atol=1e-5
    )
    from annotary.models._tokens import open_tokens

    tokens = open_tokens(folder, dual_encoder._SIGLIP_RULE, is_sigmoid=True)
    ((texts, _),) = tokens.batches(["a cat"], 100)
    wanted = table[texts.numbers[0][texts.mask[0] == 1]].sum(axis=0)
    found = model.embed_texts(["a cat"]).vectors[0]
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted), atol=1e-5)


class TestHub:
    """Repositories."""

    @pytest.fixture
    def server(self, monkeypatch, tmp_path):
        with running_hub(monkeypatch, tmp_path / "cache") as server:
            yield server

    def files_of(self, folder):
        every = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in every}

    def test_towers_in_their_folder_are_fetched(self, server, clip_onnx, monkeypatch):
        large = {"onnx/vision_model.onnx", "onnx/text_model.onnx"}
        more = {"onnx/model.onnx": b"both", "onnx/decoder/x.onnx": b"deep", "README.md": b""}
        server.add("someone/clip", {**self.files_of(clip_onnx), **more}, large=large)
        found = pull("hf:someone/clip", ONNX)
        assert large <= set(found.card.files)
        assert all(found.card.files.values())
        assert not server.gets("onnx/model.onnx")
        assert (found.directory / "onnx" / "vision_model.onnx").is_file()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        model = load_model("hf:someone/clip", ONNX)
        assert model.embed_texts(["a"]).vectors.shape == (1, 16)

    def test_a_damaged_tower_is_told_and_fetched_anew(self, server, clip_onnx):
        large = {"onnx/vision_model.onnx", "onnx/text_model.onnx"}
        server.add("someone/clip", self.files_of(clip_onnx), large=large)
        found = pull("hf:someone/clip", ONNX)
        path = (found.directory / "onnx" / "text_model.onnx").resolve()
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        with pytest.raises(ModelError, match=r"text_model\.onnx is damaged.*annotary pull"):
            load_model("hf:someone/clip", ONNX)
        pull("hf:someone/clip", ONNX)
        load_model("hf:someone/clip", ONNX)

    def test_nothing_large_is_fetched_of_another_kind_of_model(self, server, clip):
        files = self.files_of(clip)
        files["config.json"] = files["config.json"].replace(b'"clip"', b'"llava"')
        server.add("someone/llava", files)
        with pytest.raises(ModelError, match="'llava', which is no"):
            pull("hf:someone/llava", FP32)
        assert not server.gets("model.safetensors")
        assert hub.on_disk(hub.Repository("someone/llava")) is None

    def test_a_known_model_is_fetched_by_its_name(self, server, clip):
        server.add("openai/clip-vit-base-patch32", self.files_of(clip))
        model = load_model("clip-vit-base-patch32", FP32)
        assert model.card.name == "clip-vit-base-patch32"
        assert model.card.licence == "MIT"
        # The repository's own settings count, not what the card tells of them.
        assert model.card.preprocess.size == (32, 32)

    def test_a_known_model_in_onnx_has_its_scores_from_its_card(self, server, siglip_onnx):
        server.add("onnx-community/siglip2-base-patch16-224-ONNX", self.files_of(siglip_onnx))
        model = load_model("siglip2-base-patch16-224-onnx", ONNX)
        assert model.similarity.bias == pytest.approx(-16.7717, abs=1e-4)
        assert model.similarity_source == "the card"
