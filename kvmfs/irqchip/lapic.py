"""The local APIC, compiled (arch/x86/kvm/lapic.c; SDM vol. 3, ch. 11)."""

from kvmfs.jit.build import Group

group = Group("lapic", __name__)
