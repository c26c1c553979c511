"""`python -m reinforce`."""

from reinforce.cli import main

main()
