import sys
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from lightning_al.analysis.comparison import Comparison
from lightning_al.analysis.learning_curves import LearningCurves
from lightning_al.report.curve_plot import assign_styles, draw_comparison

NAMES = ("random", "margin", "entropy", "least_confidence", "noise_stability", "noise_stability_power", "core_set")
NAMES += ("badge", "bald", "batch_bald", "typi_clust", "prob_cover")


def study(count, seeds=5, cycles=7, **options):
    """Curves like real ones: all begin alike, and each strategy has its own speed."""
    generator = np.random.default_rng(0)
    labels = 20.0 * np.arange(1, cycles + 1)
    curves = {}
    for place, name in enumerate(NAMES[:count]):
        speed = 40 + 8 * abs(place - 4)
        values = 0.97 - 0.6 * np.exp(-labels / speed) + 0.02 * generator.normal(size=(seeds, cycles))
        curves[name] = LearningCurves(tuple(range(seeds)), labels, values, values, values)
    return Comparison(curves, "test/accuracy", options.pop("baseline", "random"), **options)


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw a comparison, and return the figure that was saved."""
    saved = []
    save = Figure.savefig

    def keep(figure, path, **options):
        saved.append(figure)
        save(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(comparison, suffix="png"):
        path = draw_comparison(comparison, tmp_path / f"curves.{suffix}")
        assert path == tmp_path / f"curves.{suffix}"
        assert path.stat().st_size > 10_000
        return saved[-1]

    return draw


def texts(artists):
    return [artist.get_text() for artist in artists]


def curve(axes, name):
    return next(line for line in axes.lines if line.get_label() == name.replace("_", " "))


@pytest.mark.parametrize("count", [2, 12])
def test_every_strategy_has_its_curve_its_interval_and_its_name(draw, count):
    comparison = study(count)
    figure = draw(comparison)
    left, right = figure.axes
    ranked = [name.replace("_", " ") for name in comparison.best_first()]
    assert texts(left.get_legend().get_texts()) == ranked
    assert (left.get_xlabel(), left.get_ylabel()) == ("labeled samples", "test/accuracy")
    assert left.get_title() == "mean ± standard error, 5 seeds"
    for name, curves in comparison.curves.items():
        line = curve(left, name)
        np.testing.assert_array_equal(line.get_xdata(), comparison.labels)
        np.testing.assert_allclose(line.get_ydata(), curves.values.mean(0))
    # from bottom to top the worst to the best
    assert texts(right.get_yticklabels()) == [name for name in reversed(ranked) if name != "random"]
    assert right.get_xlabel() == "area under the curve, minus\nthat of random (right is better)"
    assert right.get_title() == "paired difference, 95 % interval, 5 seeds"
    for row, name in enumerate(reversed([name for name in comparison.best_first() if name != "random"])):
        difference = comparison.differences("random")[name]
        interval, point = right.lines[2 * row : 2 * row + 2]
        assert list(interval.get_xdata()) == [difference.low, difference.high]
        assert (list(point.get_xdata()), list(point.get_ydata())) == ([difference.mean], [row])
        assert point.get_color() == curve(left, name).get_color()
    assert_no_text_leaves_the_picture_or_meets_another(figure)


def assert_no_text_leaves_the_picture_or_meets_another(figure):
    figure.draw_without_rendering()  # saving was at another resolution
    boxes = []
    for axes in figure.axes:
        parts = [axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            # matplotlib keeps ticks just outside the limits, undrawn
            parts += [tick.label1 for tick in axis.get_major_ticks() if limits[0] <= tick.get_loc() <= limits[1]]
        boxes += [(part.get_text(), part.get_window_extent()) for part in parts if part.get_text()]
    assert len(boxes) > 10
    for place, (text, box) in enumerate(boxes):
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
        for other_text, other_box in boxes[place + 1 :]:
            assert not box.overlaps(other_box), f"{text!r} meets {other_text!r}"


def test_the_band_is_the_standard_error(draw):
    comparison = study(1)
    left = draw(comparison).axes[0]
    values = comparison.curves["random"].values
    error = values.std(0, ddof=1) / np.sqrt(5)
    corners = left.collections[0].get_paths()[0].vertices
    for column, label in enumerate(comparison.labels):
        heights = corners[corners[:, 0] == label][:, 1]
        mean = values[:, column].mean()
        assert (heights.min(), heights.max()) == pytest.approx((mean - error[column], mean + error[column]))


def test_no_two_strategies_look_alike_and_the_baseline_is_gray():
    comparison = study(12)
    styles = assign_styles(comparison)
    assert set(styles) == set(NAMES)
    looks = [(to_hex(style["color"]), style["linestyle"]) for style in styles.values()]
    assert len(set(looks)) == 12
    assert len({style["marker"] for style in styles.values()}) == 12
    assert styles["random"] == {"color": "0.4", "linestyle": "--", "marker": ""}
    # without it nothing is gray
    assert all(style["color"] != "0.4" for style in assign_styles(study(3, baseline="absent")).values())


def test_a_comparison_without_the_baseline_has_one_plot(draw):
    figure = draw(study(3, baseline="absent"))
    assert len(figure.axes) == 1
    assert len(draw(study(1)).axes) == 1


def test_an_error_falls_so_the_legend_is_above_and_left_is_better(draw):
    comparison = study(3)
    curves = {name: replace(rising, values=1 - rising.values) for name, rising in comparison.curves.items()}
    left, right = draw(Comparison(curves, "test/error", "random", lower_is_better=True)).axes
    middle = left.get_legend().get_window_extent().y0
    assert middle > left.get_window_extent().y0 + left.get_window_extent().height / 2
    assert right.get_xlabel().endswith("(left is better)")


def test_one_seed_has_no_interval_and_does_not_claim_one(draw):
    left, right = draw(study(3, seeds=1)).axes
    assert left.get_title() == "mean, 1 seed"
    assert right.get_title() == "paired difference, 1 seed"
    assert len(right.lines) == 3  # two points and the line at zero


def test_many_cycles_do_not_crowd_the_axis(draw):
    left = draw(study(2, cycles=40)).axes[0]
    assert len(left.get_xticks()) < 12
    assert_no_text_leaves_the_picture_or_meets_another(left.figure)


def test_the_suffix_chooses_the_format(draw, tmp_path):
    draw(study(2), suffix="svg")
    assert "<svg" in (tmp_path / "curves.svg").read_text(encoding="utf-8")


def test_dollars_in_names_are_no_formula(draw):
    comparison = replace(study(2), metric=r"cost in $ \\and $")
    assert draw(comparison).axes[0].get_ylabel() == r"cost in \$ \\and \$"


def test_a_missing_matplotlib_is_explained(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"lightning_al\[report\]") as caught:
        draw_comparison(study(2), tmp_path / "curves.png")
    assert caught.value.name == "matplotlib"
