"""The KVM object model: what /dev/kvm, VM, vCPU and guest_memfd fds do, whatever carries them.

    caller          what this package needs from the transport, and what the transport gets from it
    dispatch        from an ioctl's number to a typed handler
    system          /dev/kvm
    vm              a virtual machine; slots, attributes, guest_memfd, publish: its memory
    vcpu            a virtual CPU; regs, fpu, events, msrs, guest_cpuid, ...: its state
    enter, ...      KVM_RUN itself, compiled: imported in workers only

system and what it imports is all that the broker loads: none of it imports numba.
"""
