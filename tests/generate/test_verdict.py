"""Proves the rules of the verdict as docs/judge.md states them."""

import math

import pytest

from tunesmith.generate.bootstrap import Interval
from tunesmith.generate.measure import Measure, measure
from tunesmith.generate.verdict import forgetting, verdict

UP, DOWN, NONE = Interval(0.1, 0.3), Interval(-0.3, -0.1), Interval(-0.1, 0.1)


def of(**changes):
    good = {"chrF": 1, "exact match": 1, "loss on answers": -1, "stops properly": 1}
    return {name: Measure(name, "share", good[name], 0.5, 0.5, 20, change) for name, change in changes.items()}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"chrF": UP}, "better"),
        ({"chrF": DOWN}, "worse"),
        ({"chrF": NONE, "exact match": UP}, "better"),
        ({"chrF": UP, "loss on answers": UP}, "better"),
        ({"chrF": DOWN, "loss on answers": DOWN}, "worse"),
        ({"chrF": NONE, "exact match": NONE, "loss on answers": DOWN}, "better"),
        ({"loss on answers": UP}, "worse"),
        ({"chrF": NONE, "exact match": NONE, "loss on answers": NONE}, "no difference"),
        ({"chrF": UP, "stops properly": DOWN}, "worse"),
        ({"chrF": NONE, "stops properly": UP}, "no difference"),
        ({"chrF": None, "loss on answers": None}, "too few rows"),
        ({"chrF": None, "loss on answers": DOWN}, "better"),
        ({}, "too few rows"),
    ],
)
def test_the_first_measure_that_differs_decides_and_not_stopping_decides_before_it(changes, word):
    assert verdict(of(**changes)).word == word


def _text(ratio, sure=True):
    change = Interval(math.log(ratio) - 0.01, math.log(ratio) + 0.01) if sure else Interval(-1, 9)
    return Measure("loss on general text", "nats", -1, 3.0, 3.0 + math.log(ratio), 8, change)


def _suites(before, after, sure=True):
    change = Interval(after - before - 0.01, after - before + 0.01) if sure else Interval(-0.5, 0.5)
    return Measure("all suites", "share", 1, before, after, 92, change)


@pytest.mark.parametrize(
    ("text", "suites", "word"),
    [
        (_text(1.05), None, "none"),
        (_text(0.5), None, "none"),
        (_text(1.2), None, "some"),
        (_text(2.5), None, "severe"),
        (_text(2.5, sure=False), None, "none"),
        (_text(1.05), _suites(0.5, 0.4), "some"),
        (_text(1.05), _suites(0.5, 0.2), "severe"),
        (_text(1.05), _suites(0.5, 0.2, sure=False), "none"),
        (_text(2.5), _suites(0.5, 0.6), "severe"),
        (_text(1e300), _suites(0.5, 0.5, sure=False), "severe"),
    ],
)
def test_forgetting_is_the_graver_of_general_text_and_suites(text, suites, word):
    assert forgetting(text, suites).word == word
    assert ("not asked" in forgetting(text, suites).reason) is (suites is None)


def test_a_measure_is_called_nothing_unless_its_interval_excludes_zero():
    assert measure("chrF", "points", 1, [1.0, 2, 3, 4, 5, 6], [1.0, 2, 3, 4, 5, 6]).word == "no difference"
    assert measure("chrF", "points", 1, [1.0, 2, 3, 4, 5, 6], [2.0, 3, 4, 5, 6, 7]).word == "better"
    assert measure("loss", "nats", -1, [1.0, 2, 3, 4, 5, 6], [2.0, 3, 4, 5, 6, 7]).word == "worse"
    assert measure("length", "tokens", 0, [1.0, 2, 3, 4, 5, 6], [2.0, 3, 4, 5, 6, 7]).word == ""
    assert measure("chrF", "points", 1, [1.0], [99.0]).word == "too few rows"
