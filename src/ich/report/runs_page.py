"""The page of all runs: tables of their scores side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from ich.files import replacing
from ich.report.html import render
from ich.report.page import Table


def write(path: Path, tables: Mapping[str, pd.DataFrame], summary: str, warnings: Sequence[str]) -> None:
    """Write an overview of runs as one HTML page.

    Args:
        tables: title -> text, a row for each run, as `ich.results.overview.as_text` gives them.
        summary: below the first table.
        warnings: of runs that are worse than they should be.

    Raises:
        IchError: the system refuses to write.
    """
    shown = {
        title: Table(["run", *table], [[name, *row] for name, *row in table.itertuples(name=None)])
        for title, table in tables.items()
    }
    with replacing(path) as temporary:
        page = render("runs.html", {"tables": shown, "summary": summary, "warnings": warnings})
        temporary.write_text(page, encoding="utf-8")
