"""Labels as users offer them: lists, files, ontologies, tables and templates, good and bad."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from annotary.errors import UsageError
from annotary.tasks.label_sets import (
    DEFAULT_TEMPLATE,
    LabelClass,
    LabelOptions,
    LabelSet,
    filled,
    ontology_classes,
    read_labels,
    read_templates,
    split_labels,
)


def written(name: str, content: str | bytes) -> Path:
    path = Path(name)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def of_ontology(name: str, content: str | bytes) -> dict[str, tuple[str, ...]]:
    found = read_labels(LabelOptions(ontology=written(name, content)))
    return {label.name: label.prompts for label in found.classes}


def of_table(path: Path) -> dict[str, list[str]]:
    found = read_labels(LabelOptions(labels_from=path))
    assert found.of_image is not None
    return {image: [found.names[place] for place in own] for image, own in found.of_image.items()}


# Words


def test_a_text_is_split_at_commas_and_never_into_letters():
    # The reference goes through a text letter by letter (T10).
    assert LabelSet.of("cat").names == ("cat",)
    assert LabelSet.of("cat, dog ,, big red bus,").names == ("cat", "dog", "big red bus")
    assert split_labels(" , ") == []
    assert read_labels(LabelOptions(labels="cat,dog")).names == ("cat", "dog")


def test_a_label_in_a_list_may_hold_a_comma():
    assert LabelSet.of(["cat, or dog"]).names == ("cat, or dog",)


def test_words_are_put_in_the_usual_template():
    (label,) = LabelSet.of(["cat"]).classes
    assert label == LabelClass("cat", ("a photo of a cat.",), None)
    assert DEFAULT_TEMPLATE.endswith(".")


def test_labels_that_are_said_twice_count_once():
    # The reference scores them twice, so that they compete with themselves (T10).
    assert LabelSet.of("cat, dog, cat").names == ("cat", "dog")
    with pytest.raises(ValueError, match="cat is there twice"):
        LabelSet((LabelClass("cat", ("a",)), LabelClass("cat", ("b",))))


def test_a_very_large_list_with_doubles_is_told_at_once():
    classes = tuple(LabelClass(f"{i}", ("x",)) for i in range(20_000))
    with pytest.raises(ValueError, match="7 is there twice"):
        LabelSet((*classes, LabelClass("7", ("y",))))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("", "there are no labels"),
        ([], "there are no labels"),
        ({}, "there are no labels"),
        ([" "], "needs a name"),
        ([1, 2], "a label must be text, but got 1"),
        ([None], "a label must be text"),
        (b"cat", "list of texts"),
        (5, "labels must be text or a list of texts, but got 5"),
        (None, "labels must be text or a list of texts"),
        (["\udcff"], "is not valid Unicode"),
    ],
)
def test_what_is_no_label_is_told(labels: Any, message: str):
    with pytest.raises(UsageError, match=message):
        LabelSet.of(labels)


def test_braces_percent_signs_and_any_script_are_text_like_any_other():
    labels = ["{x}", "{}", "100%", "%s", "{0} {label}", "猫", "кошка 🐈", "a\\1b", "e\u0301"]
    found = LabelSet.of(labels, "<{}>")
    assert [label.name for label in found.classes] == labels
    assert [label.prompts for label in found.classes] == [(f"<{label}>",) for label in labels]


def test_a_template_may_have_its_place_twice_and_other_braces():
    (label,) = LabelSet.of(["cat"], "{} {a} is a {}").classes
    assert label.prompts == ("cat {a} is a cat",)


def test_several_templates_make_several_prompts_and_doubles_one():
    (label,) = LabelSet.of(["cat"], ["a {}", "the {}", "a {}"]).classes
    assert label.prompts == ("a cat", "the cat")


@pytest.mark.parametrize("template", ["no place", "", "a { }", ["{}", "none"], [5], 5])
def test_a_template_without_a_place_is_told(template: Any):
    with pytest.raises(UsageError, match="template must"):
        LabelSet.of("cat", template)


def test_backgrounds_are_texts_and_not_letters():
    assert LabelSet.of("cat", background="a photo.").background == ("a photo.",)
    assert LabelSet.of("cat", background=["a", "b", "a"]).background == ("a", "b")
    with pytest.raises(UsageError, match="background must not be empty"):
        LabelSet.of("cat", background=["a", " "])
    with pytest.raises(UsageError, match="background must be text, but got 3"):
        LabelSet.of("cat", background=[3])


def test_the_label_for_none_is_no_other_label_and_has_a_name():
    assert LabelSet.of("cat", none_label="nothing").none_label == "nothing"
    with pytest.raises(UsageError, match="none_label must differ from the labels"):
        LabelSet.of("cat, dog", none_label="dog")
    with pytest.raises(UsageError, match="none_label must have a name"):
        LabelSet.of("cat", none_label=" ")


# Files


@pytest.mark.parametrize(
    "content",
    [
        "cat\nbig, red bus\n猫\n",
        "cat\r\nbig, red bus\r\n猫",
        "\ufeffcat\n\n  \n big, red bus \n猫\n\n",
        "\ufeffcat\r\n\r\nbig, red bus\r\n猫\r\ncat\r\n",
    ],
)
def test_a_file_has_a_label_on_each_line(content: str):
    path = written("labels.txt", content)
    assert read_labels(LabelOptions(labels_file=path)).names == ("cat", "big, red bus", "猫")


@pytest.mark.parametrize("field", ["labels_file", "ontology", "labels_from"])
@pytest.mark.parametrize("kind", ["missing", "folder", "not UTF-8", "empty"])
def test_files_that_cannot_be_read_are_told_by_name(field: str, kind: str):
    path = Path("there.csv")
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(b"image,labels\n\xff\xfe,a\n" if kind == "not UTF-8" else b"")
    with pytest.raises(UsageError, match=r"^there\.csv: .") as told:
        read_labels(LabelOptions(**{field: path}))
    assert "\n" not in str(told.value)


def test_labels_are_told_in_exactly_one_way():
    with pytest.raises(UsageError, match="say the labels in one way, with --labels"):
        read_labels(LabelOptions())
    path = written("labels.txt", "cat")
    with pytest.raises(UsageError, match="got --labels, --labels-file"):
        read_labels(LabelOptions(labels="cat", labels_file=path))
    with pytest.raises(UsageError, match="--labels: there are no labels"):
        read_labels(LabelOptions(labels=" , "))


def test_background_and_none_label_are_those_of_the_options():
    found = read_labels(LabelOptions(labels="cat", none_label="none", background=("a", "b", "a")))
    assert (found.background, found.none_label) == (("a", "b"), "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": ("a {}", "b")}, "^template must have {} where the label goes"),
        ({"template": ("{}",), "templates": "imagenet"}, "^templates take the place"),
        ({"none_label": " "}, "^none_label"),
        ({"background": ("a", "")}, "^background"),
    ],
)
def test_options_that_make_no_sense_begin_with_their_name(options: Any, message: str):
    with pytest.raises(ValueError, match=message):
        LabelOptions(labels="cat", **options)


# Templates


def test_imagenet_has_80_different_templates():
    templates = read_templates("imagenet")
    assert len(set(templates)) == len(templates) == 80
    assert all(template.count("{}") == 1 for template in templates)
    assert (templates[0], templates[-1]) == ("a bad photo of a {}.", "a tattoo of the {}.")
    found = read_labels(LabelOptions(labels="cat,dog", templates="imagenet"))
    assert [len(label.prompts) for label in found.classes] == [80, 80]
    assert found.classes[1].prompts[79] == "a tattoo of the dog."


def test_templates_of_a_file():
    path = written("templates.txt", "\ufeffa {}\r\n\r\nthe {} of {}\r\n")
    found = read_labels(LabelOptions(labels="cat", templates=str(path)))
    assert found.classes[0].prompts == ("a cat", "the cat of cat")


@pytest.mark.parametrize(
    ("content", "message"),
    [("a {}\nnone", "--templates"), ("\n \n", "no templates"), (b"\xff {}", "not text in UTF-8")],
)
def test_bad_templates_are_told(content: str | bytes, message: str):
    path = written("templates.txt", content)
    with pytest.raises(UsageError, match=message):
        read_labels(LabelOptions(labels="cat", templates=str(path)))
    with pytest.raises(UsageError, match=r"--templates missing.txt: No such file"):
        read_labels(LabelOptions(labels="cat", templates="missing.txt"))


# Ontologies


def test_prompts_of_one_label_are_one_class():
    # The reference makes a class of every prompt, so that a label is there several times (A8).
    assert of_ontology("o.yaml", "a milk bottle: bottle\na bottle: bottle\na can: can\n") == {
        "bottle": ("a milk bottle", "a bottle"),
        "can": ("a can",),
    }


ALL_SHAPES: dict[str, Any] = {
    "a photo of a cat": "cat",
    "dog": ["a dog", "a puppy"],
    "bus": {"prompts": ["a bus", "a coach"], "threshold": 0.25},
    "cup": {"prompts": "a cup of tea"},
    "tree": {"threshold": 1},
    "a kitten": "cat",
    "a hound": "dog",
}
ALL_CLASSES = (
    LabelClass("cat", ("a photo of a cat", "a kitten")),
    LabelClass("dog", ("a dog", "a puppy", "a hound")),
    LabelClass("bus", ("a bus", "a coach"), 0.25),
    LabelClass("cup", ("a cup of tea",)),
    LabelClass("tree", ("tree",), 1.0),
)


def test_all_shapes_of_an_ontology_may_be_mixed():
    assert LabelSet.of(ALL_SHAPES).classes == ALL_CLASSES
    assert ontology_classes(ALL_SHAPES) == ALL_CLASSES


def test_a_label_is_its_own_prompt_only_where_it_has_no_other():
    found = LabelSet.of({"a kitten": "cat", "cat": {"threshold": 0.3}, "dog": {}})
    assert found.classes == (LabelClass("cat", ("a kitten",), 0.3), LabelClass("dog", ("dog",)))


@pytest.mark.parametrize("suffix", ["json", "JSON", "yaml", "yml", "txt"])
def test_an_ontology_in_json_and_yaml(suffix: str):
    # JSON is YAML as well.
    path = written(f"o.{suffix}", "\ufeff" + json.dumps(ALL_SHAPES, indent=1))
    assert read_labels(LabelOptions(ontology=path)).classes == ALL_CLASSES


def test_an_ontology_in_blocks_of_yaml():
    content = """\
