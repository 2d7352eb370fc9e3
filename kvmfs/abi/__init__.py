"""The KVM ABI of Linux 6.12 on x86-64, as data.

Source: include/uapi/linux/kvm.h, arch/x86/include/uapi/asm/kvm.h and kvm_para.h of Linux 6.12. Constants keep their
C names (``memory.KVM_MEM_READONLY``), structs lose the prefix (``struct kvm_msi`` is ``routing.Msi``, its C name in
``Msi.c_name``), fields keep theirs. tests/abi compares every number and offset with what a C compiler says.

    layout       scalar types, the base of all structs, ``offset_of``
    ioctls       every ioctl: number, fd, what its argument really is
    caps, exits  KVM_CAP_*, KVM_EXIT_*
    run          struct kvm_run and what else a vCPU fd maps
    memory       memslots, attributes, guest_memfd, dirty tracking
    vcpu         registers, events, MP state
    debug, apic  debug registers and guest debugging; local APIC
    fpu          FPU and extended state
    limits       sizes and masks that KVM has inside and shows outside
    cpuid        its structs; feature bits in cpuid_basic and cpuid_extended
    msrs         lists, filter; numbers and bits in msr_index, msr_bits, hyperv_msrs
    irqchip      PIC, IOAPIC, PIT state
    routing      GSI routing, MSI, irqfd, ioeventfd
    vm           capabilities, clock, devices, filters, VM types
    para         what guest and host share: hypercalls, kvmclock, steal time
    nested, sev, xen, hyperv, stats
"""
