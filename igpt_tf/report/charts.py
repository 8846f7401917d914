"""Line charts as inline SVG, whose colours follow the page's light or dark dress."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from igpt_tf.report.markup import Markup, join, tag

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 30, 12, 48
_MOST_MARKED = 40  # points that still get a dot each


@dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
        title: For the legend.
        points: (x, y) pairs.
        spread: Half the height of an error bar at each point; none without.
    """

    title: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[float] = ()


@dataclass(frozen=True)
class _Frame:
    """Where numbers lie on the paper."""

    x_ticks: list[tuple[float, str]]
    y_ticks: list[float]
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(_HEIGHT - _BOTTOM - (value - low) / (high - low) * _inner_height(), 1)


def line_chart(
    title: str,
    curves: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    levels: Sequence[tuple[str, float]] = (),
    x_ticks: Sequence[tuple[float, str]] | None = None,
    from_zero: bool = False,
) -> Markup:
    """Curves, and horizontal lines ("levels") to compare them with.

    Args:
        title: Of the figure.
        curves: At least one, none empty.
        x_label, y_label: What the axes show, with units.
        levels: (title, y) of the horizontal lines.
        x_ticks: (x, text) of the marks below, chosen if None.
        from_zero: Whether the vertical axis starts at 0, as amounts should.
    """
    frame = _frame(curves, levels, x_ticks, from_zero)
    drawn = [
        *(_level(frame, y, len(curves) + i) for i, (_, y) in enumerate(levels)),
        *(_curve(frame, curve, i) for i, curve in enumerate(curves)),
    ]
    titles = [curve.title for curve in curves] + [f"{name}: {y:.4g}" for name, y in levels]
    picture = tag(
        "svg",
        _axes(frame, x_label, y_label),
        drawn,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=f"{title}: {'; '.join(titles)}",
    )
    legend = tag("ul", (_entry(name, i) for i, name in enumerate(titles)), class_="legend")
    return tag("figure", tag("figcaption", title), picture, legend, class_="chart")


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from below `low` to above `high`."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _frame(curves, levels, x_ticks, from_zero) -> _Frame:
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for _, y in levels] + ([0.0] if from_zero else [])
    for curve in curves:
        bars = curve.spread or [0] * len(curve.points)
        ys += [y + d for (_, y), bar in zip(curve.points, bars, strict=True) for d in (-bar, bar)]
    y_ticks = nice_ticks(min(ys), max(ys))
    if x_ticks is None:
        x_ticks = [(x, f"{x:,.10g}") for x in nice_ticks(min(min(xs), 0), max(xs), 6)]
        x_range = (x_ticks[0][0], x_ticks[-1][0])
    else:
        pad = (max(xs) - min(xs)) * 0.04 or 1
        x_range = (min(xs) - pad, max(xs) + pad)
    return _Frame(list(x_ticks), y_ticks, x_range, (y_ticks[0], y_ticks[-1]))


def _axes(frame: _Frame, x_label: str, y_label: str) -> Markup:
    right, below = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    rows = [
        join(
            [
                tag("line", x1=_LEFT, x2=right, y1=frame.y(y), y2=frame.y(y), class_="grid"),
                tag("text", f"{y:,.10g}", x=_LEFT - 8, y=frame.y(y) + 4, text_anchor="end"),
            ]
        )
        for y in frame.y_ticks
    ]
    columns = [
        tag("text", text, x=frame.x(x), y=below + 18, text_anchor="middle")
        for x, text in frame.x_ticks
    ]
    middle = _TOP + _inner_height() / 2
    labels = [
        tag("text", x_label, x=(_LEFT + right) / 2, y=_HEIGHT - 6, text_anchor="middle"),
        tag("text", y_label, transform=f"translate(15 {middle}) rotate(-90)", text_anchor="middle"),
    ]
    return join([*rows, *columns, *labels])


def _curve(frame: _Frame, curve: Series, place: int) -> Markup:
    places = [(frame.x(x), frame.y(y)) for x, y in curve.points]
    line = tag("polyline", points=" ".join(f"{x},{y}" for x, y in places), class_="curve")
    bars = [
        tag("line", x1=x, x2=x, y1=frame.y(y - bar), y2=frame.y(y + bar), class_="bar")
        for (x, _), (_, y), bar in zip(places, curve.points, curve.spread, strict=False)
    ]
    dots = []
    if len(places) <= _MOST_MARKED:
        dots = [
            tag("circle", tag("title", f"{curve.title}: {value:.4g}"), cx=x, cy=y, r=3.2)
            for (x, y), (_, value) in zip(places, curve.points, strict=True)
        ]
    return tag("g", line, bars, dots, class_=f"series-{place % 6}")


def _level(frame: _Frame, value: float, place: int) -> Markup:
    height = frame.y(value)
    line = tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=height, y2=height, class_="level")
    return tag("g", line, class_=f"series-{place % 6}")


def _entry(title: str, place: int) -> Markup:
    return tag("li", tag("span", class_="swatch"), title, class_=f"series-{place % 6}")


def _inner_height() -> int:
    return _HEIGHT - _TOP - _BOTTOM
