"""Colours, dashes and shapes, on a light and a dark ground."""

from typing import Any

DASHES = [[1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [10, 3], [3, 1], [1, 3], [12, 2, 2, 2]]
SHAPES = [
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "cross",
    "triangle-down",
    "triangle-right",
    "triangle-left",
]
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
LIGHT = ["#1b4f8f", "#b5400f", "#2f6b2f", "#7a3d7a", "#7a6510", "#1d7373", "#a02343", "#525252"]
DARK = ["#8ab8ff", "#ff9d73", "#8fd18f", "#d9a0d9", "#e0c65a", "#6fd0d0", "#ff8fa8", "#c4c4c4"]


def theme(text: str, grid: str, back: str, colours: list[str], ramp: list[float]) -> dict[str, Any]:
    axis = {
        "labelColor": text,
        "titleColor": text,
        "gridColor": grid,
        "domainColor": text,
        "tickColor": text,
    }
    small = {"labelFontSize": 12, "titleFontSize": 12, "labelFont": FONT, "titleFont": FONT}
    words = {"labelColor": text, "titleColor": text}
    return {
        "background": back,
        "font": FONT,
        "axis": axis | small,
        "legend": words | small | {"orient": "bottom", "columns": 4, "symbolSize": 120, "labelLimit": 260},
        "header": words | small,
        "title": {"color": text, "font": FONT},
        "view": {"stroke": grid},
        "text": {"color": text, "font": FONT},
        "rule": {"color": text},
        "range": {
            "category": colours,
            "symbol": SHAPES,
            "heatmap": {"scheme": "viridis"},
            "ramp": {"scheme": "viridis", "extent": ramp},  # what can be seen on the ground
        },
    }


THEMES = {
    "light": theme("#1c1c1c", "#dddddd", "#ffffff", LIGHT, [0.0, 0.85]),
    "dark": theme("#ececec", "#444444", "#16181c", DARK, [0.3, 1.0]),
}
