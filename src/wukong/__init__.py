"""Wukong: GPT-2 from raw text to a model that people prefer."""

__version__ = "0.1.0"