# what is on the shelf
a photo of a cat: cat
dog: [a dog, a puppy]
bus:
  prompts:
    - a bus
    - a coach
  threshold: 0.25
cup: {prompts: a cup of tea}
tree: {threshold: 1}
a kitten: cat
"a hound": dog
"""
    path = written("o.yaml", content.replace("\n", "\r\n"))
    assert read_labels(LabelOptions(ontology=path)).classes == ALL_CLASSES


def test_prompts_are_sentences_and_get_templates_only_when_told():
    assert LabelSet.of({"a cat": "cat"}).classes[0].prompts == ("a cat",)
    assert LabelSet.of({"a cat": "cat"}, "{} at night").classes[0].prompts == ("a cat at night",)
    path = written("o.yaml", "cat: [cat, kitten]")
    found = read_labels(LabelOptions(ontology=path, template=("a {}", "the {}")))
    assert found.classes[0].prompts == ("a cat", "the cat", "a kitten", "the kitten")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no: nothing", "False is none; put it in quotes"),
        ("on: [a]", "True is none; put it in quotes"),
        ("nothing: no", "'nothing' must have a label or a list of prompts, but has False.*quotes"),
        ("yes: {threshold: 0.5}", "True is none; put it in quotes"),
        ("2024: year", "2024 is none; put it in quotes"),
        ("year: 2024", "but has 2024; put texts in quotes"),
        ("3.5: [a]", "3.5 is none; put it in quotes"),
        ("2024-01-01: day", r"datetime.date\(2024, 1, 1\) is none; put it in quotes"),
        ("~: nothing", "None is none"),
        ("cat:", "'cat' must have a label or a list of prompts, but has None"),
        ("cat: [a, [b]]", "texts, but \\['b'\\] is none"),
        ("cat: [a, no]", "False is none; put it in quotes"),
        ("cat: []", "'cat' needs a name and prompts"),
        ("cat: ''", "the label '' needs a name"),
        ("'': cat", "the label 'cat' needs a name and prompts"),
        ("cat: {prompts: []}", "'cat' needs a name and prompts"),
        ("cat: {prompts: 5}", "'cat' must have"),
        ("cat: {prompt: [a]}", "'cat' has unknown keys: prompt$"),
        ("cat: {1: [a], x: 2}", "'cat' has unknown keys: 1, x"),
        ("cat: {threshold: 2}", "threshold of 'cat' must be a number in 0..1, but is 2"),
        ("cat: {threshold: .nan}", "threshold of 'cat' must be a number"),
        ("cat: {threshold: high}", "threshold of 'cat' must be a number"),
        ("cat: {threshold: yes}", "threshold of 'cat' must be a number"),
        ("cat: {threshold: " + "9" * 400 + "}", "threshold of 'cat' must be a number"),
        ("a cat: cat\na cat: dog", "'a cat' is there twice"),
        ("cat: [a]\ncat: [b]", "'cat' is there twice"),
        ("- cat\n- dog", "an ontology maps prompts to labels"),
        ("cat", "an ontology maps"),
        ("", "an ontology maps"),
        ("{}", "an ontology maps"),
        ("cat: [a", "expected"),
        ("? [a, b]\n: cat", "."),
        ("cat: *unknown", "undefined alias"),
        ("cat: &a [*a]", "texts, but"),
        ("!!python/object/apply:os.system {x: y}", "could not determine a constructor"),
        ("!!int '': cat", "no YAML that could be read"),
        ("!!timestamp x: cat", "no YAML that could be read"),
        ("!!bool x: cat", "no YAML that could be read"),
        ("2024-99-99: x", "month must be in 1..12"),
        ("cat: a\n---\ndog: b", "single document"),
        ("\x00", "."),
        ('"\\ud800": cat', "."),
    ],
)
def test_yaml_that_is_no_ontology_is_told_in_one_line(content: str, message: str):
    with pytest.raises(UsageError, match=message) as told:
        of_ontology("o.yaml", content)
    assert str(told.value).startswith("o.yaml: ")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a cat": "cat", "a cat": "dog"}', "'a cat' is there twice"),
        ('{"cat": {"threshold": 1e999}}', "threshold of 'cat'"),
        ('{"cat": null}', "'cat' must have"),
        ('["cat"]', "an ontology maps"),
        ("cat: a", "Expecting value"),
        ('{"\\ud800": "cat"}', "not valid Unicode"),
        ('{"a": ' + "[" * 100_000, "."),
        ('{"cat": {"threshold": ' + "9" * 5000 + "}}", "."),
    ],
)
def test_json_that_is_no_ontology_is_told(content: str, message: str):
    with pytest.raises(UsageError, match=message) as told:
        of_ontology("o.json", content)
    assert str(told.value).startswith("o.json: ")


def test_an_ontology_nested_without_end_is_told():
    with pytest.raises(UsageError, match=r"o\.yaml: "):
        of_ontology("o.yaml", "a: " + "[" * 3000)


_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=3),
    st.dates(),
)
_values = st.recursive(
    st.one_of(_scalars, st.sampled_from(["cat", "dog"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner),
        st.dictionaries(st.one_of(st.sampled_from(["prompts", "threshold"]), _scalars), inner),
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.one_of(_scalars, st.sampled_from(["cat", "dog"])), _values, max_size=4))
@example({"cat": {"threshold": 10**400}})
@example({10**5000: "cat"})
@example({("cat",): "cat"})
@example({"cat": {"prompts", "a"}})
@example({frozenset(["cat"]): ["a"]})
def test_any_mapping_makes_labels_or_an_error_of_usage(ontology: dict[Any, Any]):
    try:
        found = LabelSet.of(ontology)
    except UsageError:
        return
    assert found.classes
    assert len(set(found.names)) == len(found.names)
    for label in found.classes:
        assert label.name.strip()
        assert all(prompt.strip() for prompt in label.prompts)
        assert label.threshold is None or 0 <= label.threshold <= 1


@given(st.dictionaries(st.text(min_size=1), st.one_of(st.text(), st.lists(st.text())), max_size=4))
def test_a_file_gives_what_the_same_mapping_gives(ontology: dict[str, Any]):
    def of(make: Any) -> Any:
        try:
            return make()
        except UsageError:
            return None

    path = written("o.json", json.dumps(ontology))
    found = of(lambda: read_labels(LabelOptions(ontology=path)))
    assert found == of(lambda: LabelSet.of(ontology))


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40))
@example("!!int '': x")
@example("? {a: b}\n: c")
@example("<<: {a: b}")
@example("<<: [a]")
@example("=: a")
@example("!!set {a, b}")
@example("!!omap [a: b]")
@example("!!binary x: y")
@example("!!float '': x")
def test_any_text_is_yaml_of_an_ontology_or_an_error_of_usage(text: str):
    with contextlib.suppress(UsageError):
        assert of_ontology("o.yaml", text)


@given(st.text(min_size=1, max_size=12), st.text(max_size=6), st.text(max_size=6))
@example("{}", "{", "}")
def test_a_label_stands_unchanged_in_its_template(word: str, before: str, after: str):
    template = before.replace("}", "") + "{}" + after.replace("{", "")
    (label,) = filled([LabelClass("name", ("x" + word,))], [template])
    assert label.prompts == (before.replace("}", "") + "x" + word + after.replace("{", ""),)


# Tables: each image has labels of its own (the reference cannot do that, T3)


ROWS = {"a.jpg": ["cat", "dog"], "sub/b.jpg": ["dog", "big red bus"], "c.jpg": []}


def test_tables_of_every_format_say_the_same():
    import pyarrow
    from pyarrow import parquet

    joined = [(image, ", ".join(labels)) for image, labels in ROWS.items()]
    csv = "image,labels\n" + "".join(f'{image},"{labels}"\n' for image, labels in joined)
    tsv = "x\timage\tlabels\r\n" + "".join(f"1\t{image}\t{text}\r\n" for image, text in joined)
    lines = [json.dumps({"image": image, "labels": labels}) for image, labels in ROWS.items()]
    texts = [json.dumps({"labels": text, "image": image}) for image, text in joined]
    written("t.csv", csv)
    written("bom.csv", "\ufeff" + csv.replace("\n", "\r\n"))
    written("t.tsv", tsv)
    written("t.jsonl", "\n".join(lines))
    written("t.ndjson", "\ufeff" + "\r\n\r\n".join(texts) + "\r\n")
    table = pyarrow.table({"image": list(ROWS), "labels": list(ROWS.values()), "n": [1, 2, 3]})
    parquet.write_table(table, "lists.parquet")
    table = pyarrow.table({"labels": [text for _, text in joined], "image": list(ROWS)})
    parquet.write_table(table, "texts.PARQUET")
    for name in (
        "t.csv",
        "bom.csv",
        "t.tsv",
        "t.jsonl",
        "t.ndjson",
        "lists.parquet",
        "texts.PARQUET",
    ):
        assert of_table(Path(name)) == ROWS, name


def test_rows_of_one_image_are_one_and_labels_count_once():
    path = written("t.csv", 'image,labels\na,cat\nb,dog\na,"dog,cat"\na,bus\n')
    assert of_table(path) == {"a": ["cat", "dog", "bus"], "b": ["dog"]}
    assert read_labels(LabelOptions(labels_from=path)).names == ("cat", "dog", "bus")


def test_names_of_images_need_not_be_unicode():
    path = written("t.jsonl", '{"image": "a\\udcff.jpg", "labels": "cat"}')
    assert of_table(path) == {"a\udcff.jpg": ["cat"]}


def test_labels_of_tables_get_templates():
    path = written("t.csv", "image,labels\na,cat\nb,dog\n")
    found = read_labels(LabelOptions(labels_from=path))
    assert [label.prompts for label in found.classes] == [
        ("a photo of a cat.",),
        ("a photo of a dog.",),
    ]


def test_a_cell_may_hold_twenty_thousand_labels():
    labels = [f"label {i:05}" for i in range(20_000)]
    path = written("t.csv", f'image,labels\na,"{",".join(labels)}"\n')
    assert of_table(path) == {"a": labels}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "image,label\na,b\n", "no column labels"),
        ("t.csv", "file;labels\na;b\n", "no column image and no column labels"),
        ("t.csv", "image,labels\n", "there are no labels"),
        ("t.csv", "image,labels\na,\n", "there are no labels"),
        ("t.csv", "image,labels\na\n", "row 1 needs an image and labels"),
        ("t.csv", "image,labels\n,cat\n", "row 1 needs an image"),
        ("t.csv", "image,labels\na,cat\na,cat,dog\n", "line 3 has more cells.*in quotes"),
        ("t.csv", b"image,labels\na,\xff\n", "utf-8"),
        ("t.jsonl", '{"image": "a", "labels": ["cat"]}\n{', "line 2 is not JSON"),
        ("t.jsonl", "[1]", "line 1 must be a JSON object"),
        ("t.jsonl", '{"image": 1, "labels": ["cat"]}', "row 1 needs an image"),
        ("t.jsonl", '{"image": "a"}', "row 1 needs an image and labels"),
        ("t.jsonl", '{"image": "a", "labels": {"cat": 1}}', "row 1 needs an image and labels"),
        ("t.jsonl", '{"image": "a", "labels": ["cat", 5]}', "labels of 'a' must be texts"),
        ("t.jsonl", '{"image": "a", "labels": ["cat", " "]}', "labels of 'a' must be texts"),
        ("t.jsonl", "[" * 100_000, "."),
        ("t.parquet", "PAR1 and nothing else", "."),
        ("t.parquet", "", "."),
        ("t.txt", "image,labels\n", "the table must be .csv, .tsv, .jsonl or .parquet"),
    ],
)
def test_tables_that_make_no_sense_are_told(name: str, content: str | bytes, message: str):
    with pytest.raises(UsageError, match=message) as told:
        of_table(written(name, content))
    assert str(told.value).startswith(f"{name}: ")
    assert "\n" not in str(told.value)


def test_parquet_without_the_columns_or_with_one_twice_is_told():
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"image": ["a"]}), "one.parquet")
    with pytest.raises(UsageError, match=r"one\.parquet: it has no column labels"):
        of_table(Path("one.parquet"))
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"]), pyarrow.array(["c"])]
    table = pyarrow.Table.from_arrays(columns, names=["image", "image", "labels"])
    parquet.write_table(table, "double.parquet")
    with pytest.raises(UsageError, match=r"double\.parquet: "):
        of_table(Path("double.parquet"))
