"""A figure that a notebook shows where it is the last thing in a cell. Imported where one is drawn, and not before."""

import io

from matplotlib import figure


class Figure(figure.Figure):
    """A ``matplotlib`` ``Figure`` that knows how it looks: a notebook asks it, and needs no window and no backend."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
