"""ResNet-18 with three-dimensional convolutions, for subtomograms."""

import itertools

from torch import Tensor, nn


class ResNet3D18(nn.Module):
    """The stages of ResNet-18, each convolution over three axes.

    He et al., Deep Residual Learning for Image Recognition (2016). The paper says no more than "a customized ResNet-18
    with 3D convolutional layers". Here a volume of 32 x 32 x 32 is halved once by the stem and three times by the
    stages, so that 2 x 2 x 2 positions are averaged.

    Args:
        num_classes: Number of classes.
        width: Channels of the first stage, 64 as in ResNet-18; each further stage has twice as many.
        dropout: Share of the features that are dropped in training, for MC-Dropout.

    """

    def __init__(self, num_classes: int, width: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        stages = [
            nn.Sequential(_Block(before, after, 1 if number == 0 else 2), _Block(after, after, 1))
            for number, (before, after) in enumerate(itertools.pairwise(widths))
        ]
        self.features = nn.Sequential(
            _convolution(1, width, stride=2),
            nn.BatchNorm3d(width),
            nn.ReLU(),
            *stages,
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
        )
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, volumes: Tensor) -> Tensor:
        """Return logits of shape (B, C) for volumes of shape (B, 1, D, H, W)."""
        logits: Tensor = self.fc(self.features(volumes))
        return logits


class _Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _convolution(inputs, outputs, stride),
            nn.BatchNorm3d(outputs),
            nn.ReLU(),
            _convolution(outputs, outputs, 1),
            nn.BatchNorm3d(outputs),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv3d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm3d(outputs))
        )

    def forward(self, volumes: Tensor) -> Tensor:
        return nn.functional.relu(self.residual(volumes) + self.shortcut(volumes))


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 3, stride, padding=1, bias=False)
