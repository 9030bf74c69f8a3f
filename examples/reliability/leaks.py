"""Run many quick cycles, and print how open files, child processes and memory grow.

    python -m examples.reliability.leaks --cycles 60

The status is 1 if files or children grow after the tenth cycle, or the memory by more than 20 MB from there on.
"""

import gc
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from examples.reliability.harness import fresh
from examples.reliability.toy_run import PictureClassifier, Pictures, make_data, make_trainer
from lightning_al import MarginAcquisition, run_cycles

WARM_UP = 10  # cycles, after which caches are filled
MEGABYTES = 20.0


class Usage(Callback):
    """Appends the usage of this process at the beginning of each fit."""

    def __init__(self, rows: list[tuple[int, int, float]]) -> None:
        self.rows = rows

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Append open files, child processes and resident megabytes."""
        gc.collect()
        children = Path("/proc/self/task").glob("*/children")
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
        files = len(list(Path("/proc/self/fd").iterdir()))
        self.rows.append((files, sum(len(path.read_text().split()) for path in children), resident))


def main() -> None:
    """Parse the arguments, run the cycles and print the usage."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=Path("runs/reliability/leaks"))
    arguments = parser.parse_args()
    folder = fresh(arguments.folder)
    rows: list[tuple[int, int, float]] = []
    logger = CSVLogger(folder, name="csv")

    def make(cycle: int) -> tuple[Trainer, LightningModule]:
        trainer = make_trainer(MarginAcquisition(2), logger=logger, max_epochs=1)
        trainer.callbacks.append(Usage(rows))  # type: ignore[attr-defined]
        return trainer, PictureClassifier()

    data = make_data(datamodule_or_train_dataset=Pictures(400), num_workers=1)
    run_cycles(make, data, cycles=arguments.cycles, run_dir=folder / "run")
    for cycle in sorted({*range(0, len(rows), 10), len(rows) - 1}):
        files, children, resident = rows[cycle]
        print(f"cycle {cycle}: {files} files, {children} children, {resident:.0f} MB")
    first, last = rows[min(WARM_UP, len(rows) - 1)], rows[-1]
    sys.exit(last[0] > first[0] or last[1] > first[1] or last[2] > first[2] + MEGABYTES)


if __name__ == "__main__":
    main()
