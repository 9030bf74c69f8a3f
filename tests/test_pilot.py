import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_al.adapters import Predictor
from lightning_al.forecast import RIDGES
from lightning_al.functional.noise_stability import deviation_sizes
from lightning_al.noise import Noise
from lightning_al.perturb import FiniteDifferences
from lightning_al.pilot import draw_up, overlap, pilot_rows, pilot_size, plan_race, stable_passes
from lightning_al.racing import FINISHED, SCORE, Cut, Plan, outlook, race, ranking_rows
from tests.digits import digits, one_thread, trained_net

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad(), one_thread():
        yield


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- how many


@pytest.mark.parametrize(
    ("candidates", "share", "automatic", "expected"),
    [
        (100_000, 0.1, False, 512),
        (100_000, 0.1, True, 512),  # 51 picks
        (100_000, 0.01, False, 512),
        (100_000, 0.01, True, 1600),  # for 16 picks
        (100_000, 0.003, True, 4096),  # no more than some thousand
        (100_000, 0.0001, True, 4096),
        (20_000, 0.0001, True, 2500),  # no more than an eighth
        (4096, 0.1, False, 512),
        (4000, 0.1, False, 500),
        (1000, 0.1, False, 125),
        (1000, 0.01, True, 125),
        (512, 0.1, False, 64),
        (300, 0.1, False, 64),  # more than an eighth of a tiny pool
        (40, 0.9, True, 64),  # more than there are; the draw leaves one over
    ],
)
def test_a_pilot_is_some_hundred_samples_but_no_large_part_of_the_pool(candidates, share, automatic, expected):
    assert pilot_size(candidates, share, automatic) == expected


# ---------------------------------------------------------------- what it measures


@pytest.mark.parametrize("norm", ["squared", "l2"])
@pytest.mark.parametrize("output", ["softmax", "sigmoid", "identity"])
def test_the_rows_of_a_pilot_are_the_sizes_of_all_deviations_beside_the_outlooks(norm, output):
    model = trained_net().double()
    predictor = Predictor(model)
    backend = FiniteDifferences(lambda x: predictor.output(x, output), list(model.parameters()), Noise())
    chunk = list(digits().tensors[0][100:140].double().split((30, 10)))
    seeds = [(3, step) for step in range(4)]
    rows = pilot_rows(backend, chunk, seeds, norm, output)
    assert rows.shape == (40, 4 + (11 if output == "identity" else 21))
    assert torch.equal(rows[:, :4], deviation_sizes(backend, chunk, seeds, norm))
    clean = torch.cat([predictor.output(batch, output) for batch in chunk])
    torch.testing.assert_close(rows[:, 4:], outlook(clean, output), rtol=1e-9, atol=0)


# ---------------------------------------------------------------- overlap


@pytest.mark.parametrize(
    ("one", "other", "budget", "expected"),
    [
        ([5, 4, 3, 2, 1], [5, 4, 3, 2, 1], 2, 1.0),
        ([5, 4, 3, 2, 1], [1, 2, 3, 4, 5], 2, 0.0),
        ([5, 4, 3, 2, 1], [1, 2, 3, 4, 5], 3, 1 / 3),
        ([5, 4, 3, 2, 1], [4, 5, 3, 2, 1], 1, 0.0),
        ([5, 4, 3, 2, 1], [4, 5, 3, 2, 1], 2, 1.0),  # in another order
        ([5, 4, 3], [3, 4, 5], 9, 1.0),  # no more can be picked than there are
        ([1, 1, 1, 1], [0, 0, 1, 1], 2, 0.0),  # ties go to the first rows, as the picks do
    ],
)
def test_overlap_is_the_share_of_the_picks_that_both_have(one, other, budget, expected):
    assert overlap(torch.tensor(one).float(), torch.tensor(other).float(), budget) == pytest.approx(expected)
    assert overlap(torch.tensor(other).float(), torch.tensor(one).float(), budget) == pytest.approx(expected)


# ---------------------------------------------------------------- stable_passes


def noisy_sizes(samples: int, passes: int, noise: float, seed: int = 0) -> Tensor:
    """Return sizes whose logarithms are a sample's own, of spread one, plus noise of each pass."""
    own = torch.randn(samples, 1, generator=generator(seed), dtype=DOUBLE)
    return (own + noise * torch.randn(samples, passes, generator=generator(seed + 100), dtype=DOUBLE)).exp()


