"""Which form is chosen for how many rows, by a clock that the forms advance; and the rows they are tried on."""

from __future__ import annotations

import numpy as np
import pytest

from serve.backends.tree_forms import SIZES, measure, probe_rows
from serve.backends.tree_import import imported_trees, load_treelite


def test_the_fastest_form_is_chosen_at_every_size():
    now_ns = 0

    def clock_ns():
        return now_ns

    def costing(fixed_ns, row_ns):
        def form(rows, out):
            nonlocal now_ns
            now_ns += fixed_ns + row_ns * len(rows)

        return form

    forms = {"few": costing(100, 90), "many": costing(1000, 10)}
    plan = measure(forms, np.zeros((SIZES[-1], 1), np.float32), 1, clock_ns)
    assert plan.crossovers() == ((1, "few"), (16, "many"))
    assert plan.cost_us["many"][0] == pytest.approx(1.01)


def test_a_noisy_moment_does_not_change_the_plan():
    now_ns = 0
    calls = 0

    def costing(row_ns):
        def form(rows, out):
            nonlocal now_ns, calls
            calls += 1
            now_ns += row_ns * len(rows) * (9 if 300 < calls < 900 else 1)

        return form

    plan = measure({"good": costing(100), "bad": costing(200)}, np.zeros((SIZES[-1], 1), np.float32), 1, lambda: now_ns)
    assert plan.crossovers() == ((1, "good"),)


def test_a_slow_model_is_measured_at_small_sizes_only():
    now_ns = 0

    def form(rows, out):
        nonlocal now_ns
        now_ns += 10**8

    plan = measure({"slow": form}, np.zeros((SIZES[-1], 1), np.float32), 1, lambda: now_ns)
    assert len(plan.cost_us["slow"]) == 1
    assert plan.names == ("slow",) * len(SIZES)


def test_probe_rows_tie_with_thresholds(model_files):
    forest = imported_trees(load_treelite(model_files / "xgboost.json", "xgboost_json")).forest
    rows = probe_rows(forest, 200, 0.1)
    thresholds = np.abs(forest.bound[forest.child > 0])
    assert np.isin(np.abs(rows), thresholds).mean() > 0.2
    assert np.isnan(rows).mean() == pytest.approx(0.1, abs=0.05)
