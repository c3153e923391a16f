"""Work that goes on in the background as long as the node runs, each kind in a file of its own."""
