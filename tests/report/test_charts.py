import base64

import numpy as np
import pytest

from lightning_al.analysis.comparison import Comparison
from lightning_al.analysis.learning_curves import read_curves
from lightning_al.report import charts
from lightning_al.report.runs import ReportedQuery
from tests.report.runs import written_run


def numbers(values):
    """Return what Plotly packs as bytes as numbers."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).tolist()
    return values


def query(cycle, quantiles, scores, **figures):
    return ReportedQuery(cycle, None, figures, quantiles, scores, [])


@pytest.fixture
def comparison(tmp_path):
    for seed, values in enumerate([(0.5, 0.6, 0.7), (0.7, 0.8, 0.9)]):
        written_run(tmp_path / f"{seed}", values)
    curves = read_curves({seed: tmp_path / f"{seed}" for seed in (0, 1)}, "test/accuracy")
    return Comparison({"a <b>%{x}": curves}, "test/accuracy", "random")


def test_a_learning_curve_is_the_mean_with_a_band_of_a_standard_error(comparison):
    band, line = charts.learning_curves(comparison, on_seconds=False)["data"]
    assert numbers(line["x"]) == [10, 20, 30]
    assert numbers(line["y"]) == pytest.approx([0.6, 0.7, 0.8])
    # the sample standard deviation of 0.5 and 0.7 is 0.141, over the square root of two seeds
    assert numbers(band["y"]) == pytest.approx([0.7, 0.8, 0.9, 0.7, 0.6, 0.5])
    assert line["name"] == "a <b>%{x}"
    assert "a &lt;b&gt;% {x}" in line["hovertemplate"]


def test_seconds_are_those_until_a_cycle_was_tested(comparison):
    _, line = charts.learning_curves(comparison, on_seconds=True)["data"]
    assert numbers(line["x"]) == [2.0, 2.0 + 1.5 + 3.0, 2.0 + 1.5 + 3.0 + 1.5 + 4.0]


def test_the_class_mix_stacks_the_classes_in_their_order():
    queries = [query(0, [], [], **{"label/10": 2.0, "label/9": 1.0}), query(1, [], [], **{"label/9": 3.0})]
    bars = charts.class_mix(queries)["data"]
    assert [(bar["name"], numbers(bar["y"])) for bar in bars] == [("9", [1, 3]), ("10", [2, 0])]
    assert charts.class_mix([query(0, [], [])]) is None


def test_boxes_of_candidates_and_picks():
    quantiles = [float(n) for n in range(21)]
    chart = charts.score_distribution([query(0, quantiles, [18.0, 19.0, 20.0])])
    candidates, picks = chart["data"]
    assert [numbers(candidates[name]) for name in ("lowerfence", "q1", "median", "q3", "upperfence")] == [
        [1], [5], [10], [15], [19],
    ]  # fmt: skip
    assert numbers(picks["median"]) == [19.0]
    assert chart["layout"]["yaxis"]["type"] == "linear"
    assert charts.score_distribution([query(0, [], [])]) is None


@pytest.mark.parametrize(("low", "axis"), [(1e-9, "log"), (0.0, "linear"), (-1.0, "linear"), (0.5, "linear")])
def test_scores_of_many_magnitudes_have_a_logarithmic_axis(low, axis):
    quantiles = np.linspace(low, 1.0, 21).tolist()
    quantiles[1] = low
    assert charts.score_distribution([query(0, quantiles, [])])["layout"]["yaxis"]["type"] == axis


def test_query_metrics_over_cycles_are_those_that_are_known():
    queries = [query(0, [], []), query(1, [], [], redundancy=0.5)]
    (line,) = charts.query_metrics_over_cycles(queries, {"redundancy": "how alike", "confidence": "how sure"})["data"]
    assert (line["name"], numbers(line["x"]), numbers(line["y"])) == ("how alike", [1], [0.5])
    assert charts.query_metrics_over_cycles(queries, {"confidence": "how sure"}) is None
