"""`python -m iadd_lab` is `iadd-lab`."""

from iadd_lab.cli import main

main()
