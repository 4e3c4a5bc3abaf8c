"""``python -m fedhead`` is the command line."""

from fedhead.cli.main import main

main()