def test_passes_that_agree_need_three_of_them():
    assert stable_passes(noisy_sizes(200, 12, noise=0.0), 0.1, stability=1.0) == 3


def test_passes_that_never_agree_are_all_run():
    nothing_but_noise = torch.rand(200, 12, generator=generator(0))
    assert stable_passes(nothing_but_noise, 0.1, stability=0.8) == 12


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_no_more_passes_are_asked_for_than_there_are(passes):
    for noise in (0.0, 9.0):
        assert stable_passes(noisy_sizes(50, passes, noise), 0.2, stability=0.5) == passes


def test_a_higher_stability_takes_no_fewer_passes():
    for noise in (0.3, 1.0, 2.0):
        sizes = noisy_sizes(300, 25, noise)
        found = [stable_passes(sizes, 0.1, stability) for stability in np.linspace(0.1, 1, 10)]
        assert found == sorted(found)
        assert all(3 <= passes <= 25 for passes in found)
        assert len(set(found)) > 2


def test_more_noise_takes_more_passes():
    found = [stable_passes(noisy_sizes(500, 40, noise), 0.2, stability=0.75) for noise in (0.1, 0.6, 1.0, 5.0)]
    assert found[0] == 3
    assert found[-1] == 40
    assert 3 < found[1] < found[2] < 40


@pytest.mark.parametrize("stability", [0.45, 0.55, 0.65, 0.75])
def test_the_halves_agree_after_that_many_passes_and_not_before(stability):
    sizes, share = noisy_sizes(1000, 60, noise=1.0), 0.1
    found = stable_passes(sizes, share, stability)
    assert 3 < found < 60
    # a few splits in halves estimate what all of them would give
    assert mean_overlap(sizes.numpy(), found, 100) == pytest.approx(stability, abs=0.06)
    assert mean_overlap(sizes.numpy(), found + 8, 100) > stability
    if found > 8:
        assert mean_overlap(sizes.numpy(), found - 4, 100) < stability


