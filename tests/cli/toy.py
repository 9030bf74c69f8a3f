"""A run of two quick cycles on toy data, as YAML."""

TOY = """\
cycles: 2
data:
  datamodule_or_train_dataset: lightning_al.testing.ToyDataset
  initial_size: 10
  batch_size: 8
  test_dataset:
    class_path: lightning_al.testing.ToyDataset
    init_args: {size: 40, seed: 1}
model: lightning_al.testing.ToyClassifier
acquisition:
  class_path: RandomAcquisition
  init_args: {query_size: 6}
trainer:
  max_epochs: 1
  num_sanity_val_steps: 0
  logger: false
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
"""
