"""HTTP: one small file per build tool, and what they share."""
