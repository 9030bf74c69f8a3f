"""The tables of a comparison as Markdown, and numbers as text."""


def show(value: int | float | str) -> str:
    """Format a figure for a person: four decimals for a fraction."""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
