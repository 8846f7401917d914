"""HTML and SVG from Python: text is always escaped, so no file name or label can become markup."""

import base64
import html
from collections.abc import Iterable, Sequence

_VOID = ("img", "meta", "line", "circle", "polyline", "path")


class Markup(str):
    """Text that is markup already."""


def tag(name: str, /, *children, **attributes) -> Markup:
    """An element.

    Args:
        name: Of the element.
        children: `Markup`, or anything else to be shown as text; None is left out, iterables of
            children are laid out.
        attributes: `class_` is class, `stroke_width` stroke-width; None is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable) -> Markup:
    """Children one after the other."""
    return Markup("".join(map(_text, children)))


def table(header: Sequence, rows: Iterable[Sequence]) -> Markup:
    """A table that scrolls by itself where the page is narrow; numbers stand to the right."""
    head = tag("thead", tag("tr", (tag("th", cell, scope="col") for cell in header)))
    body = tag("tbody", (tag("tr", _cells(row)) for row in rows))
    return tag("div", tag("table", head, body), class_="scroll")


def facts(pairs: Iterable[tuple[str, object]]) -> Markup:
    """Names and what they are; pairs with None are left out."""
    rows = [
        tag("tr", tag("th", name, scope="row"), tag("td", value))
        for name, value in pairs
        if value is not None
    ]
    return tag("div", tag("table", tag("tbody", rows), class_="facts"), class_="scroll")


def picture(path: str, caption: str) -> Markup:
    """A PNG inside the page."""
    with open(path, "rb") as file:
        data = base64.b64encode(file.read()).decode("ascii")
    image = tag("img", src=f"data:image/png;base64,{data}", alt=caption)
    return tag("figure", image, tag("figcaption", caption))


def missing(text: str) -> Markup:
    """One line that says what is not there."""
    return tag("p", text, class_="missing")


def note(text: str) -> Markup:
    """A remark."""
    return tag("p", text, class_="note")


def _text(child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, Iterable) and not isinstance(child, (str, bytes)):
        return join(child)
    return html.escape(str(child))


def _cells(row: Sequence) -> Markup:
    first, *others = row
    return join([tag("th", first, scope="row"), *(tag("td", cell) for cell in others)])
