"""What is in deploy/ fits the node it is for."""
