"""Every figure of the page, defined once: as Vega-Lite for the browser and for files.

Series are told apart by shape and dash as well as colour. Colours are the theme's, never a chart's.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from giung2_ext.reports.reading import Row
from giung2_ext.reports.themes import DASHES, SHAPES, THEMES

try:
    import altair as alt
except ImportError:  # which the page says; there are tables without it
    alt = None


class Chart(NamedTuple):
    name: str
    title: str
    caption: str
    rows: list[Row]
    spec: Row  # without its rows: their place is the data set "rows"

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(key for row in self.rows for key in row))

    @property
    def values(self) -> list[list[Any]]:
        columns = self.columns
        return [[row.get(column) for column in columns] for row in self.rows]

    @property
    def whole(self) -> Row:
        return self.spec | {"datasets": {"rows": self.rows}, "config": THEMES["light"], "padding": 12}


def markdown(chart: Chart) -> str:
    return f"![{chart.name}](figures/{chart.name}.png)\n\n{chart.caption}\n"


def made(
    name: str, title: str, caption: str, rows: Sequence[Row], build: Callable[[list[Row]], Any]
) -> Chart | None:
    """The chart, or None without rows; numbers have five digits."""
    if not rows:
        return None

    def short(value: Any) -> Any:
        if not isinstance(value, float):
            return value
        return float(f"{value:.5g}") if math.isfinite(value) else None

    rounded = [{k: short(v) for k, v in r.items()} for r in rows]
    spec = build(rounded).to_dict(validate=False)
    spec.pop("config", None)
    return Chart(name, title, caption, rounded, spec)


def source() -> Any:
    return alt.NamedData(name="rows")


def density_axis(rows: Sequence[Row]) -> Any:
    values = sorted({r["density"] for r in rows if r["density"]}, reverse=True)
    axis = alt.Axis(
        values=values[:: max(1, -(-len(values) // 6))], format=".2~g", grid=True, labelOverlap=True
    )
    return alt.X(
        "density:Q",
        scale=alt.Scale(type="log", reverse=True, nice=False),
        axis=axis,
        title="density (kept / prunable)",
    )


def tooltips(rows: Sequence[Row]) -> list[Any]:
    return [alt.Tooltip(f"{k}:{'Q' if isinstance(v, float) else 'N'}") for k, v in rows[0].items()]


def styled(rows: Sequence[Row], field: str = "series") -> tuple[Any, Any, Any]:
    """Colour, dash and shape of a field, in the order of the rows."""
    names = list(dict.fromkeys(r[field] for r in rows))
    where = f"{field}:N"
    return (
        alt.Color(where, scale=alt.Scale(domain=names), title=None),
        alt.StrokeDash(where, scale=alt.Scale(domain=names, range=looks_of(DASHES, names)), title=None),
        alt.Shape(where, scale=alt.Scale(domain=names, range=looks_of(SHAPES, names)), title=None),
    )


def looks_of(looks: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """One for each name; where colours begin again, these are others."""
    return [looks[(i + i // len(looks)) % len(looks)] for i in range(len(names))]


def alike(chart: Chart, order: Sequence[str]) -> Chart:
    """With the looks that each series has in every chart of a page, whose series are in this order."""

    def walk(node: Any) -> None:
        if isinstance(node, list):
            for child in node:
                walk(child)
        elif isinstance(node, dict):
            scale = node.get("scale")
            if node.get("field") == "series" and isinstance(scale, dict) and "domain" in scale:
                names = scale["domain"]
                everyone = [*order, *(name for name in names if name not in order)]
                scale["domain"] = everyone
                if "range" in scale:
                    scale["range"] = looks_of(
                        DASHES if isinstance(scale["range"][0], list) else SHAPES, everyone
                    )
                node["legend"] = {"values": names}
            for child in node.values():
                walk(child)

    if any(row.get("series") in order for row in chart.rows):
        walk(chart.spec)
    return chart


def panels(rows: Sequence[Row], field: str = "panel") -> Any:
    """One for each value, in the order of the rows."""
    return alt.Facet(f"{field}:N", title=None, sort=list(dict.fromkeys(r[field] for r in rows)))


def by_density(rows: list[Row], title: str | None, zero: bool = False) -> Any:
    """Lines against density, a panel for each `panel`; of one density alone a column for each series."""
    if len({row["density"] for row in rows}) > 1:
        return lines(rows, density_axis(rows), title, zero=zero)
    names = list(dict.fromkeys(row["series"] for row in rows))
    axis = alt.Axis(labels=False, ticks=False, grid=False)
    about = f"density {rows[0]['density']:.3g}"
    return lines(rows, alt.X("series:N", sort=names, title=about, axis=axis), title, zero=zero)


def along(rows: list[Row], x: str, titles: tuple[str, str | None], **scale: Any) -> Any:
    """Lines against a number, a panel for each `panel`; `scale` is the vertical one's."""
    return lines(rows, alt.X(f"{x}:Q", title=titles[0]), titles[1], **scale)


