"""`python -m attnbench.harness.cli`."""

from . import main

main()
