"""Policies: from the scores of labels or tags to a decision for each image, allow, review or block, with reasons.

A policy is a list of rules. A rule looks at the score of one label, or at conditions on several, and asks for an
action; the strictest action that any rule asks for is taken. A score that an image does not have meets no rule.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from annotary.errors import UsageError
from annotary.records import Action, Decision, Reason
from annotary.tasks.label_sets import LabelSet

_ACTIONS: tuple[Action, ...] = get_args(Action)
"""From the mildest to the strictest."""

_STRICT: tuple[Action, ...] = ("block", "review")
"""What rules may ask for, the strictest first."""

_DEEPEST = 16
"""Conditions within conditions; nobody reads more."""

_TEXT = re.compile(r"\s*(.*\S)\s*>=\s*(\S+)\s*", re.DOTALL)

_KEYS = frozenset({"labels", "background", "none_label", "template", "rules", "default", "about"})
_RULE_KEYS = frozenset(
    {"name", "label", "tag", "block", "review", "all", "any", "action", "unless"}
)


@dataclass(frozen=True, slots=True)
class Score:
    """A condition on one score: it is at least so high.

    Attributes:
        name: The label or tag.
        at_least: In 0..1.
    """

    name: str
    at_least: float


@dataclass(frozen=True, slots=True)
class Several:
    """A condition on several.

    Attributes:
        kind: Whether all of them must hold or any.
        parts: At least one.
    """

    kind: Literal["all", "any"]
    parts: tuple[Condition, ...]


Condition: TypeAlias = Score | Several


@dataclass(frozen=True, slots=True)
class Rule:
    """What is asked for when a condition holds.

    Attributes:
        name: How messages call it.
        asks: Conditions and the actions they lead to, the strictest first; the first that holds counts.
        unless: When any of these holds, the rule does not apply.
    """

    name: str
    asks: tuple[tuple[Condition, Action], ...]
    unless: tuple[Condition, ...] = ()


class Policy:
    """What makes decisions of scores.

    Args:
        rules: At least one.
        default: What becomes of an image that no rule is met by; rules can only be stricter.
        labels: The labels that the policy brings along, where it does.

    Raises:
        ValueError: There are no rules, or one looks at a label that the policy does not bring along.
    """

    def __init__(
        self, rules: tuple[Rule, ...], default: Action = "allow", labels: LabelSet | None = None
    ) -> None:
        if not rules:
            raise ValueError("a policy needs rules")
        self.rules = rules
        self.default: Action = default
        self.labels = labels
        if labels is not None:
            self._check(labels.names, "none of the policy's own labels")

    @property
    def names(self) -> tuple[str, ...]:
        """The labels and tags that it looks at, each once."""
        return tuple(dict.fromkeys(name for rule in self.rules for name in _names_of(rule)))

    def check(self, names: Collection[str]) -> None:
        """See whether all that it looks at exists.

        Args:
            names: The labels or tags that images get scores for.

        Raises:
            UsageError: A rule looks at something else and could never be met.
        """
        try:
            self._check(names, "nothing that images get a score for")
        except ValueError as error:
            raise UsageError(f"the policy cannot be used here: {error}") from error

    def decide(self, scores: Mapping[str, float]) -> Decision:
        """The decision for an image.

        Args:
            scores: Label or tag to its score, 0..1.

        Returns:
            The strictest of what the rules ask for, and why: the strictest reasons first, then those with the highest
            scores.
        """
        met: dict[Reason, None] = {}
        strictest = _ACTIONS.index(self.default)
        for rule in self.rules:
            if any(_holds(condition, scores) for condition in rule.unless):
                continue
            for condition, action in rule.asks:
                if _holds(condition, scores):
                    strictest = max(strictest, _ACTIONS.index(action))
                    for part in _held(condition, scores):
                        reason = Reason(part.name, float(scores[part.name]), part.at_least, action)
                        met[reason] = None
                    break
        # Sorting keeps the order of the rules among equals, so that a decision is always the same.
        reasons = sorted(met, key=lambda one: (-_ACTIONS.index(one.action), -one.score))
        return Decision(_ACTIONS[strictest], tuple(reasons))

    def settings(self) -> dict[str, Any]:
        """What decisions depend on."""
        told = json.dumps([repr(rule) for rule in self.rules])
        return {
            "rules": hashlib.sha256(told.encode()).hexdigest()[:16],
            "default": self.default,
        }

    def _check(self, names: Collection[str], otherwise: str) -> None:
        known = set(names)
        for rule in self.rules:
            for name in _names_of(rule):
                if name not in known:
                    close = difflib.get_close_matches(name, known, n=1)
                    hint = f"; did you mean {close[0]!r}?" if close else ""
                    raise ValueError(f"{rule.name} looks at {name!r}, which is {otherwise}{hint}")


def read_policy(path: Path) -> Policy:
    """Read a policy of YAML or JSON.

    Raises:
        UsageError: It cannot be read or makes no sense; the message names the rule.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8-sig")
        value = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
        return policy_of(value)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{path}: {error}") from error


