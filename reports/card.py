"""An audit in a notebook's cell: the answers, the verdict and every finding, as a piece of HTML without script or
picture."""

from __future__ import annotations

from collections.abc import Sequence

from reports.page import template
from reports.summary import Judgement, Row


def render_card(title: str, judgement: Judgement, rows: Sequence[Row], *, link: str) -> str:
    """What ``_repr_html_`` of a report gives; everything that comes from data is escaped.

    Args:
        link: where the whole report is, a path or URI; shown as text and as a link.
    """
    return template("card.html.j2").render(title=title, judgement=judgement, rows=rows, link=link)
