"""Line charts as SVG by matplotlib, in colours that the page's style sheet sets."""

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Drawn in the colours of the light theme; in the SVG each becomes a CSS variable of style.css.
_INK, _SOFT, _RULE, _CARD = "#22262b", "#626a73", "#e3e1dc", "#ffffff"
_SERIES = ("#1f5fa8", "#b5651d", "#4f7a28", "#8e4585", "#7a7a7b", "#1c8a86")
_VARIABLES = {_INK: "ink", _SOFT: "soft", _RULE: "rule", _CARD: "card"}
_VARIABLES |= {colour: f"c{index}" for index, colour in enumerate(_SERIES)}
_STYLE = {
    "svg.fonttype": "none",  # text remains text: it can be selected and follows the page's font
    "text.parse_math": False,  # a "$" in a file name is not a formula
    "font.size": 12,
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": _INK,
    "axes.labelcolor": _SOFT,
    "axes.edgecolor": _RULE,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "grid.color": _RULE,
}
_WIDE, _NARROW = (12.0, 4.2), (4.7, 4.4)  # inches of 72 px; style.css shows one of the two
_MAX_MARKED = 40  # points of a curve that each have a marker
_LINE_HEIGHT = 17  # px


@dataclass(frozen=True)
class Curve:
    """A curve of a chart.

    Attributes:
        name: Text of the legend.
        points: (x, y) pairs, in the order of x.
        deviations: Half the height of the error bar at each point; empty for none.
    """

    name: str
    points: Sequence[tuple[float, float]]
    deviations: Sequence[float] = ()


@dataclass(frozen=True)
class LineChart:
    """Curves over one axis, and horizontal lines to compare them with.

    Attributes:
        title: Title of the figure.
        curves: At least one; none is empty.
        x_label, y_label: What the axes show, with units.
        levels: (name, y) of the horizontal lines, which are labelled at their right end.
        x_ticks: (x, text) of the ticks; None to choose them.
        from_zero: Whether the y axis starts at 0.
    """

    title: str
    curves: Sequence[Curve]
    x_label: str
    y_label: str
    levels: Sequence[tuple[str, float]] = ()
    x_ticks: Sequence[tuple[float, str]] | None = None
    from_zero: bool = False

    @property
    def description(self) -> str:
        """Text for readers who do not see the chart."""
        curves = [
            f"{curve.name} from {curve.points[0][1]:.4g} at {curve.points[0][0]:g} "
            f"to {curve.points[-1][1]:.4g} at {curve.points[-1][0]:g}"
            for curve in self.curves
        ]
        levels = [f"{name} at {y:.4g}" for name, y in self.levels]
        return f"Line chart of {self.y_label} over {self.x_label}: {'; '.join(curves + levels)}."

    def svg(self, narrow: bool = False) -> str:
        """The chart as an `<svg>` element, for a wide page or for a phone."""
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=_NARROW if narrow else _WIDE, layout="constrained", dpi=72)
            axes = figure.add_subplot()
            axes.set_facecolor("none")
            for colour, curve in zip(_SERIES * len(self.curves), self.curves, strict=False):
                _draw_curve(axes, curve, colour, dashed=curve is not self.curves[0])
            self._draw_axes(axes, narrow)
            self._draw_levels(axes, narrow)
            text = io.StringIO()
            no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(text, format="svg", transparent=True, metadata=no_metadata)
        return _for_page(text.getvalue())

    def _draw_axes(self, axes, narrow: bool) -> None:
        axes.set_xlabel(self.x_label)
        axes.set_ylabel(self.y_label)
        axes.grid(axis="y")
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.tick_params(length=0)
        axes.yaxis.set_major_formatter("{x:,.6g}")
        if self.x_ticks is None:
            axes.xaxis.set_major_formatter("{x:,.10g}")
            axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 8, integer=True))
            axes.set_xlim(left=0)
        else:
            step = -(-len(self.x_ticks) // 12) if narrow else -(-len(self.x_ticks) // 40)
            axes.set_xticks(*zip(*self.x_ticks[::step], strict=True))
        if self.from_zero:
            axes.set_ylim(bottom=0)
        if len(self.curves) > 1 or not self.levels:
            columns = 1 if narrow else 3
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False)

    def _draw_levels(self, axes, narrow: bool) -> None:
        if not self.levels:
            return
        values = [y for _, y in self.levels]
        low, high = axes.get_ylim()
        margin = 0.05 * (high - low)
        low, high = min(low, min(values) - margin), max(high, max(values) + margin)
        axes.set_ylim(low, high)
        height = axes.figure.get_figheight() * 72 * 0.7
        lines = 3 if narrow else 1
        places = _spread([(y - low) / (high - low) for y in values], lines * _LINE_HEIGHT / height)
        for index, ((name, y), place) in enumerate(zip(self.levels, places, strict=True)):
            colour = _SERIES[(len(self.curves) + index) % len(_SERIES)]
            axes.axhline(y, linestyle=":", color=colour, linewidth=1.8)
            text = textwrap.fill(f"{name} {y:.4g}", 10 if narrow else 100)
            axes.text(1.01, place, text, color=colour, va="center", transform=axes.transAxes)


def line_chart(title: str, curves: Sequence[Curve], x_label, y_label, **options) -> list[dict]:
    """A block of the page with a `LineChart`; none if no curve has points."""
    curves = [curve for curve in curves if curve.points]
    chart = LineChart(title, curves, x_label, y_label, **options)
    return [{"kind": "chart", "chart": chart}] if curves else []


def _draw_curve(axes, curve: Curve, colour: str, dashed: bool) -> None:
    axes.errorbar(
        *zip(*curve.points, strict=True),
        yerr=list(curve.deviations) or None,
        color=colour,
        linewidth=2,
        linestyle="--" if dashed else "-",
        marker="o" if len(curve.points) <= _MAX_MARKED else None,
        markersize=5,
        capsize=4,
        label=curve.name,
    )


def _spread(places: list[float], gap: float) -> list[float]:
    """Moves places on [0, 1] apart until neighbours differ by `gap`; their order is kept."""
    order = sorted(range(len(places)), key=places.__getitem__)
    spread = list(places)
    for lower, upper in zip(order, order[1:], strict=False):
        spread[upper] = max(spread[upper], spread[lower] + gap)
    limit = 1.0
    for place in reversed(order):
        spread[place] = min(spread[place], limit)
        limit = spread[place] - gap
    return spread


def _for_page(text: str) -> str:
    """An SVG file as an element of an HTML page."""
    text = text[text.index("<svg") :]
    text = re.sub(r'<g id="\w+">', "<g>", text)  # the same names in every chart
    for colour, name in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    return text
