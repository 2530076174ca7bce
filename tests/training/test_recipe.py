"""Recipes: JoyTag's values, what extends what, changes on the command line, and errors that name the key."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from annotary.cli._options import help_texts
from annotary.errors import UnknownName, UsageError
from annotary.training.plan import plan_stages
from annotary.training.recipe import (
    StageRecipe,
    TaggerRecipe,
    changes,
    read_recipe,
    recipe_names,
    unheeded_keys,
)


def write(folder: Path, text: str, name: str = "own.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_recipe_joytag_has_the_values_of_the_reference():
    recipe = read_recipe("joytag")
    optimiser, network = recipe.optimiser, recipe.network
    assert (optimiser.kind, optimiser.learning_rate, optimiser.betas) == (
        "lamb",
        4e-3,
        (0.9, 0.999),
    )
    assert (optimiser.epsilon, optimiser.weight_decay, optimiser.clip_norm) == (1e-6, 0.05, 1.0)
    assert optimiser.decay_all
    assert (recipe.schedule.kind, recipe.schedule.warm_up) == ("cosine", 0)
    assert recipe.schedule.minimum_ratio == 0.0
    assert recipe.loss.kind == "focal2"
    assert (recipe.augmentation.kind, recipe.augmentation.mixup) == ("trivial2", 0.0)
    precision = recipe.precision
    assert (precision.numbers, precision.scale, precision.tf32) == ("fp16", 2.0**16, True)
    assert abs(precision.scale_interval * 4096 - 4e6) < 4096
    assert (network.num_blocks, network.d_model, network.mlp_dim) == (12, 768, 3072)
    assert (network.num_heads, network.patch_size, network.stochastic_depth) == (12, 16, 0.05)
    assert network.cnn_stem.startswith("conv:c=64;ln;relu;conv:c=128;")
    assert (recipe.data.batch_size, recipe.data.minimum_tags, recipe.data.seed) == (4096, 5, 42)
    stages = [(stage.image_size, stage.samples, stage.restart) for stage in recipe.stages]
    assert stages == [(224, 220_000_000, True), (448, 440_000_000, True)]
    assert recipe.validation.threshold == 0.5


def test_its_plan_counts_steps_and_restarts_the_curve():
    first, second = plan_stages(read_recipe("joytag"), processes=8)
    assert (first.steps, second.steps) == (53_711, 107_422)
    assert (first.part_size, first.parts) == (64, 8)
    assert (second.part_size, second.parts) == (16, 32)
    assert first.learning_rate(0) == second.learning_rate(0) == 4e-3
    assert first.learning_rate(first.steps - 1) < 1e-8
    assert second.learning_rate(second.steps // 2) == pytest.approx(2e-3, rel=1e-4)
    assert second.first_sample == first.samples


def test_a_curve_may_go_on_over_stages():
    told = "stages=[{image_size=96, samples=8192}, {image_size=192, samples=8192, restart=false}]"
    first, second = plan_stages(read_recipe("joytag", [told]))
    assert (first.steps, second.steps) == (2, 2)
    assert [plan.learning_rate(step) for plan in (first, second) for step in (0, 1)] == [
        pytest.approx(4e-3 * share, abs=1e-9) for share in (1.0, 0.8535534, 0.5, 0.1464466)
    ]
    with pytest.raises(UsageError, match=r"stage 1: schedule.warm_up 9000 must be below"):
        plan_stages(read_recipe("joytag", ["schedule.warm_up=9000", "stages=[{samples=4096}]"]))


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_that_ship_can_be_read_and_planned(name):
    recipe = read_recipe(name)
    assert recipe.name == name
    assert recipe.description.endswith(".")
    assert all(plan.steps > 0 for plan in plan_stages(recipe))


def test_every_key_has_a_help_text():
    for entry in fields(TaggerRecipe):
        record = getattr(TaggerRecipe(), entry.name)
        if hasattr(type(record), "__dataclass_fields__"):
            assert set(help_texts(type(record))) == {one.name for one in fields(record)}
    assert set(help_texts(StageRecipe)) == {one.name for one in fields(StageRecipe)}


def test_the_page_lists_every_key_with_its_default():
    text = (Path(__file__).parents[2] / "docs" / "train.md").read_text(encoding="utf-8")
    for entry in fields(TaggerRecipe):
        value = getattr(TaggerRecipe(), entry.name)
        record = StageRecipe() if entry.name == "stages" else value
        for one in fields(record) if not isinstance(record, str | bool) else ():
            title = "[[stages]]" if entry.name == "stages" else f"[{entry.name}]"
            (row,) = (
                line
                for line in text.splitlines()
                if line.startswith(f"| `{title}` | `{one.name}` |")
            )
            default = getattr(record, one.name)
            if isinstance(default, int | float) and entry.name != "stages":
                assert f"| `{str(default).lower()}` |" in row
    for name in recipe_names():
        assert f"| `{name}` |" in text


def test_a_recipe_extends_another(tmp_path):
    write(tmp_path, 'extends = "joytag"\n[loss]\nkind = "bce"\n[data]\nseed = 7\n', "middle.toml")
    path = write(
        tmp_path,
        'extends = "middle.toml"\nname = "mine"\n[data]\nbatch-size = 128\n'
        "[[stages]]\nimage_size = 96\nsamples = 1e6\n",
    )
    recipe = read_recipe(path)
    assert (recipe.name, recipe.description, recipe.loss.kind) == ("mine", "", "bce")
    assert (recipe.data.seed, recipe.data.batch_size, recipe.data.minimum_tags) == (7, 128, 5)
    assert recipe.stages == (StageRecipe(image_size=96, samples=1_000_000),)
    assert read_recipe(tmp_path / "middle.toml").name == "middle"


def test_values_are_changed_from_outside():
    recipe = read_recipe(
        "joytag",
        [
            *("optimiser.learning_rate=1e-3", "loss.kind=asl8", "stages.2.samples=1000"),
            "averaging.decay=.9",
            *(
                "network.start=dir:models/one",
                "precision.tf32=false",
                "optimiser.betas=[0.9, 0.98]",
            ),
        ],
    )
    assert recipe.optimiser.learning_rate == 1e-3
    assert recipe.optimiser.betas == (0.9, 0.98)
    assert recipe.loss.kind == "asl8"
    assert recipe.averaging.decay == 0.9
    assert [stage.samples for stage in recipe.stages] == [220_000_000, 1000]
    assert recipe.network.start == "dir:models/one"
    assert not recipe.precision.tf32


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[optimser]\n", r"unknown key 'optimser', did you mean optimiser\? known: name, "),
        ("[optimiser]\nlr = 1\n", r"\[optimiser\]: unknown key 'lr'; known: kind, learning_rate"),
        ('[loss]\nkind = "hinge"\n', r"\[loss\]: kind must be one of bce, .* but got 'hinge'"),
        ("[data]\nbatch_size = 0\n", r"\[data\]: batch_size must be at least 1, but got 0"),
        ("[data]\nbatch_size = 1.5\n", r"\[data\]: batch_size must be a whole number"),
        ('[schedule]\nwarm_up = "long"\n', r"\[schedule\]: warm_up must be a whole number"),
        ("loss = 3\n", r"\[loss\] must be a table, but got 3"),
        ("[stages]\nsamples = 3\n", r"stages are written as \[\[stages\]\]"),
        ("stages = []\n", r"stages must hold at least one"),
        ("[[stages]]\nsize = 3\n", r"\[\[stages\]\] 1: unknown key 'size'"),
        ("[[stages]]\nimage_size = 100\n", r"stages.1.image_size 100 must be a multiple of"),
        (
            '[network]\nkind = "backbone"\n',
            r"\[network\]: start must be starter, or name a repository",
        ),
        ("[optimiser]\nbetas = [0.9]\n", r"\[optimiser\]: betas must be two numbers"),
        ("[loss\n", r"is no TOML: "),
        ('extends = "own.toml"\n', r"extends leads in a circle"),
        ('extends = "nothing"\n', r"unknown recipe 'nothing'; known: .*joytag"),
        ("extends = 3\n", r"extends must be a text"),
    ],
)
def test_errors_name_the_file_the_table_and_the_key(text, told, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=told) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)
    if not isinstance(caught.value, UnknownName):
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ("learning_rate", r"say KEY=VALUE"),
        ("optimiser.rate=3", r"unknown key 'rate'"),
        ("stages.3.samples=3", r"stages are numbered from 1 to 2"),
        ("stages.1=3", r"say which stage and key"),
        ("name.x=3", r"name is no table"),
        ("optimiser.weight_decay=nan", r"weight_decay must be finite, but got nan"),
        ("optimiser.clip_norm=nan", r"clip_norm must be finite"),
        ("optimiser.epsilon=inf", r"epsilon must be finite"),
        ("optimiser.learning_rate=nan", r"learning_rate must be finite"),
        ("stages.1.learning_rate=nan", r"learning_rate must be finite"),
        ("data.seed=99999999999999999999", r"seed must be below 2\*\*63"),
        ("augmentation.mixup=nan", r"mixup must be finite"),
        ("precision.scale=inf", r"scale must be finite"),
    ],
)
def test_changes_that_make_no_sense_are_refused(changed, told):
    with pytest.raises(UsageError, match=told):
        read_recipe("joytag", [changed])


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"recipes that ship: .*joytag"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "own.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(UsageError, match="is not UTF-8"):
        read_recipe(tmp_path / "own.toml")


def test_changes_between_recipes_are_told_in_words():
    before = read_recipe("joytag").settings()
    after = read_recipe(
        "joytag", ["data.seed=3", "stages.2.samples=9", "data.workers=1", "logs.every=9"]
    ).settings()
    assert changes(before, after) == [
        "data.seed was 42 and is now 3",
        "stages.2.samples was 440000000 and is now 9",
    ]
    assert changes(before, before) == []


def test_recipes_that_fine_tune_need_a_start_and_tell_so_in_no_settings(tmp_path):
    recipe = read_recipe("finetune")
    with pytest.raises(UsageError, match=r"fine-tunes, so say .* network.start=dir:CHECKPOINT"):
        recipe.check_start()
    own = write(tmp_path, 'extends = "finetune"\n')
    with pytest.raises(UsageError, match="recipe own fine-tunes"):
        read_recipe(own).check_start()
    read_recipe(own, ["network.start=joytag"]).check_start()
    read_recipe(own, ["needs_start=false"]).check_start()
    for name in ("joytag", "joytag-small", "backbone"):
        read_recipe(name).check_start()
    assert "needs_start" not in recipe.settings()
    assert not changes(recipe.settings(), read_recipe(own, ["needs_start=false"]).settings())
    with pytest.raises(UsageError, match="needs_start must be true or false"):
        read_recipe(own, ["needs_start=1"])


def test_keys_without_effect_are_told_if_the_user_said_them(tmp_path):
    middle = write(tmp_path, 'extends = "finetune"\n[network]\nnum-heads = 4\n', "middle.toml")
    own = write(tmp_path, 'extends = "middle.toml"\n[network]\nd_model = 32\n')
    changed = ["network.start=joytag", "network.patch-size=8", "network.freeze=body"]

    def unheeded(source: str | Path, changed: list[str]) -> list[str]:
        return unheeded_keys(read_recipe(source, changed), source, changed)

    assert unheeded(own, changed) == ["network.patch_size", "network.d_model", "network.num_heads"]
    assert unheeded(str(middle), changed[:1]) == ["network.num_heads"]
    assert unheeded("finetune", changed[:1]) == []
    assert unheeded("backbone", ["network.mlp_dim=8"]) == ["network.mlp_dim"]
    assert unheeded(own, []) == []