def lines(rows: list[Row], x: Any, title: str | None, **scale: Any) -> Any:
    """With points and bars where a row has `low` and `high`."""
    colour, dash, shape = styled(rows)
    pick = alt.selection_point(fields=["series"], bind="legend")
    faded = alt.condition(pick, alt.value(1), alt.value(0.12))
    base = alt.Chart().encode(x=x, color=colour, opacity=faded)
    across = lambda field: alt.Y(f"{field}:Q", title=title, scale=alt.Scale(**scale))  # noqa: E731
    clip = "domain" in scale  # else a point at the edge is cut in half
    there = base.transform_filter("isValid(datum.low)")
    line = base.mark_line(strokeWidth=1.6, clip=clip).encode(
        y=across("value"), strokeDash=dash, detail="series:N"
    )
    bars = there.mark_rule(clip=clip).encode(y=across("low"), y2="high:Q")
    points = there.mark_point(size=46, filled=True, clip=clip)
    points = points.encode(y=across("value"), shape=shape, tooltip=tooltips(rows))
    layered = alt.layer(bars, line, points.add_params(pick), data=source()).properties(
        width=310, height=230
    )
    faceted = layered.facet(facet=panels(rows), columns=2)
    return faceted.resolve_scale(y="independent").resolve_axis(x="independent")


def heat(
    rows: list[Row],
    x: str,
    y: str,
    value: str,
    titles: tuple[str, str, str],
    log: bool = False,
    facet: str = "series",
) -> Any:
    """A map of cells, a panel for each `facet`; the number in each cell where there is room for it."""
    xs, ys = len({r[x] for r in rows}), len({r[y] for r in rows})
    scale = alt.Scale(type="log" if log else "linear", scheme="viridis")
    across = alt.X(f"{x}:O", title=titles[0], axis=alt.Axis(labelOverlap=True))
    where = {"x": across, "y": alt.Y(f"{y}:N", title=titles[1], sort=None)}
    base = alt.Chart().encode(**where)
    colour = alt.Color(f"{value}:Q", scale=scale, title=titles[2], legend=alt.Legend(gradientLength=200))
    cells = [base.mark_rect().encode(color=colour, tooltip=tooltips(rows))]
    if ys <= 24 and xs <= 24:
        low, high = (end(max(r[value], 1e-9) for r in rows) for end in (min, max))
        middle = low * (high / low) ** 0.65 if log else low + 0.65 * (high - low)
        ink = alt.condition(f"datum.{value} > {middle}", alt.value("black"), alt.value("white"))
        cells.append(
            base.mark_text(fontSize=9).encode(text=alt.Text(f"{value}:Q", format=".2~g"), color=ink)
        )
    size = {"width": min(max(120, 28 * xs), 760), "height": max(60, (22 if ys <= 24 else 11) * ys)}
    layered = alt.layer(*cells, data=source()).properties(**size)
    return layered.facet(facet=panels(rows, facet), columns=1)


def curves(rows: list[Row]) -> Any:
    """Accuracy along training, a panel for each series and split, colour by density."""
    data = [r for r in rows if r["density"]]
    low = min((r["density"] for r in data), default=0.01)
    scale = alt.Scale(type="log", domain=[min(low, 0.99), 1])
    told = [value for value in (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01) if value >= low]
    colour = alt.Color("density:Q", scale=scale, title="density", legend=alt.Legend(values=told))
    base = alt.Chart(source()).encode(
        x=alt.X("step:Q", title="step"),
        y=alt.Y("accuracy:Q", title="accuracy (%)", scale=alt.Scale(zero=False)),
        color=alt.condition("datum.density > 0", colour, alt.value("#8a8a8a")),
        detail=["run:N", "trial:N", "cycle:N"],
        tooltip=tooltips(rows),
    )
    drawn = base.mark_line(point={"size": 18, "invalid": None}, strokeWidth=1.2, invalid=None).properties(
        width=310, height=230
    )
    return drawn.facet(facet=panels(rows), columns=2).resolve_scale(x="independent")


