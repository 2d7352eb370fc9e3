"""The broker: answers on /dev/kvm, has a worker made for every VM, and does for workers what needs privilege.

    device     /dev/kvm's connection: system ioctls, KVM_CREATE_VM
    vm         one VM as the broker knows it: its worker, its connection, what the worker asks for
    carrier    how a VM's files come to its client: FUSE's way, and what the other one (kvmfs.notify) has to do
    files      files that pass between client, broker and worker
    clients    borrowing of client threads: one at a time per client
    zygote     the process that forks workers
    link       a channel for trio tasks
    takeover   answering for a worker that has died

No numba here: it starts fast and stays small.
"""

from kvmfs.broker.device import serve

__all__ = ["serve"]
