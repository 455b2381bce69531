"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def line(*cells: object) -> str:
    """One line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def head(*columns: str) -> str:
    """The first two lines of a table."""
    return f"{line(*columns)}\n{line(*['---'] * len(columns))}"


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A whole table."""
    return "\n".join([head(*columns), *(line(*row) for row in rows)])
