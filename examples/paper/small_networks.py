"""Networks for pictures of 28 and 32 pixels: that of MNIST, and ResNet-18 and MobileNet-v2 with fitting stems."""

from torch import Tensor, nn
from torchvision.models import MobileNetV2, ResNet
from torchvision.models.resnet import BasicBlock


class MNISTNetwork(nn.Module):
    """Two 5 x 5 convolutions and two linear layers, for appendix A.3.

    The paper states no widths and no dropout; these are those of Kirsch et al., BatchBALD (2019), whose experiment on
    MNIST the paper repeats.

    Args:
        width: Channels of the first convolution.
        dropout: Share of channels and of hidden units that are dropped in training.
        num_classes: Number of classes.

    """

    def __init__(self, width: int = 32, dropout: float = 0.5, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 5),
            nn.Dropout2d(dropout),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 5),
            nn.Dropout2d(dropout),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * width, 128),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.fc = nn.Linear(128, num_classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits of shape (B, C) for pictures of shape (B, 1, 28, 28)."""
        logits: Tensor = self.fc(self.features(pictures))
        return logits


class ResNet18(ResNet):
    """ResNet-18; for pictures of 32 x 32 pixels a 3 x 3 convolution that keeps the size is its stem.

    He et al., Deep Residual Learning for Image Recognition (2016). The stem is that of the implementation which
    the paper refers to, github.com/kuangliu/pytorch-cifar: 11,173,962 parameters for 10 classes.

    Args:
        num_classes: Number of classes.
        small: Take the stem for small pictures.
        dropout: Share of the features that are dropped in training, for MC-Dropout.

    """

    def __init__(self, num_classes: int, small: bool = True, dropout: float = 0.0) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
        if small:
            self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.maxpool = nn.Identity()
        self.fc = nn.Sequential(nn.Dropout(dropout), self.fc)


class SmallMobileNetV2(MobileNetV2):
    """MobileNet-v2 for pictures of 32 x 32 pixels: the stem and the first reduction keep the size.

    Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks (2018); the strides are those of
    github.com/kuangliu/pytorch-cifar, since the paper says that it keeps all settings of ResNet-18.

    Args:
        num_classes: Number of classes.
        dropout: Share of the features that are dropped in training, for MC-Dropout.

    """

    def __init__(self, num_classes: int, dropout: float = 0.0) -> None:
        # expansion, channels, blocks and stride of each stage; the second one has stride 2 in the original
        stages = [
            [1, 16, 1, 1],
            [6, 24, 2, 1],
            [6, 32, 3, 2],
            [6, 64, 4, 2],
            [6, 96, 3, 1],
            [6, 160, 3, 2],
            [6, 320, 1, 1],
        ]
        super().__init__(num_classes, inverted_residual_setting=stages, dropout=dropout)
        self.features[0][0].stride = (1, 1)
