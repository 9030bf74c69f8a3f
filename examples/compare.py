"""Strategies times seeds over one configuration: the same as `lightning-al compare`, from a checkout.

Finished runs are kept in the folder, and not repeated; the second command shows their results so far.

    python examples/compare.py --config configs/digits.yaml --strategies random margin --seeds 3 --folder runs/digits
    python examples/compare.py --report-only --folder runs/digits --target 0.85 0.9
"""

from lightning_al.cli.compare import main

if __name__ == "__main__":
    raise SystemExit(main())
