"""Check the weights that score, so that a diverged training is the same error for every strategy."""

from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_al.formulas.checks import NonFiniteError
from lightning_al.model.weight_swap import weights_of
from lightning_al.scoring.row_checks import DIVERGED


def check_weights(name: str, module: LightningModule, cycle: int) -> None:
    """Raise if the training of a cycle left NaN or infinite weights.

    Args:
        name: The strategy, for the message.
        module: The clone that scores.
        cycle: The number of the cycle.

    Raises:
        NonFiniteError: With the first parameter or buffer, and the remedy.

    """
    weights = weights_of(module)
    broken = [key for key, tensor in weights.items() if _is_broken(tensor)]
    if broken:
        raise NonFiniteError(
            f"`{name}`: the training of cycle {cycle} diverged, so nothing is labeled: {len(broken)} of {len(weights)} "
            f"parameters and buffers of {type(module).__name__} hold NaN or infinite values, first {broken[0]!r}. "
            f"{DIVERGED}"
        )


def _is_broken(tensor: Tensor) -> bool:
    # a buffer, such as a mask of attention, may be infinite on purpose
    broken = ~tensor.isfinite() if tensor.requires_grad else tensor.isnan()
    return bool(broken.any())
