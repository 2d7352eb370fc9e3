"""Paravirtual clock, steal time and hypercalls, compiled."""

from kvmfs.jit.build import Group

group = Group("paravirt", __name__)
