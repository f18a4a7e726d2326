"""The version. A module by itself, so that whatever records it need not import the package's front door."""

__version__ = "0.1.0"
