"""Whether a module returns logits, or ends in a softmax or sigmoid already; decided once, on one batch."""

from typing import Literal, NamedTuple

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

# Operations of autograd that reorder, cut or copy values and change none.
VIEWS = (
    *("View", "UnsafeView", "ReshapeAlias", "Alias", "AsStrided", "Expand", "Squeeze", "Unsqueeze", "Clone", "ToCopy"),
    *("Transpose", "T", "MT", "Permute", "Select", "Slice", "Split", "Unbind", "Index"),
)
Declaration = Literal["logits", "probabilities"]
# How far the sum of probabilities may be from 1.
TOLERANCE = 1e-3


class Evidence(NamedTuple):
    """What one batch shows about the last operation of a module.

    Attributes:
        operation: The last operation as autograd names it, such as `"Softmax"`; None where no gradient was recorded.
        samples: The number of samples.
        sum_to_one: Whether the outputs are non-negative and sum to 1 over the classes.
        in_unit_interval: Whether they all lie between 0 and 1.
        targets_match: Whether a target of the batch has the outputs' shape, as for several labels at once.

    """

    operation: str | None
    samples: int
    sum_to_one: bool
    in_unit_interval: bool
    targets_match: bool


def last_operation(outputs: Tensor) -> str | None:
    """Return the last operation of a graph that is no view, or None without a graph."""
    node = outputs.grad_fn
    while node is not None:
        name = node.name().partition("Backward")[0]
        if name not in VIEWS or not node.next_functions:
            return name
        node = node.next_functions[0][0]
    return None


def observe(outputs: Tensor, operation: str | None, targets: list[Tensor]) -> Evidence:
    """Return what outputs (B, C, *positions) of a batch with these targets show."""
    non_negative = bool((outputs >= 0).all())
    return Evidence(
        operation,
        len(outputs),
        non_negative and bool(((outputs.sum(1) - 1).abs() < TOLERANCE).all()),
        non_negative and bool((outputs <= 1).all()),
        outputs.shape[1] > 1 and any(target.shape == outputs.shape for target in targets),
    )


def are_probabilities(module: nn.Module, evidence: Evidence, output: str) -> bool:
    """Return whether the outputs of a module are probabilities already.

    Args:
        module: It may declare them: `acquisition_outputs = "logits"` or `"probabilities"`.
        evidence: What one batch shows.
        output: `"softmax"` for one of several classes, `"sigmoid"` for labels that are each present or absent.

    Raises:
        ValueError: If the module ends in the other of the two, or the batch does not show what it returns.

    """
    name = type(module).__name__
    declared: Declaration | None = getattr(module, "acquisition_outputs", None)
    if declared not in (None, "logits", "probabilities"):
        raise ValueError(f'`{name}.acquisition_outputs = {declared!r}`: expected "logits" or "probabilities".')
    if declared is not None:
        return declared == "probabilities"
    _check_not_the_other(name, evidence, output)
    made_by = {"softmax": "Softmax", "sigmoid": "Sigmoid"}[output]
    fits = evidence.sum_to_one if output == "softmax" else evidence.in_unit_interval
    if evidence.operation == made_by and fits:
        return True
    if evidence.operation is None and evidence.in_unit_interval and not (output == "softmax" and fits):
        raise ValueError(_ask(name, "lie between 0 and 1, as those of a sigmoid do"))
    if output == "sigmoid":
        return False
    if evidence.operation == made_by:
        raise ValueError(_ask(name, "end in a softmax, but do not sum to 1 over the classes"))
    if fits and evidence.samples < 2:
        raise ValueError(_ask(name, "of one sample sum to 1, which may be a coincidence"))
    if fits:
        rank_zero_warn(
            f"{name} returns probabilities (non-negative, summing to one), which are used as they are. Define "
            '`acquisition_step` to return logits, or set `acquisition_outputs = "logits"`, if that is a coincidence.'
        )
    elif evidence.targets_match:
        rank_zero_warn(
            f"{name} is scored as a choice of one class, but the batch has a target for each output: if several labels "
            'may hold at once, pass `output="sigmoid"`.'
        )
    return fits


def _check_not_the_other(name: str, evidence: Evidence, output: str) -> None:
    """Raise if a module ends in a softmax where labels are scored, or in a sigmoid where classes are."""
    others = {"softmax": ("Sigmoid",), "sigmoid": ("Softmax", "LogSoftmax")}
    if evidence.operation in others[output]:
        other = "sigmoid" if output == "softmax" else "softmax"
        raise ValueError(
            f"{name} ends in a {other}, whose values `output={output!r}` would distort: pass `output={other!r}`, or "
            "return raw outputs."
        )


def _ask(name: str, reason: str) -> str:
    return (
        f"Cannot tell whether {name} returns logits or probabilities: its outputs {reason}. Set "
        '`acquisition_outputs = "logits"` or `acquisition_outputs = "probabilities"` in the module.'
    )
