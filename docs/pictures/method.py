"""The picture of the method page: what noise stability measures, on two moons.

python docs/pictures/method.py
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import make_moons
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_al.functional import noise_stability

MAGNITUDE = 0.15  # of what the eye sees on the left; scores are taken at the default of 1e-3


def main() -> None:
    """Train a small network, shake it, and draw."""
    torch.manual_seed(0)
    points, classes = make_moons(60, noise=0.15, random_state=0)
    inputs, targets = torch.tensor(points, dtype=torch.float32), torch.tensor(classes)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), targets).backward()
        optimizer.step()
    across, up = np.meshgrid(np.linspace(-2.2, 3.2, 200), np.linspace(-1.8, 2.3, 160))
    grid = torch.tensor(np.stack([across.ravel(), up.ravel()], 1), dtype=torch.float32)
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    with torch.no_grad():
        clean = [parameter.clone() for parameter in net.parameters()]
        norm = torch.cat([parameter.flatten() for parameter in clean]).norm()
        for _ in range(12):
            noise = [torch.randn_like(parameter) for parameter in clean]
            length = torch.cat([step.flatten() for step in noise]).norm()
            for parameter, value, step in zip(net.parameters(), clean, noise, strict=True):
                parameter.copy_(value + MAGNITUDE * norm / length * step)
            shaken = net(grid).softmax(1)[:, 1].reshape(across.shape)
            left.contour(across, up, shaken, [0.5], colors="#e4572e", linewidths=0.8, alpha=0.6)
        for parameter, value in zip(net.parameters(), clean, strict=True):
            parameter.copy_(value)
        probs = net(grid).softmax(1)[:, 1].reshape(across.shape)
    left.contour(across, up, probs, [0.5], colors="black", linewidths=1.8)
    left.set_title("the decision boundary (black), and under 12 draws of noise", fontsize=10)
    scores = noise_stability(net, [grid], passes=50).reshape(across.shape)
    drawn = right.pcolormesh(across, up, scores.sqrt().numpy(), cmap="magma", rasterized=True)
    right.contour(across, up, probs, [0.5], colors="white", linewidths=1.2)
    right.set_title("how far the prediction moves: the score's square root", fontsize=10)
    figure.colorbar(drawn, ax=right, format="%.0e")
    for axes in (left, right):
        axes.scatter(*points.T, c=np.where(classes, "#4c78a8", "#f2b134"), s=16, edgecolors="black", linewidths=0.4)
        axes.set(xticks=[], yticks=[])
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
