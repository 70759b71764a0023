"""`python -m rldistill` is `rldistill`."""

from rldistill.cli import main

main()
