"""On what ground a forget request was closed, as a page of its own: the sentence, then the proof."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reports import page


def render_closing(facts: Mapping[str, Any]) -> str:
    """One self-contained page.

    Args:
        facts: subject, request, closed_at (ISO 8601), ground (a sentence), by ("" when nobody is named) and checks, a
            list of {"what", "found"}.
    """
    return page.template("closing.html.j2").render(facts=facts)
