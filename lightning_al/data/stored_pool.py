"""Take a stored pool, from the pool file or a checkpoint, for the current data."""

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_al.data.fingerprint import is_outdated
from lightning_al.data.pool import Pool


def check_identity(pool: Pool, size: int, fingerprint: str, source: str) -> None:
    """Raise if a pool belongs to other data; give it the current fingerprint if it has one of an earlier rule.

    Args:
        pool: The pool.
        size: Number of samples of the dataset.
        fingerprint: Fingerprint of the dataset.
        source: Origin of the pool, for the message.

    Raises:
        ValueError: If the sizes or fingerprints differ; those of different rules cannot be compared.

    """
    outdated = is_outdated(pool.fingerprint)
    comparable = outdated == is_outdated(fingerprint)
    pool.check_dataset(size, fingerprint if comparable else "", source)
    if outdated and fingerprint and not comparable:
        rank_zero_warn(
            f"{source} was written by an earlier version, which identified data in another way, so only the number of "
            "samples could be compared. It gets the new fingerprint, which is compared from now on."
        )
        pool.fingerprint = fingerprint


def merge_pools(current: Pool | None, stored: Pool, source: str, *, kept_in_file: bool) -> Pool:
    """Return the longer of two pools with the same history.

    Args:
        current: The pool in memory, if there is one.
        stored: The pool that was read.
        source: Its origin, for the message.
        kept_in_file: Whether a file keeps the current pool, so that it may not be replaced even without a query.

    Returns:
        `current` if it extends `stored`, else `stored`.

    Raises:
        ValueError: If they belong to different data or have different histories.

    """
    if current is None:
        return stored
    check_identity(stored, current.size, current.fingerprint, source)
    if current.extends(stored):
        return current
    # an initial set without a query is replaced, unless a file stores it
    if not stored.extends(current) and (current.cycle > 0 or kept_in_file):
        raise ValueError(
            f"{source} and the current pool were labeled differently ({stored!r} and {current!r}), and "
            "neither may lose its labels. Start with an `ActiveLearningDataModule` that has not labeled yet."
        )
    return stored
