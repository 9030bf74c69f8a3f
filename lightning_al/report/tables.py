"""Numbers as text, and tables of text; tabulate is imported when a table is formatted."""

import math
from collections.abc import Sequence


def format_number(value: int | float | str) -> str:
    """Format a value for a table of cycles: a float with four decimals, anything else as it is.

    Example:
        >>> format_number(0.123456), format_number(20), format_number("")
        ('0.1235', '20', '')

    """
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def format_mean(mean: float, sd: float, decimals: int) -> str:
    """Format a mean with its standard deviation, which is left out where it is NaN, as that of one run is.

    Example:
        >>> format_mean(0.75, 0.0625, 3), format_mean(0.75, float("nan"), 3)
        ('0.750 ± 0.062', '0.750')

    """
    return f"{mean:.{decimals}f}" if math.isnan(sd) else f"{mean:.{decimals}f} ± {sd:.{decimals}f}"


def format_p_value(p_value: float) -> str:
    """Format a p-value with three decimals, as an upper bound below them, and as a dash where it is NaN.

    Example:
        >>> format_p_value(0.0004), format_p_value(0.04), format_p_value(float("nan"))
        ('< 0.001', '0.040', '-')

    """
    if math.isnan(p_value):
        return "-"
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def format_count(count: int, singular: str, plural: str | None = None) -> str:
    """Format a count with its noun; the plural is the singular with an s by default.

    Example:
        >>> format_count(1, "seed"), format_count(2, "seed"), format_count(2, "strategy", "strategies")
        ('1 seed', '2 seeds', '2 strategies')

    """
    return f"{count} {singular if count == 1 else plural or f'{singular}s'}"


def format_duration(seconds: float) -> str:
    """Format a time in seconds, minutes or hours.

    Example:
        >>> format_duration(0.4), format_duration(75), format_duration(7500)
        ('0.4 s', '1 min 15 s', '2 h 5 min')

    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table for the terminal, in columns that are aligned on the right.

    Example:
        >>> print(format_text_table(["cycle", "accuracy"], [["0", "0.5000"], ["10", "0.8750"]]))
        cycle  accuracy
            0    0.5000
           10    0.8750

    """
    from tabulate import tabulate

    # The header is a row here because tabulate would make every column with a header two characters wider.
    return tabulate([header, *rows], tablefmt="plain", stralign="right", disable_numparse=True)


def format_markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table as Markdown, padded so that it is readable as plain text, too.

    Example:
        >>> print(format_markdown_table(["strategy", "area"], [["random", "0.625"], ["margin", "0.750"]]))
        | strategy   | area   |
        |------------|--------|
        | random     | 0.625  |
        | margin     | 0.750  |

    """
    from tabulate import tabulate

    # A bar in a cell would begin another column.
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    return tabulate(escaped[1:], escaped[0], tablefmt="github", disable_numparse=True)
