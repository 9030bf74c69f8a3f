"""Dropout at prediction time, for the dropout modules only, with masks that are the same for every sample."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_al.data.batch import take_rows
from lightning_al.model.output import Output
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.seeding import derive_seed

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
# Draws that must all agree before a model counts as one without dropout: a rare mask drops nothing in most draws.
TRIES = 50


@contextmanager
def dropout(module: nn.Module, *entropy: int) -> Iterator[None]:
    """Switch dropout modules to training mode, and leave all others (batch normalization) in eval mode.

    A mask belongs to a draw of the network, not to a sample: every sample gets the same one, in any batch. So
    predictions of one draw for two samples can be compared, as BatchBALD must, scores do not depend on how the pool is
    distributed over processes, and rankings are less noisy.

    Args:
        module: A network in eval mode; dropout that it calls as a function stays off.
        *entropy: Integers that fix all masks of this draw, such as `(RandomStream.DROPOUT, seed, cycle, pass)`.

    References:
        Kirsch, van Amersfoort and Gal, BatchBALD (2019), section 4 on consistent masks.

    """
    calls = 0

    def drop(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1  # a module may be called several times in one forward
        slope, offset = _mask(layer, inputs[0], derive_seed(*entropy, calls))
        dropped: Tensor = inputs[0] * slope + offset
        return dropped

    handles = [layer.register_forward_hook(drop) for layer in module.modules() if isinstance(layer, DROPOUT)]
    devices = {parameter.device for parameter in module.parameters() if parameter.is_cuda}
    try:
        with unfused_transformers(), torch.random.fork_rng(devices=list(devices)):
            # dropout functions that are on in eval mode draw the same numbers in every batch
            _seed(derive_seed(*entropy, 0), on_cpu=all(p.device.type == "cpu" for p in module.parameters()))
            yield
    finally:
        for hook in handles:
            hook.remove()


@contextmanager
def unfused_transformers() -> Iterator[None]:
    """Disable the fused path of torch's transformers in eval mode, which calls no modules and packs padded batches."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _mask(layer: nn.Module, inputs: Tensor, seed: int) -> tuple[Tensor, Tensor | int]:
    """Return the slope and the offset, of shape (1, ...), that a dropout module applies to any sample."""
    ones = torch.ones_like(inputs[:1])
    before, layer.training = layer.training, True
    try:
        _seed(seed, on_cpu=inputs.device.type == "cpu")
        slope: Tensor = layer.forward(ones)
        if not isinstance(layer, (nn.AlphaDropout, nn.FeatureAlphaDropout)):  # the others drop to zero
            return slope, 0
        _seed(seed, on_cpu=inputs.device.type == "cpu")
        offset: Tensor = layer.forward(torch.zeros_like(ones))
        return slope - offset, offset
    finally:
        layer.training = before


def _seed(seed: int, on_cpu: bool) -> None:
    if on_cpu:  # `torch.manual_seed` would also record a traceback for a GPU that is not in use, which is slow
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def dropout_passes(
    predictor: Predictor, batch: Any, draws: Sequence[tuple[int, ...]], output: Output = "softmax"
) -> Iterator[Tensor]:
    """Predict a batch under several draws of dropout.

    Args:
        predictor: The model as a function from a batch to outputs, in eval mode.
        batch: On the model's device.
        draws: Integers that fix the masks, for each draw.
        output: Probabilities or raw outputs, as for `Predictor.output`.

    Yields:
        (B, C, *positions), once per draw.

    Cost: one forward pass per draw.

    """
    predictor.inspect(batch)  # without dropout
    for step, entropy in enumerate(draws, start=1):
        with dropout(predictor.module, *entropy):
            outputs = predictor.output(batch, output)
        predictor.report_pass(step, len(draws), len(outputs))
        yield outputs


def check_passes(name: str, passes: int) -> None:
    """Raise if the number of draws is below 2, since one draw cannot disagree."""
    if passes < 2:
        raise ValueError(
            f"`{name}(passes={passes})`: expected at least 2 draws of dropout, which one alone could not differ from."
        )


def check_dropout(name: str, predictor: Predictor, batch: Any, consistent: bool = False) -> None:
    """Raise if a model's predictions do not depend on dropout.

    Args:
        name: The strategy, for the message.
        predictor: The model.
        batch: A batch to predict.
        consistent: Whether a draw must be the same network for every sample, in any row.

    Raises:
        ValueError: If dropout changes nothing, or masks differ between samples; the message states the remedy.

    """
    tries = dropout_passes(predictor, batch, [(draw,) for draw in range(TRIES)], "identity")
    first = next(tries)
    model = type(predictor.module).__name__
    if all(torch.equal(first, outputs) for outputs in tries):
        has_dropout = any(isinstance(layer, DROPOUT) and layer.p > 0 for layer in predictor.module.modules())
        reason = "has dropout modules that its output does not depend on" if has_dropout else "has no module that drops"
        raise ValueError(
            f"`{name}` compares predictions under dropout, but those of {model} do not change: it {reason}. Dropout "
            "called as a function (`F.dropout(x, training=self.training)`) is off, since batch normalization must "
            "stay in eval mode: make it an `nn.Dropout`. A model without dropout is scored by noise stability, which "
            "needs none: `NoiseStabilityAcquisition`."
        )
    if not consistent:
        return
    size = len(first)
    (reversed_outputs,) = dropout_passes(
        predictor, take_rows(batch, torch.arange(size - 1, -1, -1), size), [(0,)], "identity"
    )
    if not torch.allclose(reversed_outputs.flip(0), first, rtol=1e-3, atol=1e-4 * float(first.abs().max())):
        raise ValueError(
            f"`{name}` needs one mask per draw for all samples, but {model} predicts another row of a batch under "
            "another mask: dropout called as a function draws anew for each, and a module whose first dimension is not "
            "the batch masks by row. Make it an `nn.Dropout` over batches, or use `BALDAcquisition`."
        )
