"""`front.html`: the chart of a study as one interactive file that loads nothing from elsewhere.

It opens from disk and inside MLflow's sandboxed frame. Here are its figure and its table;
`front_page.html` has the layout, sorts the table and compares two pinned points. What the page
knows of a point stands in its row of the table, and the figure refers to rows by number.
"""

from __future__ import annotations

import json
import math
from html import escape
from importlib import resources
from string import Template
from typing import TYPE_CHECKING

from orchestrator.chart import FAINT, GREY, INK, Chart, Kind, Mark, Style

if TYPE_CHECKING:  # imported where a page is made: most commands make none
    from plotly.graph_objects import Figure, Scatter

SHORT_KEY = 8
HEIGHT_PIXELS = 600
LAST = 1001  # in the legend, where others have rank 1000 and methods less
BARS = (
    " With a bar: the same point on further seeds and test clips, 95 % interval; ?: its place on "
    "the front is not certain."
)
BUTTONS = ["toImage", "zoomIn2d", "zoomOut2d", "resetScale2d"]


def html(chart: Chart) -> str:
    """Return the page of a chart."""
    template = resources.files("orchestrator").joinpath("front_page.html").read_text("utf-8")
    return Template(template).substitute(
        title=escape(chart.title),
        subtitle=escape(chart.subtitle),
        caveat=escape(chart.caveat),
        bars=BARS if chart.of_kind("confirmed") else "",
        figure=_figure(chart).to_html(
            full_html=False,
            include_plotlyjs=True,
            div_id="chart",
            default_height=HEIGHT_PIXELS,
            config={"responsive": True, "displaylogo": False, "modeBarButtons": [BUTTONS]},
        ),
        headings=_headings(chart),
        rows="\n".join(map(_row, chart.marks)),
    )


def _figure(chart: Chart) -> Figure:
    """Return the scatter of gain against cost; its last trace is left to the pins of the page."""
    from plotly.graph_objects import Figure, Scatter

    # Skipped under the pointer, or a click on a pin would not be one on the point below it.
    pins = Scatter(x=[], y=[], mode="markers+text", hoverinfo="skip")
    pins.textposition = "bottom center"
    pins.update(marker={"symbol": "circle-open", "size": 24, "color": INK}, showlegend=False)
    figure = Figure([*_lines(chart), *_points(chart), _knee(chart), pins])
    figure.update_layout(
        template="plotly_white",
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        margin={"l": 60, "r": 20, "t": 20, "b": 60},
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "y": -0.18, "yanchor": "top"},
    )
    (cost, gain), (costs, gains) = chart.axis_titles, chart.window()
    figure.update_xaxes(
        title=cost,
        type="log",
        tickangle=0,
        range=[math.log10(cost) for cost in costs],
        tickvals=[tick for tick, *_ in chart.ticks],
        ticktext=[f"{words}<br>{share}" for _, words, share in chart.ticks],
    )
    figure.update_yaxes(title=gain, range=gains)
    if not math.isnan(chart.chance):
        line = {"color": GREY, "width": 1, "dash": "dash"}
        figure.add_hline(chart.chance, line=line, annotation_text="chance")
    return figure


def _lines(chart: Chart) -> list[Scatter]:
    """Return the staircase of the front and the ties of the controls."""
    from plotly.graph_objects import Scatter

    costs, gains = chart.ties()
    ties = Scatter(x=costs, y=gains, name="control and its point", mode="lines", hoverinfo="skip")
    ties.update(line={"dash": "dot", "color": GREY, "width": 1}, legendrank=LAST)
    costs, gains = chart.staircase()
    front = Scatter(x=costs, y=gains, name="front", mode="lines", hoverinfo="skip")
    front.line = {"shape": "hv", "color": INK, "width": 1.5}
    return [ties, front]


