"""scalelab: how language models scale, in code that runs on two cores."""

__version__ = "0.1.0"
