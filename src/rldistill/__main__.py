"""`python -m rldistill` is `rldistill`."""

from rldistill.cli.main import main

main()
