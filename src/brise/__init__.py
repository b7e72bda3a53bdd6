"""brise: earn the switch from a big hosted model to a small one that you own."""

__version__ = "0.2.0"
