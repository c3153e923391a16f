"""Measurements that can be repeated; run each with ``python -m benchmarks.NAME``."""
