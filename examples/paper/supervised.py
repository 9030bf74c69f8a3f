"""One LightningModule for all experiments: network, loss, metric and optimizer come from the configuration."""

from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import Metric


class SupervisedModule(LightningModule):
    """Train a network on pairs of inputs and targets; it contains no active learning.

    Args:
        network: Maps a batch of inputs to outputs: logits of shape (B, C) or (B, C, H, W), or predictions (B, 1).
        loss: Takes outputs and targets, such as `CrossEntropyLoss`.
        metric: Takes outputs and targets, such as `MulticlassAccuracy`; computed over all test samples.
        metric_name: The name under which it is logged, after `test/`.
        optimizer: Makes the optimizer of the parameters.
        lr_scheduler: Makes the schedule of the learning rate, one step per epoch; None keeps the rate.

    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        metric: Metric,
        optimizer: OptimizerCallable,
        metric_name: str = "accuracy",
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.metric = metric
        self.metric_name = metric_name
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs of the network."""
        outputs: Tensor = self.network(inputs)
        return outputs

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        inputs, targets = batch
        loss: Tensor = self.loss(self(inputs), targets)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss on validation data; the paper's configurations skip it (`limit_val_batches: 0`)."""
        inputs, targets = batch
        self.log("val/loss", self.loss(self(inputs), targets))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the metric over all test samples."""
        inputs, targets = batch
        self.metric(self(inputs), targets)
        self.log(f"test/{self.metric_name}", self.metric)

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and the schedule if there is one."""
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.lr_scheduler(optimizer)}
