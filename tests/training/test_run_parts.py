"""What a run is put together from: what the recipe says of the network arrives at it."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pyarrow")

from annotary.errors import UsageError  # noqa: E402
from annotary.training._run_parts import new_network  # noqa: E402
from annotary.training.recipe import read_recipe  # noqa: E402
from tests.taggers import make_joytag  # noqa: E402
from tests.training.small_dataset import TAGS, make_dataset, small_recipe  # noqa: E402


def test_rows_are_kept_for_other_names_of_tags(tmp_path):
    before = make_joytag(tmp_path / "before")
    (tmp_path / "aliases.csv").write_text("1girl,red\nno_humans,dot\n", encoding="utf-8")
    recipe = small_recipe(
        f"network.start=dir:{before}", f"network.aliases={tmp_path / 'aliases.csv'}"
    )
    network = new_network(recipe, make_dataset(tmp_path / "data"), 64)
    assert network.start.head.renamed == {"red": "1girl", "dot": "no_humans"}
    assert network.start.head.new == ("bar", "blue", "green")
    assert network.head.weight[TAGS.index("red")].abs().sum() > 0
    assert not network.head.weight[TAGS.index("bar")].any()
    (tmp_path / "aliases.csv").unlink()
    again = new_network(recipe, make_dataset(tmp_path / "again"), 64, before)
    assert again.start.head.renamed == {}
    with pytest.raises(UsageError, match=r"cannot read .*aliases\.csv"):
        new_network(recipe, make_dataset(tmp_path / "other"), 64)


def test_what_the_head_of_a_backbone_reads_is_chosen(tmp_path):
    pytest.importorskip("transformers")
    from tests.training.test_backbones import make_backbone

    before, network = make_backbone(tmp_path / "before", "siglip")
    dataset = make_dataset(tmp_path / "data")
    side = network.config.vision_config.image_size
    recipe = small_recipe("network.kind=backbone", f"network.start=dir:{before}")
    assert new_network(recipe, dataset, side).pooling == "pooled"
    both = replace(recipe, network=replace(recipe.network, pooling="both"))
    found = new_network(both, dataset, side)
    assert found.pooling == "both"
    assert found.head.in_features == 2 * network.config.vision_config.hidden_size


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("network.pooling=mean", 'pooling must be empty unless kind is "backbone"'),
        ("network.pooling=largest", "pooling must be one of , pooled, mean, both"),
        ("network.aliases=other.csv", "aliases must be empty where start is"),
    ],
)
def test_what_has_no_effect_is_refused(told, why):
    with pytest.raises(UsageError, match=why):
        read_recipe("joytag", [told])
