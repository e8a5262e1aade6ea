"""Everything that a report is: the page, its figures and tables, and of one run or chain a text too."""

from collections.abc import Sequence

from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.reports import chain, mask_history, page, standing, tables
from giung2_ext.reports.charts import Chart
from giung2_ext.storage import paths


def write(
    folders: Sequence[epath.Path],
    out: epath.Path | None = None,
    against: str | None = None,
    watch: int | None = None,
    pictures: page.Pictures | None = None,
    names: page.Names | None = None,
) -> None:
    """Writes what there is enough for, and prints it, what is wrong, and where everything is."""
    out = out or folders[0] / paths.REPORT
    drawn: Sequence[Chart] = ()
    warned: Sequence[str] = ()
    averaged: tables.Table = []
    told, problems = "", []
    try:
        written = page.write_page(folders, out, watch, pictures, names)
        drawn, warned, averaged = written.charts, written.warnings, written.means
        told = f"{page.PAGE}, {len(drawn)} charts in figures/, tables/"
    except page.Absent as error:
        problems = [f"no page and no figures: {error}"]
    if len(folders) == 1:
        try:
            if write_text(folders[0], against, drawn, warned, out):
                told += ", report.md and its tables" if told else "report.md and its tables"
        except Refusal as error:
            if against:
                raise
            problems.append(f"no report.md: {error}")
        except standing.UNREADABLE as error:
            problems.append(f"no report.md: {type(error).__name__}: {error}")
    if averaged and "report.md" not in told:
        print("\n" + tables.to_markdown(averaged) + "\n")
    for line in (*problems, *(f"Warning: {line}" for line in warned)):
        print(line)
    if told:
        print(f"report: {out}/ with {told}")


def write_text(
    folder: epath.Path,
    against: str | None,
    drawn: Sequence[Chart],
    warned: Sequence[str],
    out: epath.Path,
) -> bool:
    """The report as text of a chain, or of a run whose mask changed; says whether it is one of the two."""
    changed = mask_history.has_history(folder) and not paths.is_chain(folder)
    if against and not changed:
        raise Refusal(f"{folder} is a run whose mask was not changed by updates: it has no masks.jsonl")
    if changed:
        mask_history.write_report(folder, against, drawn, warned, out)
    elif paths.is_chain(folder):
        chain.write_report(folder, drawn, warned, out)
    return changed or paths.is_chain(folder)
