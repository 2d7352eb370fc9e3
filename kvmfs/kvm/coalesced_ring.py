"""The ring of coalesced MMIO and port writes, compiled."""

from kvmfs.jit.build import Group

group = Group("coalesced", __name__)
