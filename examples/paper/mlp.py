"""The network of the regression in the paper's appendix A.4.2."""

import itertools

from torch import Tensor, nn


class MLP(nn.Module):
    """Four hidden layers that extract features, and a linear predictor.

    Args:
        inputs: Number of inputs.
        width: Units per hidden layer.
        dropout: Share of the hidden units that are dropped in training; MC-Dropout needs some.
        outputs: Number of outputs.

    """

    def __init__(self, inputs: int, width: int = 128, dropout: float = 0.1, outputs: int = 1) -> None:
        super().__init__()
        widths = [inputs, *[width] * 4]
        layers = [
            layer
            for before, after in itertools.pairwise(widths)
            for layer in (nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout))
        ]
        self.features = nn.Sequential(*layers)
        self.predictor = nn.Linear(width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return predictions of shape (B, outputs)."""
        predictions: Tensor = self.predictor(self.features(inputs))
        return predictions
