"""A trained model, or a whole training run, as one file that JAX runs without the code that made it.

What is in it is the program that JAX traced, lowered for all platforms at once, and the weights. A checksum guards
against damage, not against malice: a program is a program, so load only what you trust. And it is for use, not for
keeping: JAX promises to run it for six months. What is to last longer are weights, in a file of ``weights``.
"""

from funcnn.exporting.files import ExportError
from funcnn.exporting.loading import Export, load
from funcnn.exporting.saving import save_model, save_run

__all__ = ["Export", "ExportError", "load", "save_model", "save_run"]
