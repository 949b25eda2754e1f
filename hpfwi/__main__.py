"""`python -m hpfwi`: the same as the `hpfwi` command."""

from hpfwi.cli import main

main()
