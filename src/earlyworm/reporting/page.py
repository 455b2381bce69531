"""What all pages have in common: a frame, figures that are drawn in the browser, and one file to write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from earlyworm.errors import RunError
from earlyworm.files import write_atomically


def plain_figure(figure: go.Figure) -> dict[str, Any]:
    """A figure as what the page's script takes; the page has a look of its own, so that plotly's is left out."""
    parts: dict[str, Any] = figure.to_dict()
    parts["layout"].pop("template", None)
    return parts


def render(template: str, data: Mapping[str, Any], palette: Mapping[str, tuple[str, str]], **values: Any) -> str:
    """One HTML page that needs no network and no other file.

    Args:
        template: Name of the page's template.
        data: What the page's scripts read: JSON, with the `figures` by the ids of their places.
        palette: Colours in light and dark mode, by name.
        values: What the template asks for beside these.
    """
    environment = Environment(
        loader=PackageLoader("earlyworm.reporting", ""), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(template).render(
        data={**data, "palette": palette}, palette=palette, plotlyjs=get_plotlyjs(), **values
    )


def write_page(page: str, path: Path) -> None:
    """Write a page; what was there is replaced only once the new page is complete.

    Raises:
        RunError: If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page.encode())
    except OSError as error:
        raise RunError(f"cannot write {path} ({error.strerror}): choose another place for the report") from error
