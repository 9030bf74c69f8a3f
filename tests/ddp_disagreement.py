"""A fit on two processes of which each has a pool file of its own, as on nodes without a shared disk.

python -m tests.ddp_disagreement folder
"""

import os
import sys
from pathlib import Path

from lightning_al import EntropyAcquisition, Pool
from tests.runs import ToyClassifier, make_data, make_trainer


def main(folder: Path) -> None:
    rank = os.environ.get("LOCAL_RANK", "0")
    data = make_data(pool_file=folder / f"pool-{rank}.json")
    data.setup("fit")
    if rank == "1":  # the other node is one query behind, or ahead
        data.pool.label(data.pool.unlabeled[:5], strategy="EntropyAcquisition")
        data.pool.save(data.pool_file)
    make_trainer(EntropyAcquisition(5), strategy="ddp", devices=2).fit(ToyClassifier(), data)
    assert Pool.load(data.pool_file).cycle == 0, "it labeled"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
