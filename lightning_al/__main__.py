"""`python -m lightning_al` is the command `lightning-al`."""

from lightning_al.cli.entry_point import main

if __name__ == "__main__":
    main()
