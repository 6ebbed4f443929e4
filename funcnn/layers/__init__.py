"""Every layer under its one public path: ``layers.dense``."""
from funcnn.layers.combinators import concatenate, named, parallel, residual, serial
from funcnn.layers.linear import dense