def policy_of(value: Any) -> Policy:
    """The policy of Python values, as a file holds them.

    Args:
        value: `rules` and, where they are told, `default`, `labels`, `background`, `none_label`, `template`, `about`.

    Raises:
        ValueError: A value is out of range or unknown; the message names the rule.
        TypeError: It is no such thing.
    """
    if not isinstance(value, Mapping):
        raise TypeError("a policy is a table with rules")
    _check_keys("the policy", value, _KEYS)
    default = value.get("default", "allow")
    if default not in _ACTIONS:
        raise ValueError(f"default must be one of {', '.join(_ACTIONS)}, but got {default!r}")
    rules = value.get("rules")
    if not isinstance(rules, list) or not rules:
        raise ValueError("rules must be a list of at least one rule")
    made = tuple(_rule(entry, number) for number, entry in enumerate(rules, 1))
    return Policy(made, default, _labels(value))


def _labels(value: Mapping[str, Any]) -> LabelSet | None:
    """The labels of a policy that brings them along."""
    told = value.get("labels")
    beside = {"background", "none_label", "template"} & set(value)
    if told is None:
        if beside:
            raise ValueError(f"{sorted(beside)[0]} is for a policy with labels")
        return None
    background = value.get("background", ())
    try:
        if not isinstance(told, Mapping | list):
            raise TypeError("they must be a list of words, or a table of labels and prompts")
        return LabelSet.of(
            told,
            value.get("template"),
            none_label=value.get("none_label"),
            background=[background] if isinstance(background, str) else background,
        )
    except (UsageError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"labels: {error}") from error


def _rule(value: Any, number: int) -> Rule:
    """One rule of a file.

    Raises:
        ValueError: It makes no sense; the message names it.
    """
    name = f"rule {number}"
    try:
        if not isinstance(value, Mapping):
            raise TypeError("it must be a table, such as {label: NAME, block: 0.8}")
        told = value.get("name", value.get("label", value.get("tag")))
        name = f"rule {number} ({told})" if isinstance(told, str) else name
        _check_keys("it", value, _RULE_KEYS)
        subjects = [key for key in ("label", "tag", "all", "any") if key in value]
        if len(subjects) != 1:
            raise ValueError("it needs one of label, tag, all and any")
        asks = _single(value) if subjects[0] in ("label", "tag") else _combined(value, subjects[0])
        unless = value.get("unless", [])
        unless = unless if isinstance(unless, list) else [unless]
        return Rule(name, asks, tuple(_condition(entry, 1) for entry in unless))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {error}") from error


def _single(value: Mapping[str, Any]) -> tuple[tuple[Condition, Action], ...]:
    """What a rule on one label asks for: the strictest first."""
    if "action" in value:
        raise ValueError("action is for all and any; say block: 0.8 or review: 0.4")
    subject = _subject(value)
    told = [(action, _share(action, value[action])) for action in _STRICT if action in value]
    if not told:
        raise ValueError("it needs block or review, the score from which on it holds")
    if len(told) == 2 and told[1][1] >= told[0][1]:
        raise ValueError(
            f"review must be below block, but {told[1][1]:g} is not below {told[0][1]:g}"
        )
    return tuple((Score(subject, least), action) for action, least in told)


