"""What the node tells of itself: events, Prometheus series, logs."""
