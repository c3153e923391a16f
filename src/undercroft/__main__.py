"""`python -m undercroft`: the same as the command."""

from undercroft.cli import main

main()
