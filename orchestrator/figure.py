"""`front.png`: the chart of a study for a README, drawn with matplotlib and without a display.

Labels are placed one after the other, each where it covers the fewest points and labels; one that
finds no clear place is left out, unless it names the knee or the dense model.
"""

from __future__ import annotations

import io
import math
import textwrap
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from orchestrator.chart import FAINT, GREY, INK, Chart, Mark

if TYPE_CHECKING:  # half a second to import, and most commands draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Annotation, Text
    from matplotlib.transforms import Bbox

SIZE_INCHES = (7.0, 4.5)
DPI = 200  # 1400 x 900 pixels: sharp at half that width
MAX_LABELS = 6
Pixels = list[tuple[float, float]]
# Where a label may stand: offset in points from its mark, with the side of the text that faces it.
PLACES = (
    (-9, 0, "right", "center"),  # nothing lies above and left of a front: that is what makes it one
    (-4, 7, "right", "bottom"),
    (-4, 7, "left", "bottom"),
    (0, -9, "center", "top"),
    (0, 14, "right", "bottom"),
    (0, 14, "left", "bottom"),
    (-6, -7, "left", "top"),
    (7, -7, "left", "top"),
    (9, 0, "left", "center"),
    (6, -7, "right", "top"),
)


def png(chart: Chart) -> bytes:
    """Return the picture of a chart as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)  # which measures text
    panel = figure.add_subplot()
    _lines(panel, chart)
    _marks(panel, chart)
    _scale(panel, chart)
    title = _frame(figure, panel, chart)
    figure.draw_without_rendering()  # settles where things are
    title.set_x(panel.get_position().x0)
    _labels(panel, chart)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _lines(panel: Axes, chart: Chart) -> None:
    """Draw the front's staircase, the ties of the controls, the chance line."""
    costs, gains = chart.staircase()
    panel.step(costs, gains, where="post", color=INK, linewidth=1.2, zorder=2)
    panel.plot(*chart.ties(), color=GREY, linewidth=0.8, linestyle=":", zorder=1)
    if not math.isnan(chart.chance):
        panel.axhline(chart.chance, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
        label = panel.annotate("chance", (1, chart.chance), xycoords=panel.get_yaxis_transform())
        label.set(fontsize=7.5, color=GREY, ha="right", va="bottom", annotation_clip=True)


def _marks(panel: Axes, chart: Chart) -> None:
    """Draw the points: those of the front full, dominated ones faint, controls hollow."""
    styles = chart.styles()
    for (family, kind), marks in chart.groups().items():
        style = styles[family]
        hollow, faint = kind == "control", kind == "dominated"
        panel.scatter(
            [m.cost for m in marks],
            [m.gain for m in marks],
            marker=style.marker,
            s=(110 if style.marker == "*" else 42) * (0.4 if kind == "confirmed" else 1),
            facecolor="white" if hollow else style.colour,
            edgecolor=style.colour if hollow else "white",
            linewidth=1.2 if hollow else 0.6,
            alpha=FAINT if faint else 1,
            zorder=3 if faint else 4,
        )
    for mark in chart.of_kind("confirmed"):
        _bar(panel, mark, styles[mark.family].colour)
    knee = chart.knee()
    panel.scatter(knee.cost, knee.gain, s=170, facecolor="none", edgecolor=INK, zorder=5)


def _bar(panel: Axes, mark: Mark, colour: str) -> None:
    """Draw the interval of a point that was confirmed, and a ? where its place is not certain."""
    assert mark.bar is not None, "it was confirmed"
    panel.plot([mark.cost] * 2, mark.bar, color=colour, linewidth=1, marker="_", zorder=3)
    if not mark.is_certain:
        label = panel.annotate("?", (mark.cost, mark.gain), (5, 0), textcoords="offset points")
        label.set(va="center", fontsize=8)


def _frame(figure: Figure, panel: Axes, chart: Chart) -> Text:
    """Write the axes and what is above and below them; return the title."""
    # Mathematics is off wherever a user's words stand: a lone dollar sign is theirs.
    words = textwrap.fill(chart.title, 80)
    title = figure.suptitle(words, ha="left", fontsize=10.5, parse_math=False)
    circumstances = "\n".join(textwrap.fill(text, 115) for text in (chart.subtitle, chart.caveat))
    panel.set_title(circumstances, loc="left", fontsize=7.5, color=GREY, parse_math=False)
    panel.set_xlabel(chart.axis_titles[0], fontsize=8.5)
    panel.set_ylabel(chart.axis_titles[1], fontsize=8.5)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color="#eeeeee", linewidth=0.8)
    panel.set_axisbelow(True)
    keys = _keys(chart)
    figure.legend(handles=keys, loc="outside lower left", ncols=6, fontsize=8, frameon=False)
    return title


