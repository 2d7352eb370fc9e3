"""The in-kernel interrupt controllers and the PIT: their state as KVM's ioctls get and set it.

    pic, ioapic, pit    one each per VM
    lapic               one per vCPU
    routing             GSI to pin or message
    ioctls              the VM's ioctls for all of them

Nothing here delivers an interrupt yet, and no capability says so.
"""
