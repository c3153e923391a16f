"""Undercroft: a build cache node."""

from importlib.metadata import version

__version__ = version("undercroft")