def _scale(panel: Axes, chart: Chart) -> None:
    """Make the cost logarithmic, marked at shares of the dense model's."""
    costs, gains = chart.window()
    panel.set_xscale("log")
    panel.set_xlim(*costs)
    panel.set_ylim(*gains)
    labels = [f"{words}\n{share}" for _, words, share in chart.ticks]
    panel.set_xticks([cost for cost, *_ in chart.ticks], labels)
    panel.set_xticks([], minor=True)
    panel.tick_params(labelsize=8, color=GREY)


def _keys(chart: Chart) -> list[Line2D]:
    """Return the legend: a key for each method, then one for each way of drawing a point."""
    from matplotlib.lines import Line2D

    def key(label: str, marker: str, colour: str, **look: Any) -> Line2D:  # Any: Line2D's own
        size = 12 if marker == "*" else 7.5
        look = {"linestyle": "none", "markeredgecolor": "white", "markersize": size} | look
        return Line2D([], [], label=label, marker=marker, color=colour, **look)

    hollow = {"markerfacecolor": "white", "markeredgecolor": GREY}
    ring = {"markerfacecolor": "none", "markeredgecolor": INK, "markersize": 10}
    return [
        *(key(family, style.marker, style.colour) for family, style in chart.styles().items()),
        key("front", "", INK, linestyle="-"),
        key("knee", "o", INK, **ring),
        key("dominated", "o", GREY, alpha=FAINT),
        key("control, tied to its point", "o", GREY, **hollow),
        *(
            [key("confirmed, 95 %", "|", GREY, markeredgecolor=GREY)]
            if chart.of_kind("confirmed")
            else []
        ),
    ]


def _labels(panel: Axes, chart: Chart) -> None:
    """Name the dense model, the knee, the ends of the front, and then the points between."""
    front, knee = chart.of_kind("front"), chart.knee()
    needed = [*chart.of_kind("dense"), knee]
    ends = [front[0], front[-1]]
    others = sorted((m for m in front if m is not knee), key=lambda m: m not in ends)
    obstacles = _obstacles(panel, chart)
    taken: list[Bbox] = []
    for mark in [*needed, *others][:MAX_LABELS]:
        label = panel.annotate(
            f"knee: {mark.method}" if mark is knee else mark.method,
            (mark.cost, mark.gain),
            PLACES[0][:2],
            textcoords="offset points",
            fontsize=7.5,
            weight="bold" if mark is knee else "normal",
            parse_math=False,
        )
        label.set_in_layout(False)
        box, covered = _place(label, obstacles, taken, panel.get_window_extent())
        if covered and mark not in needed:
            label.remove()
        else:
            taken.append(box)


def _obstacles(panel: Axes, chart: Chart) -> Pixels:
    """Return the pixels that a label should not cover: all points, and along the front."""
    points = [(m.cost, m.gain) for m in chart.placed()]
    for (left, low), (right, high) in pairwise(zip(*chart.staircase(), strict=True)):
        points += [(left * (right / left) ** (i / 20), low) for i in range(21)]
        points += [(right, low + (high - low) * i / 20) for i in range(21)]
    return [tuple(pixel) for pixel in panel.transData.transform(points)]


def _place(
    label: Annotation, obstacles: Pixels, taken: list[Bbox], panel: Bbox
) -> tuple[Bbox, int]:
    """Move a label to where it covers least; return the box that it fills, and what it covers."""

    def move(place: tuple[float, float, str, str]) -> Bbox:
        label.xyann, (across, up) = place[:2], place[2:]
        label.set(ha=across, va=up)
        return label.get_window_extent().padded(2)

    def covers(place: tuple[float, float, str, str]) -> int:
        box = move(place)
        outside = box.x0 < panel.x0 or box.x1 > panel.x1 or box.y1 > panel.y1
        return int(box.count_contains(obstacles) + 1000 * (box.count_overlaps(taken) + outside))

    best = min(PLACES, key=covers)  # of equals the first: PLACES is in order of preference
    return move(best), covers(best)
