"""The page: one HTML file with its scripts, styles and pictures inside."""

from collections.abc import Sequence
from importlib.resources import files

from lightning_al.analysis.comparison import Comparison
from lightning_al.report import charts
from lightning_al.report.groups import Group
from lightning_al.report.run_sections import comparison_table, describe_runs, summary_cards


def make_page(
    comparison: Comparison | None,
    groups: Sequence[Group],
    not_compared: Sequence[Group],
    title: str,
    unreadable: Sequence[str] = (),
) -> str:
    """Write the page.

    Args:
        comparison: Of the groups with the same numbers of labels; None where runs have no test metric.
        groups: All runs.
        not_compared: Groups that are not in the comparison.
        unreadable: What could not be read, with the reasons.
        title: Of the page.

    Returns:
        HTML that opens from disk and loads no other file.

    Raises:
        ModuleNotFoundError: If jinja2 or plotly is missing.

    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'The report needs {error.name}: pip install "lightning_al[report]".', name=error.name
        ) from error
    environment = Environment(
        loader=PackageLoader("lightning_al.report", "templates"),
        autoescape=True,  # names, labels and texts come from users' data
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    curves = {}
    if comparison is not None:
        curves = {
            "on labels": charts.learning_curves(comparison, on_seconds=False),
            "on seconds": charts.learning_curves(comparison, on_seconds=True),
        }
    static = files("lightning_al.report") / "templates"
    return environment.get_template("page.html").render(
        title=title,
        cards=summary_cards(comparison, groups),
        comparison=comparison,
        curves=curves,
        table=comparison_table(comparison) if comparison is not None else None,
        not_compared=not_compared,
        unreadable=unreadable,
        incomplete=[run for group in groups for run in group.incomplete],
        sections=describe_runs(groups),
        style=(static / "page.css").read_text(encoding="utf-8"),
        script=(static / "page.js").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
    )
