"""DRN-D-22, the dilated residual network that the paper segments Cityscapes with."""

from torch import Tensor, nn


class DRN22(nn.Module):
    """A residual network whose last stages dilate their convolutions instead of reducing the size further.

    Yu, Koltun and Funkhouser, Dilated Residual Networks (2017), variant D with 22 layers: convolutions of 7 x 7 and
    3 x 3, four stages of two residual blocks, and two plain convolutions of falling dilation without residuals, which
    remove gridding. The output is an eighth of the input's size, and is interpolated to it. As a classifier with 1,000
    classes it has the 16.4 million parameters that are published.

    Args:
        num_classes: Number of classes.
        dropout: Share of the channels that are dropped before the classes, for MC-Dropout.

    """

    def __init__(self, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _convolution(3, 16, kernel=7),
            _convolution(16, 16),
            _convolution(16, 32, stride=2),
            _stage(32, 64, stride=2),
            _stage(64, 128, stride=2),
            _stage(128, 256, dilation=2),
            _stage(256, 512, dilation=4),
            _convolution(512, 512, dilation=2),
            _convolution(512, 512),
        )
        self.classes = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(512, num_classes, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits of shape (B, C, H, W) for pictures of shape (B, 3, H, W)."""
        logits = self.classes(self.features(pictures))
        return nn.functional.interpolate(logits, pictures.shape[-2:], mode="bilinear", align_corners=False)


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.first = _convolution(inputs, outputs, stride=stride, dilation=dilation)
        self.second = _convolution(outputs, outputs, dilation=dilation)[:-1]  # the sum is rectified instead
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = (
            nn.Identity() if same else _convolution(inputs, outputs, kernel=1, stride=stride)[:-1]
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.relu(self.second(self.first(inputs)) + self.shortcut(inputs))


def _stage(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(_Block(inputs, outputs, stride, dilation), _Block(outputs, outputs, 1, dilation))


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )
