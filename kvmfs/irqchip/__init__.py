"""The in-kernel interrupt controllers: local APICs, I/O APIC, PICs, PIT, and how interrupts are routed to them.

What a guest touches is compiled, over blocks that words.py lays out; no Python runs there. The run loop knows nothing
of it: a vCPU that has work to do is kicked out of it (kvmfs.kvm.attend), and exits that belong to a device here do not
get to the client (kvmfs.kvm.platform).

    words                           the blocks: an APIC's, and the board's: all between the vCPUs
    lapic       (a group)           the local APIC: delivery (messages), registers, timer
    chips       (a group)           what is outside of the APICs: ioapic, pic, pit, routing
    bus         (a group)           who answers an address; the thread that timers and eventfds wake
    lock                            spin locks, readers of replaced tables

    board, lapic_state, chips_state objects behind the ioctls
    routes, eventfds, ioctls        KVM_SET_GSI_ROUTING; KVM_IRQFD, KVM_IOEVENTFD; the VM's other ioctls
"""
