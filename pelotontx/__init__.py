"""The real-time application server for Python on Twisted."""

__version__ = "0.1.0"
