"""A figure that a notebook shows where it is the last thing in a cell, with or without ``matplotlib.pyplot``."""

import io

from matplotlib import figure


class Figure(figure.Figure):
    """A ``matplotlib`` ``Figure`` that knows how it looks: a notebook asks it, and needs no window and no backend."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
