"""PIC, I/O APIC, PIT and GSI routing, compiled."""

from kvmfs.jit.build import Group

group = Group("chips", __name__)
