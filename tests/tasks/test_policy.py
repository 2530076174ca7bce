"""Policies decide by the strictest rule that is met, say why, and refuse whatever makes no sense."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from annotary.errors import UsageError
from annotary.records import Annotation, from_line, to_line
from annotary.tasks.policy import Policy, policy_of, read_policy

ACTIONS = ("allow", "review", "block")
NAMES = ("nudity", "medical", "weapon", "toy")

MODERATION = """
about: what the shop shows
rules:
  - label: nudity
    block: 0.8
    review: 0.4
    unless: medical >= 0.5
  - name: a child with a weapon
    all:
      - child >= 0.5
      - any: [weapon >= 0.3, {label: knife, at_least: 0.6}]
    action: block
default: allow
"""


def policy(text: str = MODERATION) -> Policy:
    return policy_of(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("scores", "action", "reasons"),
    [
        ({}, "allow", []),
        ({"nudity": 0.39}, "allow", []),
        ({"nudity": 0.4}, "review", [("nudity", 0.4, "review")]),
        ({"nudity": 0.8}, "block", [("nudity", 0.8, "block")]),
        ({"nudity": 0.95, "medical": 0.5}, "allow", []),
        ({"nudity": 0.95, "medical": 0.49}, "block", [("nudity", 0.8, "block")]),
        ({"child": 0.9}, "allow", []),
        ({"weapon": 0.9}, "allow", []),
        (
            {"child": 0.7, "weapon": 0.9, "knife": 0.5},
            "block",
            [("weapon", 0.3, "block"), ("child", 0.5, "block")],
        ),
        (
            {"child": 0.7, "knife": 0.6, "nudity": 0.5},
            "block",
            [("child", 0.5, "block"), ("knife", 0.6, "block"), ("nudity", 0.4, "review")],
        ),
    ],
)
def test_the_strictest_rule_decides_and_its_reasons_come_first(scores, action, reasons):
    decision = policy().decide(scores)
    assert decision.action == action
    told = [(reason.name, reason.threshold, reason.action) for reason in decision.reasons]
    assert told == reasons
    assert all(reason.score == scores[reason.name] for reason in decision.reasons)
    record = Annotation("a.jpg", 1, 1, decision=decision)
    assert from_line(to_line(record)) == record


def test_the_default_is_what_remains_and_rules_are_only_stricter():
    careful = policy_of({"default": "review", "rules": [{"tag": "blood", "block": 0.9}]})
    assert careful.decide({}).action == "review"
    assert careful.decide({"blood": 0.9}).action == "block"
    closed = policy_of({"default": "block", "rules": [{"tag": "blood", "review": 0.9}]})
    assert closed.decide({"blood": 1.0}).action == "block"


def test_names_are_those_of_all_conditions():
    assert policy().names == ("nudity", "medical", "child", "weapon", "knife")
    policy().check([*policy().names, "more"])
    with pytest.raises(UsageError, match=r"rule 1 \(nudity\) looks at 'medical'.*mean 'medicine'"):
        policy().check(["nudity", "medicine", "child", "weapon", "knife"])


def test_a_policy_may_bring_its_labels():
    found = policy_of(
        {
            "labels": {"a picture of a gun": "weapon", "toy": ["a plastic toy", "a toy gun"]},
            "background": "a photo.",
            "rules": [{"label": "weapon", "block": 0.5, "unless": ["toy >= 0.5"]}],
        }
    )
    assert found.labels is not None
    assert found.labels.names == ("weapon", "toy")
    assert found.labels.classes[1].prompts == ("a plastic toy", "a toy gun")
    assert found.labels.background == ("a photo.",)
    words = policy_of({"labels": ["gun", "cat"], "rules": [{"label": "gun", "block": 0.5}]})
    assert words.labels is not None
    assert words.labels.classes[0].prompts == ("a photo of a gun.",)
    assert policy().labels is None


conditions = st.recursive(
    st.tuples(st.sampled_from(NAMES), st.integers(0, 100)).map(
        lambda one: {"label": one[0], "at_least": one[1] / 100}
    ),
    lambda inner: st.tuples(
        st.sampled_from(["all", "any"]), st.lists(inner, min_size=1, max_size=3)
    ).map(lambda one: {one[0]: one[1]}),
    max_leaves=5,
)
singles = st.builds(
    lambda name, low, high: {"label": name, "review": low / 200, "block": 0.5 + high / 200},
    st.sampled_from(NAMES),
    st.integers(0, 99),
    st.integers(0, 100),
)
combined = st.builds(
    lambda kind, parts, action: {kind: parts, "action": action},
    st.sampled_from(["all", "any"]),
    st.lists(conditions, min_size=1, max_size=3),
    st.sampled_from(ACTIONS[1:]),
)
policies = st.fixed_dictionaries(
    {
        "rules": st.lists(singles | combined, min_size=1, max_size=4),
        "default": st.sampled_from(ACTIONS),
    }
)
scores = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 100).map(lambda n: n / 100))


@given(policies, scores, st.sampled_from(NAMES), st.integers(0, 100))
def test_a_higher_score_never_makes_the_decision_milder(value, low, name, more):
    high = {**low, name: max(low.get(name, 0.0), more / 100)}
    made = policy_of(value)
    before, after = made.decide(low).action, made.decide(high).action
    assert ACTIONS.index(after) >= ACTIONS.index(before)


@given(policies, scores)
def test_the_action_is_the_strictest_and_every_reason_is_true(value, given_scores):
    made = policy_of(value)
    decision = made.decide(given_scores)
    alone = [
        policy_of({"rules": [rule], "default": value["default"]}).decide(given_scores)
        for rule in value["rules"]
    ]
    assert decision.action == max((one.action for one in alone), key=ACTIONS.index)
    assert set(decision.reasons) == {reason for one in alone for reason in one.reasons}
    keys = [(-ACTIONS.index(one.action), -one.score) for one in decision.reasons]
    assert keys == sorted(keys)
    for reason in decision.reasons:
        assert given_scores[reason.name] == reason.score >= reason.threshold


@given(policies, conditions, scores)
def test_unless_only_makes_milder(value, condition, given_scores):
    made = policy_of(value)
    excused = {**value, "rules": [{**rule, "unless": condition} for rule in value["rules"]]}
    strict, mild = made.decide(given_scores), policy_of(excused).decide(given_scores)
    assert ACTIONS.index(mild.action) <= ACTIONS.index(strict.action)


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_files_are_read(tmp_path: Path, suffix: str):
    path = tmp_path / f"policy{suffix}"
    value = yaml.safe_load(MODERATION)
    path.write_text(json.dumps(value) if suffix == ".json" else MODERATION)
    read = read_policy(path)
    assert read.rules == policy().rules
    assert read.settings() == policy().settings()
    value["rules"][0]["block"] = 0.81
    assert policy_of(value).settings() != read.settings()


RULE: dict[str, Any] = {"label": "a", "block": 0.5}
NESTED: Any = "a >= 0.5"
for _ in range(20):
    NESTED = {"all": [NESTED]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "a policy is a table"),
        ({}, "rules must be a list"),
        ({"rules": []}, "rules must be a list"),
        ({"rules": [RULE], "defualt": "block"}, "unknown key 'defualt'; did you mean default?"),
        ({"rules": [RULE], "default": "deny"}, "default must be one of allow, review, block"),
        ({"rules": [RULE, 3]}, "rule 2: it must be a table"),
        ({"rules": [{"block": 0.5}]}, "rule 1: it needs one of label, tag, all and any"),
        ({"rules": [{**RULE, "tag": "b"}]}, r"rule 1 \(a\): it needs one of"),
        ({"rules": [{"label": "a"}]}, r"rule 1 \(a\): it needs block or review"),
        ({"rules": [{"label": "a", "block": 1.5}]}, r"rule 1 \(a\): block must be in 0..1"),
        ({"rules": [{"label": "a", "block": True}]}, "block must be in 0..1, but got True"),
        ({"rules": [{"label": "a", "block": "0.5"}]}, "block must be in 0..1"),
        ({"rules": [{"label": "a", "block": float("nan")}]}, "block must be in 0..1"),
        ({"rules": [{"label": "a", "block": 0.4, "review": 0.4}]}, "review must be below block"),
        ({"rules": [{"label": False, "block": 0.4}]}, "put it in quotes"),
        ({"rules": [{"label": " ", "block": 0.4}]}, "a label must be text"),
        ({"rules": [{**RULE, "blok": 0.4}]}, "unknown key 'blok'; did you mean block?"),
        ({"rules": [{**RULE, "action": "block"}]}, "action is for all and any"),
        ({"rules": [{"all": ["a >= 0.5"]}]}, "action must be one of block, review"),
        ({"rules": [{"any": ["a >= 0.5"], "action": "allow"}]}, "action must be one of"),
        ({"rules": [{"any": [], "action": "block"}]}, "any must be a list of conditions"),
        ({"rules": [{"any": ["a > 0.5"], "action": "block"}]}, "must be like 'NAME >= 0.5'"),
        ({"rules": [{"any": ["a >= x"], "action": "block"}]}, "a score must be a number"),
        ({"rules": [{"any": [7], "action": "block"}]}, "must be text or a table, but got 7"),
        ({"rules": [{"any": ["a >= 0.5"], "block": 0.5}]}, "any has scores of its own"),
        ({"rules": [{"any": [{"label": "a"}], "action": "block"}]}, "needs at_least"),
        ({"rules": [{"any": [{"at_least": 1}], "action": "block"}]}, "needs a label or a tag"),
        ({"rules": [{**RULE, "unless": {"label": "a", "least": 1}}]}, "unknown key 'least'"),
        ({"rules": [{**RULE, "unless": NESTED}]}, "nested 16 deep"),
        ({"rules": [RULE], "labels": ["b"]}, r"rule 1 \(a\) looks at 'a', which is none of the"),
        ({"rules": [RULE], "labels": {}}, "labels: there are no labels"),
        ({"rules": [RULE], "labels": "a"}, "labels: they must be a list of words"),
        ({"rules": [RULE], "labels": ["a"], "template": "photo"}, "labels: template must have"),
        ({"rules": [RULE], "labels": {"a": "a"}, "template": "x"}, "labels: template must have"),
        ({"rules": [RULE], "background": "a photo."}, "background is for a policy with labels"),
    ],
)
def test_what_makes_no_sense_is_one_line_that_names_the_rule(value, message, tmp_path: Path):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        policy_of(value)
    assert "\n" not in str(error.value)
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(value))
    with pytest.raises(UsageError, match=message):
        read_policy(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"rules: [", "policy.yaml: while parsing"),
        (b"\xff\xfe\x00", "policy.yaml: "),
        (b"rules: [{label: no, block: 0.5}]", "put it in quotes"),
        (b"", "a policy is a table"),
    ],
)
def test_files_that_are_no_policies_are_refused(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "policy.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_policy(path)
    with pytest.raises(UsageError, match="No such file"):
        read_policy(tmp_path / "none.yaml")


def test_the_policies_of_the_docs_are_policies():
    page = Path(__file__).parents[2] / "docs" / "policy.md"
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page.read_text("utf-8"), re.S | re.M)
    made = [policy_of(yaml.safe_load(block)) for block in blocks]
    assert [one.labels is not None for one in made] == [False, True]