def _points(chart: Chart) -> list[Scatter]:
    """Return a trace for all points that look the same, those of the front last and so on top."""
    from plotly.graph_objects import Scatter

    rows = {id(mark): i for i, mark in enumerate(chart.marks)}
    styles, groups = chart.styles(), chart.groups()
    strongest = {family: kind for family, kind in reversed(groups)}  # its look in the legend
    return [
        Scatter(
            x=[m.cost for m in marks],
            y=[m.gain for m in marks],
            error_y=_bars(marks),
            customdata=[rows[id(m)] for m in marks],
            text=["" if m.is_certain else "?" for m in marks],
            textposition="middle right",
            hovertext=[_hover(chart, m) for m in marks],
            hovertemplate="%{hovertext}<extra></extra>",
            mode="markers+text",
            marker=_marker(styles[family], kind),
            name=_plain(family),
            legendgroup=family,
            legendrank=list(styles).index(family),
            showlegend=strongest[family] == kind,
        )
        for (family, kind), marks in reversed(groups.items())
    ]


def _bars(marks: list[Mark]) -> dict[str, object]:
    """Return the intervals of points that were confirmed, none of others."""
    bars = [(m.bar[1] - m.gain, m.gain - m.bar[0]) if m.bar else (0, 0) for m in marks]
    above, below = zip(*bars, strict=True)
    return {"array": above, "arrayminus": below, "visible": any(m.bar for m in marks), "width": 4}


def _marker(style: Style, kind: Kind) -> dict[str, object]:
    is_control = kind == "control"
    return {
        "symbol": style.symbol + "-open" * is_control,
        "color": style.colour,
        "size": (16 if style.symbol == "star" else 11) * (0.6 if kind == "confirmed" else 1),
        "opacity": FAINT if kind == "dominated" else 1,
        "line": {"width": 2 * is_control},
    }


def _knee(chart: Chart) -> Scatter:
    from plotly.graph_objects import Scatter

    knee = chart.knee()
    ring = Scatter(x=[knee.cost], y=[knee.gain], name="knee", mode="markers+text", hoverinfo="skip")
    ring.marker = {"symbol": "circle-open", "size": 20, "color": INK, "line": {"width": 2}}
    words = f"knee: {_plain(knee.method)}"
    ring.update(text=[words], textposition="top left", cliponaxis=False)
    return ring


def _hover(chart: Chart, mark: Mark) -> str:
    """Return what a point says under the pointer."""
    numbers = [f"{words} {name}" for name, words in zip(chart.headings, mark.cells, strict=True)]
    trial = mark.standing if mark.kind == "control" else f"trial {mark.trial}, {mark.standing}"
    keys = [f"stages {_keys(mark)}"] if mark.stage_keys else []
    return "<br>".join([f"<b>{_plain(mark.method)}</b>", *map(_plain, [*numbers, trial, *keys])])


def _plain(words: str) -> str:
    """Keep plotly from reading words as markup; it would print an escaped quote as it is."""
    return escape(words, quote=False)


def _headings(chart: Chart) -> str:
    """Return the heads of the table's columns; those of numbers are marked as such."""
    words = [("trial", True), ("standing", False), ("method", False)]
    words += [(name, True) for name in chart.headings] + [("stages", False)]
    return "".join(
        f"<th{' class=number' * number}><button>{escape(name)}</button></th>"
        for name, number in words
    )


def _row(mark: Mark) -> str:
    """Return the row of a mark in the table, with what it takes to pin it."""
    place = "" if mark.kind == "lost" else f' data-x="{mark.cost}" data-y="{mark.gain}"'
    params = escape(json.dumps(dict(mark.params)))
    pin = f"<td class=number><button>{mark.trial}</button></td>"
    words = "".join(f"<td>{escape(text)}</td>" for text in (mark.standing, mark.method))
    numbers = "".join(f"<td class=number>{escape(text)}</td>" for text in mark.cells)
    return (
        f'<tr class="{mark.kind}"{place} data-params="{params}">'
        f"{pin}{words}{numbers}<td><code>{escape(_keys(mark))}</code></td></tr>"
    )


def _keys(mark: Mark) -> str:
    return " ".join(key[:SHORT_KEY] for key in mark.stage_keys)
