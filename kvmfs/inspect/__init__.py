"""Looking into VMs from outside: what `kvmfs ls`, `show`, `top`, `trace`, `map` and the tree stand on.

    finder    brokers and their VMs
    vm        a VM's counters and registers, read from its inspection file
    stats     what counters there are, by KVM's names
    trace     rings of records, decoded by the ABI's tables

No numba, no trio: a look has to be quick.
"""
