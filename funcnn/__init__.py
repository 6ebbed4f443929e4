"""funcnn: neural networks as pure functions."""
__version__ = "0.1.0"
