"""A virtual machine with a kernel of our choosing, for what the host's kernel lacks.

QEMU emulates it (TCG: no KVM needed).  It boots a distribution's kernel package, unpacked but not installed, with the
host's root file system shared in read-only under a tmpfs overlay, and runs one command as root: every program, venv and
checkout of the host is there under its own path, and nothing that the command writes outlives it.

It serves two purposes: CUSE, which the kernels of many hosts are built without, and the real KVM as an oracle:
`-cpu max` emulates AMD's SVM, so kvm-amd loads, and what Linux itself answers can be compared with what kvmfs answers.
"""

from .machine import VM, Result

__all__ = ["VM", "Result"]
