"""Check that measurements can be ranked."""

from collections.abc import Sequence

from torch import Tensor

from lightning_al.formulas.checks import NonFiniteError

RETRAIN = "continue with `run_cycles(retrain=True)` (`--retrain`), which keeps labels and finished cycles"
DIVERGED = f"Lower the learning rate or clip gradients (`Trainer(gradient_clip_val=...)`), and {RETRAIN}."
NON_FINITE = f"Look at their inputs. If these are sound, the training diverged. {DIVERGED}"


def check_rows(name: str, expected: Sequence[int], indices: Sequence[int], rows: Tensor, ranked: bool = True) -> None:
    """Raise if measurements cannot be ranked.

    Args:
        name: The strategy, for messages.
        expected: The dataset indices to be measured, ascending.
        indices: Those that were measured.
        rows: (N, ...) measurements.
        ranked: Whether equal rows are an error.

    Raises:
        RuntimeError: If a sample is missing or was measured twice.
        NonFiniteError: If a value is NaN or infinite.
        ValueError: If all rows are equal.

    """
    if list(expected) != list(indices):
        mismatched = sorted(set(expected).symmetric_difference(indices)) or sorted(indices)
        raise RuntimeError(
            f"`{name}`: expected one measurement of each of {len(expected)} samples, got {len(indices)} "
            f"(see indices {mismatched[:5]}). Does the dataset change its length or order between reads?"
        )
    flat = _flat(rows)
    non_finite = (~flat.isfinite().all(1)).nonzero().flatten().tolist()
    if non_finite:
        raise NonFiniteError(
            f"`{name}`: {len(non_finite)} of {len(rows)} samples have NaN or infinite measurements, first "
            f"{[indices[row] for row in non_finite[:5]]} (dataset indices). {NON_FINITE}",
            non_finite,
        )
    if ranked and len(flat) > 1 and flat.shape[1] and bool((flat == flat[0]).all()):
        raise ValueError(
            f"`{name}`: all {len(rows)} samples have the same measurement, so none comes first (dataset indices "
            f"{list(indices[:5])}, ...). Do the outputs depend on the inputs, and on what the strategy varies? If the "
            f"training collapsed, change its settings and {RETRAIN}."
        )


def _flat(rows: Tensor) -> Tensor:
    """Return (n, D) rows; a reshape could not infer D from an empty tensor."""
    return rows.flatten(1) if rows.ndim > 1 else rows.unsqueeze(1)
