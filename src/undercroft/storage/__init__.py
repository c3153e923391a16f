"""Artifacts on local disk."""
