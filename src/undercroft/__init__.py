"""Undercroft: a build cache node."""