def scatter(rows: list[Row]) -> Any:
    """Shifted against unshifted accuracy, a panel for each set."""
    colour, dash, shape = styled(rows)
    pick = alt.selection_point(fields=["series"], bind="legend")
    base = alt.Chart().encode(
        x=alt.X("unshifted:Q", title="top-1 on ImageNet (%)", scale=alt.Scale(zero=False)),
        y=alt.Y("shifted:Q", title="top-1 on the shifted set (%)", scale=alt.Scale(zero=False)),
        color=colour,
        opacity=alt.condition(pick, alt.value(1), alt.value(0.12)),
    )
    line = base.mark_line(strokeWidth=1.2).encode(strokeDash=dash, order="density:Q")
    points = base.mark_point(size=46, filled=True).encode(shape=shape, tooltip=tooltips(rows))
    layered = alt.layer(line, points.add_params(pick), data=source()).properties(width=310, height=230)
    return layered.facet(facet=panels(rows), columns=2).resolve_scale(y="independent")


def weights(rows: list[Row]) -> Any:
    """Share of weights by the octave of |w| from k to k + 1, before and after the cut, a panel a cycle."""
    colour, dash, _ = styled(rows, "when")
    drawn = alt.Chart(source()).mark_line(interpolate="step-after", strokeWidth=1.8)
    drawn = drawn.encode(
        x=alt.X("log2:Q", title="log2 |w|"),
        y=alt.Y("share:Q", title="part of the weights before", axis=alt.Axis(format="%")),
        color=colour,
        strokeDash=dash,
        tooltip=tooltips(rows),
    ).properties(width=310, height=150)
    return drawn.facet(facet=panels(rows), columns=2)


def reliability(rows: list[Row]) -> Any:
    """Accuracy against confidence, a panel for every set; the diagonal is perfect calibration."""
    colour, dash, shape = styled(rows, "ticket")
    base = alt.Chart().encode(
        x=alt.X("confidence:Q", title="mean confidence", scale=alt.Scale(domain=[0, 1])),
        y=alt.Y("accuracy:Q", title="accuracy", scale=alt.Scale(domain=[0, 1])),
        color=colour,
    )
    even = alt.Chart().mark_line(strokeDash=[2, 3], color="gray")
    even = even.encode(x="confidence:Q", y=alt.Y("confidence:Q", title="accuracy"))
    line = base.mark_line(strokeWidth=1.2).encode(strokeDash=dash)
    points = base.mark_point(filled=True, size=36).encode(shape=shape, tooltip=tooltips(rows))
    layered = alt.layer(even, line, points, data=source()).properties(width=310, height=260)
    return layered.facet(facet=panels(rows), columns=2)


def lineage(rows: list[Row]) -> Any:
    """Tickets by cycle, with lines from what their weights and masks come from."""
    nodes = alt.Chart(source()).transform_filter("datum.kind == 'ticket'")
    edges = alt.Chart(source()).transform_filter("datum.kind != 'ticket'")
    colour, dash, _ = styled(rows, "kind")
    ends = alt.Scale(domain=[min(r["x"] for r in rows) - 0.5, max(r["x"] for r in rows) + 0.5], nice=False)
    axis = alt.Axis(format="d", tickMinStep=1)
    x = alt.X("x:Q", title="cycle (before 0: the rewind point)", axis=axis, scale=ends)
    places = list(dict.fromkeys(r["lane"] for r in rows))
    y = alt.Y("lane:N", title=None, scale=alt.Scale(domain=places))
    lines = edges.mark_rule(opacity=0.7).encode(
        x=x, x2="x2:Q", y=y, y2="lane2:N", color=colour, strokeDash=dash
    )
    names = nodes.mark_text(dy=-13, fontSize=10, angle=315, align="left").encode(x=x, y=y, text="ticket:N")
    dots = nodes.mark_point(filled=True, size=60).encode(x=x, y=y, color=colour, tooltip=tooltips(rows))
    return alt.layer(lines, dots, names).properties(width=700, height=90 * max(2, len(places)))
