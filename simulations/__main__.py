"""``python -m simulations`` is the command line."""

from simulations.cli import main

main()