def _combined(value: Mapping[str, Any], kind: str) -> tuple[tuple[Condition, Action], ...]:
    """What a rule on several conditions asks for."""
    if {"block", "review"} & set(value):
        raise ValueError(f"{kind} has scores of its own; say action: block or action: review")
    action = value.get("action")
    if action not in _STRICT:
        raise ValueError(f"action must be one of {', '.join(_STRICT)}, but got {action!r}")
    return ((_condition({kind: value[kind]}, 1), action),)


def _condition(value: Any, depth: int) -> Condition:
    """A condition: "NAME >= 0.5", {label: NAME, at_least: 0.5}, {all: [...]}, {any: [...]}."""
    if depth > _DEEPEST:
        raise ValueError(f"conditions may be nested {_DEEPEST} deep")
    if isinstance(value, str):
        found = _TEXT.fullmatch(value)
        if found is None:
            raise ValueError(f"a condition must be like 'NAME >= 0.5', but got {value!r}")
        return Score(found[1].strip("\"'"), _share(found[1], _number(found[2])))
    if not isinstance(value, Mapping):
        raise TypeError(f"a condition must be text or a table, but got {value!r}")
    for kind in ("all", "any"):
        if kind in value:
            _check_keys("a condition", value, {kind})
            parts = value[kind]
            if not isinstance(parts, list) or not parts:
                raise ValueError(f"{kind} must be a list of conditions, but got {parts!r}")
            return Several(kind, tuple(_condition(part, depth + 1) for part in parts))
    _check_keys("a condition", value, {"label", "tag", "at_least"})
    if "at_least" not in value:
        raise ValueError("a condition needs at_least, the score from which on it holds")
    return Score(_subject(value), _share("at_least", value["at_least"]))


def _subject(value: Mapping[str, Any]) -> str:
    told = [value[key] for key in ("label", "tag") if key in value]
    if len(told) != 1:
        raise ValueError("it needs a label or a tag")
    if not isinstance(told[0], str) or not told[0].strip():
        raise ValueError(f"a label must be text, but got {told[0]!r}; put it in quotes")
    return told[0]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"a score must be a number in 0..1, but got {text!r}") from None


def _share(what: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0.0 <= value <= 1.0:
        raise ValueError(f"{what} must be in 0..1, but got {value!r}")
    return float(value)


def _check_keys(what: str, value: Mapping[str, Any], known: Collection[str]) -> None:
    if unknown := [key for key in value if key not in known]:
        close = difflib.get_close_matches(str(unknown[0]), known, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(sorted(known))}"
        raise ValueError(f"{what} has an unknown key {unknown[0]!r}{hint}")


def _names_of(rule: Rule) -> Iterator[str]:
    for condition in (*(condition for condition, _ in rule.asks), *rule.unless):
        for part in _scores_of(condition):
            yield part.name


def _scores_of(condition: Condition) -> Iterator[Score]:
    """All conditions on single scores in a condition."""
    if isinstance(condition, Score):
        yield condition
    else:
        for part in condition.parts:
            yield from _scores_of(part)


def _holds(condition: Condition, scores: Mapping[str, float]) -> bool:
    if isinstance(condition, Score):
        return condition.name in scores and scores[condition.name] >= condition.at_least
    every = (_holds(part, scores) for part in condition.parts)
    return all(every) if condition.kind == "all" else any(every)


def _held(condition: Condition, scores: Mapping[str, float]) -> Iterator[Score]:
    """The single conditions that make a condition hold."""
    if isinstance(condition, Score):
        yield condition
    else:
        for part in condition.parts:
            if _holds(part, scores):
                yield from _held(part, scores)
