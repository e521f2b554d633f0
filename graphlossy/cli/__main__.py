"""``python -m graphlossy.cli``: the command line where the script ``graphlossy`` is not on the path."""

from graphlossy.cli import main

main()