def mean_overlap(sizes: np.ndarray, passes: int, budget: int, splits: int = 60) -> float:
    """Split the first passes at random into halves, pick by the mean of each, and average the overlap of the picks."""
    draw, overlaps = np.random.default_rng(0), []
    for _ in range(splits):
        order = draw.permutation(passes)
        halves = order[: (passes + 1) // 2], order[(passes + 1) // 2 :]
        one, other = (set(np.argsort(-sizes[:, half].mean(1))[:budget]) for half in halves)
        overlaps.append(len(one & other) / budget)
    return float(np.mean(overlaps))


def test_the_splits_are_the_same_every_time_and_touch_no_global_random_numbers():
    sizes, before = noisy_sizes(100, 20, noise=1.0), torch.get_rng_state()
    assert len({stable_passes(sizes, 0.2, 0.7) for _ in range(3)}) == 1
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- plan_race


def foretold(samples: int, passes: int, clean: float, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return outlooks that miss the log score by a standard error, and sizes that scatter about the score."""
    logs = -6 + 3 * torch.randn(samples, generator=generator(seed), dtype=DOUBLE)
    outlooks = logs + clean * torch.randn(samples, generator=generator(seed + 1), dtype=DOUBLE)
    scatter = noise * torch.randn(samples, passes, generator=generator(seed + 2), dtype=DOUBLE)
    return outlooks.unsqueeze(1), (logs.unsqueeze(1) + scatter).exp()


def regress(features: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Return what kernel ridge regression gives at its own samples, and its leave-one-out error, by plain solves."""
    points = (features - features.mean(0)) / features.std(0, ddof=1)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    pairs = np.sort(distances[np.triu_indices(len(points), 1)])
    kernel = np.exp(-((distances / pairs[(len(pairs) - 1) // 2]) ** 2) / 2)
    mean, best = np.average(targets, weights=weights), (np.array([]), math.inf)
    for ridge in RIDGES:
        inverse = np.linalg.inv(kernel + np.diag(ridge / weights))
        coefficients = inverse @ (targets - mean)
        error = math.sqrt(np.average((coefficients / np.diag(inverse)) ** 2, weights=weights))
        if error < best[1]:
            best = mean + kernel @ coefficients, error
    return best


def naive_cut(outlooks: Tensor, sizes: Tensor, share: float, passes: int) -> tuple[float, np.ndarray]:
    """Return the threshold of a cut and its forecasts."""
    size, logs = len(sizes), np.log(sizes.numpy().mean(1))
    # the border between picked and not, moved by three standard errors towards keeping more
    rank = math.ceil(share * size + 3 * math.sqrt(size * share * (1 - share)))
    border = np.sort(logs)[::-1][min(rank, size) - 1]
    columns = [outlooks.numpy()]
    if passes:
        columns.append(np.log(sizes.numpy()[:, :passes].mean(1, keepdims=True)))
    forecasts, error = regress(np.concatenate(columns, 1), logs, np.exp(-np.abs(logs - border) / 2))
    return border - 4 * error, forecasts


def cost(staying: dict[int, np.ndarray], samples: int, passes: int, clean: int = 1) -> int:
    """Count the forward passes of a race, sample by sample: a look, and a clean pass before each leg."""
    if not staying:
        return samples * (passes + 1)
    total = 0
    for sample in range(samples):
        total, done = total + 1, 0
        for stop in [*sorted(staying), passes]:
            if stop > done:
                total, done = total + clean + stop - done, stop
            if stop in staying and not staying[stop][sample]:
                break
    return total


def stay(cuts: list[Cut], outlooks: Tensor, sizes: Tensor) -> dict[int, np.ndarray]:
    return {cut.passes: (cut.foretell(outlooks, sizes) >= cut.threshold).numpy() for cut in cuts}


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_cuts_are_weighted_regressions_of_the_log_score_with_four_errors_of_margin(share):
    outlooks, sizes = foretold(256, 20, clean=0.3, noise=0.3)
    cuts = plan_race(outlooks, sizes, share)
    assert cuts
    for cut in cuts:
        threshold, forecasts = naive_cut(outlooks, sizes, share, cut.passes)
        assert cut.threshold == pytest.approx(threshold, rel=1e-7)
        np.testing.assert_allclose(cut.foretell(outlooks, sizes).numpy(), forecasts, rtol=1e-6)


def test_who_knows_more_takes_less_margin():
    outlooks, sizes = foretold(256, 40, clean=1.5, noise=0.5)
    cuts = plan_race(outlooks, sizes, 0.05)
    assert [cut.passes for cut in cuts] == [0, 2, 5]
    assert cuts[0].threshold < cuts[1].threshold < cuts[2].threshold
    assert cuts[0].forecast.error > cuts[1].forecast.error > cuts[2].forecast.error


@pytest.mark.parametrize("looks_in_full", [False, True])
@pytest.mark.parametrize("passes", [1, 2, 3, 6, 20])
def test_of_all_possible_cuts_those_are_made_that_cost_the_fewest_passes(passes, looks_in_full):
    chosen = set()
    for seed, (clean, noise, share) in enumerate(
        [(0.1, 0.3, 0.1), (1.0, 0.3, 0.1), (9.0, 0.3, 0.05), (9.0, 5.0, 0.1), (0.3, 0.5, 0.4), (1.5, 0.5, 0.02)]
    ):
        outlooks, sizes = foretold(128, passes, clean, noise, seed=10 * seed)
        staying = {}
        for before in (0, 2, 5):
            if before < passes:
                threshold, forecasts = naive_cut(outlooks, sizes, share, before)
                staying[before] = forecasts >= threshold
        subsets = [subset for size in range(len(staying) + 1) for subset in combinations(staying, size)]
        costs = {
            subset: cost({before: staying[before] for before in subset}, 128, passes, int(not looks_in_full))
            for subset in subsets
        }
        cuts = plan_race(outlooks, sizes, share, looks_in_full)
        found = tuple(cut.passes for cut in cuts)
        assert costs[found] == min(costs.values())
        assert all(len(found) <= len(subset) for subset in subsets if costs[subset] == costs[found])
        assert {before: keep.tolist() for before, keep in stay(cuts, outlooks, sizes).items()} == {
            before: staying[before].tolist() for before in found
        }
        chosen.add(found)
    assert len(chosen) >= {1: 1, 2: 2, 3: 2, 6: 3, 20: 3}[passes]


def test_a_perfect_forecast_keeps_hardly_more_than_the_picks():
    outlooks, sizes = foretold(512, 10, clean=0.0, noise=0.0)
    (cut,) = plan_race(outlooks, sizes, share=0.1)
    assert cut.passes == 0
    assert cut.forecast.error < 0.02
    kept = int(stay([cut], outlooks, sizes)[0].sum())
    wanted = math.ceil(51.2 + 3 * math.sqrt(512 * 0.1 * 0.9))
    assert wanted <= kept < 1.1 * wanted


@pytest.mark.parametrize(
    ("passes", "clean", "noise", "share", "expected"),
    [
        (10, 0.1, 0.3, 0.1, {(0,), (0, 2)}),
        (10, 9.0, 0.3, 0.1, {(2,), (2, 5)}),  # the clean outputs say nothing
        (10, 9.0, 9.0, 0.1, {()}),  # nor do the first passes
        (10, 0.0, 0.0, 0.1, {(0,)}),  # nothing is left to be learned from passes
        (10, 0.2, 0.3, 0.97, {()}),  # nearly all are picked
        (2, 0.2, 0.3, 0.1, {(0,)}),  # no pass comes after the second
        (1, 0.2, 0.3, 0.4, {()}),  # a look costs as much as the pass
    ],
)
def test_cuts_are_made_only_where_they_pay(passes, clean, noise, share, expected):
    cuts = plan_race(*foretold(256, passes, clean, noise), share)
    assert tuple(cut.passes for cut in cuts) in expected


@pytest.mark.parametrize("share", [0.03, 0.2, 0.6])
@pytest.mark.parametrize("passes", [2, 4, 10])
def test_a_plan_saves_passes_and_loses_none_of_the_picks_of_the_pilot(passes, share):
    planned = []
    for seed, clean in enumerate((0.01, 0.1, 0.3, 0.5, 0.8, 1.5)):
        outlooks, sizes = foretold(256, passes, clean, noise=0.4, seed=10 * seed)
        cuts = plan_race(outlooks, sizes, share)
        if not cuts:
            continue
        planned.append(clean)
        staying = stay(cuts, outlooks, sizes)
        assert cost(staying, 256, passes) < 256 * (passes + 1)
        best = sizes.mean(1).argsort(descending=True)[: round(256 * share)]
        assert all(keep[best].all() for keep in staying.values())
    assert planned or (passes, share) == (2, 0.6)


def test_a_plan_loses_hardly_one_of_the_picks_that_it_never_saw():
    lost, picked, spent = 0, 0, 0
    for seed in range(8):
        outlooks, sizes = foretold(2256, 10, clean=0.5, noise=0.4, seed=100 * seed)
        cuts = plan_race(outlooks[:256], sizes[:256], share=0.1)
        staying = stay(cuts, outlooks[256:], sizes[256:])
        best = sizes[256:].mean(1).argsort(descending=True)[:200]
        lost += int((~np.all([keep[best] for keep in staying.values()], 0)).sum())
        picked += 200
        spent += cost(staying, 2000, 10)
    assert lost < 0.005 * picked
    assert spent < 0.6 * 8 * 2000 * 11


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_a_pilot_of_a_few_samples_is_nothing_to_learn_from(samples):
    assert plan_race(*foretold(samples, 6, clean=0.2, noise=0.3), share=0.3) == []


@pytest.mark.parametrize("samples", [8, 9, 12, 20])
def test_a_small_pilot_gives_a_plan_that_keeps_its_best(samples):
    planned = 0
    for seed in range(10):
        outlooks, sizes = foretold(samples, 6, clean=0.2, noise=0.3, seed=10 * seed)
        best = int(sizes.mean(1).argmax())
        cuts = plan_race(outlooks, sizes, share=0.05)
        planned += bool(cuts)
        assert all(keep[best] for keep in stay(cuts, outlooks, sizes).values())
    assert planned


def test_outlooks_that_say_nothing_at_all_are_no_obstacle():
    _, sizes = foretold(256, 10, clean=0.2, noise=0.3)
    plans = []
    for constant in (0.0, 1.0, -87.5):
        outlooks = torch.full((256, 2), constant, dtype=DOUBLE)
        plans.append(plan_race(outlooks, sizes, 0.1))
        assert all(cut.foretell(outlooks, sizes).isfinite().all() for cut in plans[-1])
    assert plans[0][0].passes == 2
    thresholds = [[(cut.passes, cut.threshold) for cut in cuts] for cuts in plans]
    assert thresholds[0] == thresholds[1] == thresholds[2]


def test_scores_of_zero_are_no_obstacle():
    outlooks, sizes = foretold(256, 10, clean=0.2, noise=0.3)
    sure = torch.arange(256) % 4 == 0
    outlooks[sure], sizes[sure] = float(np.log(np.finfo(np.float32).tiny)), 0.0
    cuts = plan_race(outlooks, sizes, 0.1)
    assert cuts
    best = sizes.mean(1).argsort(descending=True)[:25]
    for keep in stay(cuts, outlooks, sizes).values():
        assert keep[best].all()
    assert not np.all([keep[sure] for keep in stay(cuts, outlooks, sizes).values()], 0).any()


# ---------------------------------------------------------------- draw_up


def test_a_plan_without_racing_or_stability_runs_all_passes_of_all():
    outlooks, sizes = foretold(100, 7, clean=0.2, noise=0.3)
    plan, rows = draw_up(torch.cat([sizes, outlooks], 1), 7, 0.1, racing=False, stability=None)
    assert plan == Plan(7, ())
    assert torch.equal(rows, ranking_rows(sizes))


@pytest.mark.parametrize("looks_in_full", [False, True])
@pytest.mark.parametrize("racing", [False, True])
@pytest.mark.parametrize("stability", [None, 0.6, 0.75, 1.0])
def test_a_plan_cuts_within_the_passes_that_it_runs(racing, stability, looks_in_full):
    outlooks, sizes = foretold(256, 20, clean=0.3, noise=1.0)
    outlooks = torch.cat([outlooks, outlooks.exp()], 1)
    plan, rows = draw_up(torch.cat([sizes, outlooks], 1), 20, 0.1, racing, stability, looks_in_full)
    passes = 20 if stability is None else stable_passes(sizes, 0.1, stability)
    assert plan.passes == passes
    assert torch.equal(rows, ranking_rows(sizes[:, :passes]))  # the pilot competes by the same passes as the others
    expected = plan_race(outlooks, sizes[:, :passes], 0.1, looks_in_full) if racing else []
    assert [(cut.passes, cut.threshold) for cut in plan.cuts] == [(cut.passes, cut.threshold) for cut in expected]
    assert bool(plan.cuts) is racing


@pytest.mark.parametrize("output", ["softmax", "sigmoid", "identity"])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_a_plan_from_a_pilot_keeps_the_picks_of_a_real_classifier(share, output):
    model, images, ran = trained_net(), digits().tensors[0][100:], Counter[str]()

    def forward(x: Tensor) -> Tensor:
        ran["samples"] += len(x)
        return Predictor(model).output(x, output)

    seeds, budget, same, spent = range(3), round(share * len(images)), 0.0, 0.0
    for seed in seeds:
        backend = FiniteDifferences(forward, list(model.parameters()), Noise())
        steps = [(seed, step) for step in range(10)]
        order = torch.randperm(len(images), generator=generator(seed))
        pilot, others = images[order].tensor_split([pilot_size(len(images), share, automatic=False)])
        ran.clear()
        rows = pilot_rows(backend, [pilot], steps, "squared", output)
        plan, first = draw_up(rows, 10, share, racing=True, stability=None, looks_in_full=backend.looks_in_full)
        raced = torch.cat([first, race(backend, list(others.split(300)), steps, plan, "squared", output)])
        spent += ran["samples"] / (len(images) * 11)  # the pilot included
        assert plan.cuts
        assert 0 < raced[:, FINISHED].mean() < 1
        same += overlap(raced[:, SCORE], deviation_sizes(backend, [pilot, others], steps).mean(1), budget)
    assert same / len(seeds) >= 0.99
    assert spent / len(seeds) < {"softmax": 0.65, "sigmoid": 0.9, "identity": 0.85}[output]
