"""The data, networks and the one LightningModule of the configurations in `configs/paper/`."""
