"""`python -m annotary`: the command line."""

from annotary.cli import main

main()
