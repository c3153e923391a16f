"""The second tier: an object store, and the transfers to and from it."""
