"""The models that the benchmarks score, one of each class, trained for a moment on Fashion-MNIST."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from examples.fashion_mnist import read_fashion_mnist


@dataclass(frozen=True)
class Case:
    """A model and what it sees.

    Attributes:
        net: Makes the untrained network, from inputs to raw outputs.
        inputs: Makes float inputs of (N, 1, 28, 28) uint8 pictures.
        output: What the distance is measured on.
        modules: Where the noise goes; None for everywhere.
        epochs: Of training.
        batch_size: Samples per batch of scoring.
        dense: Whether outputs have positions, so that there is no closed form.

    """

    net: Callable[[], nn.Module]
    inputs: Callable[[Tensor], Tensor]
    output: str = "softmax"
    modules: list[str] | None = None
    epochs: int = 2
    batch_size: int = 64
    dense: bool = False


def grey(pictures: Tensor) -> Tensor:
    """Return (N, 1, 28, 28) in [0, 1]."""
    return pictures.float() / 255


def padded(pictures: Tensor) -> Tensor:
    """Return (N, 3, 32, 32) in [0, 1], the shape of CIFAR."""
    return functional.pad(grey(pictures), (2, 2, 2, 2)).expand(-1, 3, -1, -1).contiguous()


def enlarged(pictures: Tensor) -> Tensor:
    """Return (N, 3, 64, 64) in [0, 1]."""
    return functional.interpolate(padded(pictures), scale_factor=2)


def clips(pictures: Tensor) -> Tensor:
    """Return (N, 3, 4, 32, 32): the picture moving to the right."""
    frames = padded(pictures)
    return torch.stack([frames.roll(2 * shift, 3) for shift in range(4)], 2)


def resnet18() -> nn.Module:
    """Make a ResNet-18 with the stem for small pictures: 3 x 3, stride 1, no pooling."""
    net = torchvision.models.resnet18(num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return net


def small_cnn() -> nn.Module:
    """Make the paper's network for MNIST: two convolutions of 5 x 5, two linear layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


def mlp() -> nn.Module:
    """Make a regressor of one number."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1)
    )


def vit() -> nn.Module:
    """Make a vision transformer for 32 x 32 pixels."""
    return torchvision.models.VisionTransformer(32, 4, 6, 4, 192, 768, num_classes=10)


class Segmenter(nn.Module):
    """A segmentation network of torchvision, from pictures to logits (N, 2, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        build = torchvision.models.segmentation.lraspp_mobilenet_v3_large
        self.net = build(weights=None, weights_backbone=None, num_classes=2)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits."""
        return self.net(inputs)["out"]


CASES = {
    "resnet18": Case(resnet18, padded, epochs=4),
    "resnet18-layer4": Case(resnet18, padded, epochs=4, modules=["layer4", "fc"]),
    "small_cnn": Case(small_cnn, grey, epochs=8),
    "mlp": Case(mlp, grey, output="identity", epochs=8),
    "mobilenet_v2": Case(lambda: torchvision.models.mobilenet_v2(num_classes=10), enlarged, epochs=6),
    "vit": Case(vit, padded, epochs=4),
    "segmentation": Case(Segmenter, enlarged, batch_size=16, dense=True),
    "r3d_18": Case(lambda: torchvision.models.video.r3d_18(num_classes=10), clips, batch_size=16),
}


class Pictures(Dataset):
    """Fashion-MNIST in memory as uint8, made into a network's inputs one by one, as transforms do.

    Args:
        pictures: (N, 1, 28, 28) uint8.
        labels: (N,).
        inputs: From pictures to inputs.

    """

    def __init__(self, pictures: Tensor, labels: Tensor, inputs: Callable[[Tensor], Tensor]) -> None:
        self.pictures, self.labels, self.inputs = pictures, labels, inputs

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.inputs(self.pictures[index : index + 1])[0], int(self.labels[index])


def trained(case: Case, folder: str, samples: int) -> nn.Module:
    """Train a case's network for a moment, so that its scores differ as those of a real one do.

    Args:
        case: The case.
        folder: Where Fashion-MNIST lies.
        samples: Pictures to train on.

    Returns:
        The network in eval mode.

    """
    pictures, labels = read_fashion_mnist(folder)
    torch.manual_seed(0)
    net = case.net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(case.epochs):
        for rows in torch.randperm(samples).split(64):
            loss = _loss(net(case.inputs(pictures[rows])), labels[rows].long(), pictures[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def _loss(outputs: Tensor, labels: Tensor, pictures: Tensor) -> Tensor:
    if outputs.ndim == 4:  # foreground and background
        foreground = functional.interpolate(grey(pictures), outputs.shape[2:])[:, 0] > 0.1
        return functional.cross_entropy(outputs, foreground.long())
    if outputs.shape[1] == 1:
        return functional.mse_loss(outputs[:, 0], labels.float())
    return functional.cross_entropy(outputs, labels)
