"""`python -m kvmfs` is `kvmfs`."""

from kvmfs.cli import main

main()
