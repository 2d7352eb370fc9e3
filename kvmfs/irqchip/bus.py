"""Devices behind MMIO and port I/O, and the thread that timers and eventfds wake."""

from kvmfs.jit.build import Group

group = Group("bus", __name__)
