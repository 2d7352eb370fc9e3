"""Every ioctl of x86 KVM in Linux 6.12, grouped by the fd it is made on. What the columns mean is said in ioctl.py."""

import errno
from typing import Final

from kvmfs.abi import apic, cpuid, debug, fpu, hyperv, irqchip, memory, msrs, nested, routing, sev, vcpu, vm, xen
from kvmfs.abi.caps import Cap
from kvmfs.abi.ioctl import KVMIO as KVMIO
from kvmfs.abi.ioctl import Argument as Argument
from kvmfs.abi.ioctl import Fd as Fd
from kvmfs.abi.ioctl import Ioctl as Ioctl
from kvmfs.abi.ioctl import Result as Result
from kvmfs.abi.ioctl import Tail as Tail
from kvmfs.abi.ioctl import io, ior, iow, iowr
from kvmfs.abi.layout import u8, u32, u64

_SYSTEM, _VM, _VCPU, _DEVICE = Fd.SYSTEM, Fd.VM, Fd.VCPU, Fd.DEVICE
_NONE, _ZERO, _VALUE = Argument.NONE, Argument.ZERO, Argument.VALUE
_IN, _OUT, _INOUT = Argument.IN, Argument.OUT, Argument.INOUT

_CPUID_TAIL = Tail("entries", cpuid.CpuidEntry2, "nent")
_MSRS_TAIL = Tail("entries", msrs.MsrEntry, "nmsrs")
_INDEX_TAIL = Tail("indices", u32, "nmsrs")
_NESTED_TAIL = Tail("data", u8, "size", bytes_of_all=True)
_STATE_FIRST = "state is checked before the argument is read"
_E2BIG_COUNT = "E2BIG if there is not room for all, with the count written"

# fmt: off
# /dev/kvm
KVM_GET_API_VERSION: Final = Ioctl("KVM_GET_API_VERSION", io(0x00), _SYSTEM, _ZERO, result=Result.VALUE)
KVM_CREATE_VM: Final = Ioctl("KVM_CREATE_VM", io(0x01), _SYSTEM, _VALUE, result=Result.FD, note="a VM type")
KVM_GET_VCPU_MMAP_SIZE: Final = Ioctl("KVM_GET_VCPU_MMAP_SIZE", io(0x04), _SYSTEM, _ZERO, result=Result.VALUE)
KVM_GET_MSR_INDEX_LIST: Final = Ioctl(
    "KVM_GET_MSR_INDEX_LIST", iowr(0x02, msrs.MsrList), _SYSTEM, _INOUT, msrs.MsrList, _INDEX_TAIL, note=_E2BIG_COUNT)
KVM_GET_MSR_FEATURE_INDEX_LIST: Final = Ioctl(
    "KVM_GET_MSR_FEATURE_INDEX_LIST", iowr(0x0A, msrs.MsrList), _SYSTEM, _INOUT, msrs.MsrList, _INDEX_TAIL,
    cap=Cap.GET_MSR_FEATURES, note=_E2BIG_COUNT)
KVM_GET_SUPPORTED_CPUID: Final = Ioctl(
    "KVM_GET_SUPPORTED_CPUID", iowr(0x05, cpuid.Cpuid2), _SYSTEM, _INOUT, cpuid.Cpuid2, _CPUID_TAIL,
    cap=Cap.EXT_CPUID, note="E2BIG if there is not room for all, the count not written")
KVM_GET_EMULATED_CPUID: Final = Ioctl(
    "KVM_GET_EMULATED_CPUID", iowr(0x09, cpuid.Cpuid2), _SYSTEM, _INOUT, cpuid.Cpuid2, _CPUID_TAIL,
    cap=Cap.EXT_EMUL_CPUID)
KVM_X86_GET_MCE_CAP_SUPPORTED: Final = Ioctl(
    "KVM_X86_GET_MCE_CAP_SUPPORTED", ior(0x9D, u64), _SYSTEM, _OUT, u64, cap=Cap.MCE)

# More than one kind of fd
KVM_CHECK_EXTENSION: Final = Ioctl(
    "KVM_CHECK_EXTENSION", io(0x03), _SYSTEM | _VM, _VALUE, result=Result.VALUE, note="VM: KVM_CAP_CHECK_EXTENSION_VM")
KVM_GET_MSRS: Final = Ioctl(
    "KVM_GET_MSRS", iowr(0x88, msrs.Msrs), _SYSTEM | _VCPU, _INOUT, msrs.Msrs, _MSRS_TAIL, Result.COUNT,
    note="system: feature MSRs, KVM_CAP_GET_MSR_FEATURES")
KVM_GET_SUPPORTED_HV_CPUID: Final = Ioctl(
    "KVM_GET_SUPPORTED_HV_CPUID", iowr(0xC1, cpuid.Cpuid2), _SYSTEM | _VCPU, _INOUT, cpuid.Cpuid2, _CPUID_TAIL,
    cap=Cap.HYPERV_CPUID, note="system: KVM_CAP_SYS_HYPERV_CPUID")
KVM_ENABLE_CAP: Final = Ioctl(
    "KVM_ENABLE_CAP", iow(0xA3, vm.EnableCap), _VM | _VCPU, _IN, vm.EnableCap, cap=Cap.ENABLE_CAP,
    note="VM: KVM_CAP_ENABLE_CAP_VM")
KVM_SET_TSC_KHZ: Final = Ioctl(
    "KVM_SET_TSC_KHZ", io(0xA2), _VM | _VCPU, _VALUE, cap=Cap.TSC_CONTROL, note="VM: KVM_CAP_VM_TSC_CONTROL")
KVM_GET_TSC_KHZ: Final = Ioctl(
    "KVM_GET_TSC_KHZ", io(0xA3), _VM | _VCPU, _NONE, result=Result.VALUE, cap=Cap.GET_TSC_KHZ)
KVM_GET_STATS_FD: Final = Ioctl(
    "KVM_GET_STATS_FD", io(0xCE), _VM | _VCPU, _NONE, result=Result.FD, cap=Cap.BINARY_STATS_FD)
KVM_SET_DEVICE_ATTR: Final = Ioctl(
    "KVM_SET_DEVICE_ATTR", iow(0xE1, vm.DeviceAttr), _VCPU | _DEVICE, _IN, vm.DeviceAttr,
    cap=Cap.DEVICE_CTRL, addresses=("addr",), note="reads at addr; vCPU: KVM_CAP_VCPU_ATTRIBUTES")
KVM_GET_DEVICE_ATTR: Final = Ioctl(
    "KVM_GET_DEVICE_ATTR", iow(0xE2, vm.DeviceAttr), _SYSTEM | _VCPU | _DEVICE, _IN, vm.DeviceAttr,
    cap=Cap.DEVICE_CTRL, addresses=("addr",), note="writes at addr; system: KVM_CAP_SYS_ATTRIBUTES")
KVM_HAS_DEVICE_ATTR: Final = Ioctl(
    "KVM_HAS_DEVICE_ATTR", iow(0xE3, vm.DeviceAttr), _SYSTEM | _VCPU | _DEVICE, _IN, vm.DeviceAttr,
    cap=Cap.DEVICE_CTRL, note="system: KVM_CAP_SYS_ATTRIBUTES")

# VM: vCPUs and memory
KVM_CREATE_VCPU: Final = Ioctl("KVM_CREATE_VCPU", io(0x41), _VM, _VALUE, result=Result.FD, note="a vCPU id")
KVM_SET_USER_MEMORY_REGION: Final = Ioctl(
    "KVM_SET_USER_MEMORY_REGION", iow(0x46, memory.UserspaceMemoryRegion), _VM, _IN, memory.UserspaceMemoryRegion,
    cap=Cap.USER_MEMORY, addresses=("userspace_addr",))
KVM_SET_USER_MEMORY_REGION2: Final = Ioctl(
    "KVM_SET_USER_MEMORY_REGION2", iow(0x49, memory.UserspaceMemoryRegion2), _VM, _IN, memory.UserspaceMemoryRegion2,
    cap=Cap.USER_MEMORY2, addresses=("userspace_addr",), fds=("guest_memfd",))
KVM_SET_MEMORY_ATTRIBUTES: Final = Ioctl(
    "KVM_SET_MEMORY_ATTRIBUTES", iow(0xD2, memory.MemoryAttributes), _VM, _IN, memory.MemoryAttributes,
    cap=Cap.MEMORY_ATTRIBUTES)
KVM_CREATE_GUEST_MEMFD: Final = Ioctl(
    "KVM_CREATE_GUEST_MEMFD", iowr(0xD4, memory.CreateGuestMemfd), _VM, _IN, memory.CreateGuestMemfd,
    result=Result.FD, cap=Cap.GUEST_MEMFD, note="_IOWR, never written")
KVM_GET_DIRTY_LOG: Final = Ioctl(
    "KVM_GET_DIRTY_LOG", iow(0x42, memory.DirtyLog), _VM, _IN, memory.DirtyLog,
    addresses=("dirty_bitmap",), note="writes at dirty_bitmap")
KVM_CLEAR_DIRTY_LOG: Final = Ioctl(
    "KVM_CLEAR_DIRTY_LOG", iowr(0xC0, memory.ClearDirtyLog), _VM, _IN, memory.ClearDirtyLog,
    cap=Cap.MANUAL_DIRTY_LOG_PROTECT2, addresses=("dirty_bitmap",), note="_IOWR, never written; reads at dirty_bitmap")
KVM_RESET_DIRTY_RINGS: Final = Ioctl(
    "KVM_RESET_DIRTY_RINGS", io(0xC7), _VM, _NONE, result=Result.COUNT, cap=Cap.DIRTY_LOG_RING)
KVM_REGISTER_COALESCED_MMIO: Final = Ioctl(
    "KVM_REGISTER_COALESCED_MMIO", iow(0x67, memory.CoalescedMmioZone), _VM, _IN, memory.CoalescedMmioZone,
    cap=Cap.COALESCED_MMIO)
KVM_UNREGISTER_COALESCED_MMIO: Final = Ioctl(
    "KVM_UNREGISTER_COALESCED_MMIO", iow(0x68, memory.CoalescedMmioZone), _VM, _IN, memory.CoalescedMmioZone,
    cap=Cap.COALESCED_MMIO)
KVM_SET_NR_MMU_PAGES: Final = Ioctl(
    "KVM_SET_NR_MMU_PAGES", io(0x44), _VM, _VALUE, cap=Cap.MMU_SHADOW_CACHE_CONTROL)
KVM_SET_TSS_ADDR: Final = Ioctl("KVM_SET_TSS_ADDR", io(0x47), _VM, _VALUE, cap=Cap.SET_TSS_ADDR, note="a gpa")
KVM_SET_IDENTITY_MAP_ADDR: Final = Ioctl(
    "KVM_SET_IDENTITY_MAP_ADDR", iow(0x48, u64), _VM, _IN, u64, cap=Cap.SET_IDENTITY_MAP_ADDR, note=_STATE_FIRST)

# VM: interrupts
KVM_CREATE_IRQCHIP: Final = Ioctl("KVM_CREATE_IRQCHIP", io(0x60), _VM, _NONE, cap=Cap.IRQCHIP)
KVM_GET_IRQCHIP: Final = Ioctl(
    "KVM_GET_IRQCHIP", iowr(0x62, irqchip.Irqchip), _VM, _INOUT, irqchip.Irqchip, cap=Cap.IRQCHIP)
KVM_SET_IRQCHIP: Final = Ioctl(
    "KVM_SET_IRQCHIP", ior(0x63, irqchip.Irqchip), _VM, _IN, irqchip.Irqchip, cap=Cap.IRQCHIP, note="_IOR, but read")
KVM_IRQ_LINE: Final = Ioctl(
    "KVM_IRQ_LINE", iow(0x61, irqchip.IrqLevel), _VM, _IN, irqchip.IrqLevel, cap=Cap.IRQCHIP)
KVM_IRQ_LINE_STATUS: Final = Ioctl(
    "KVM_IRQ_LINE_STATUS", iowr(0x67, irqchip.IrqLevel), _VM, _INOUT, irqchip.IrqLevel, cap=Cap.IRQ_INJECT_STATUS)
KVM_CREATE_PIT: Final = Ioctl("KVM_CREATE_PIT", io(0x64), _VM, _NONE, cap=Cap.PIT)
KVM_CREATE_PIT2: Final = Ioctl(
    "KVM_CREATE_PIT2", iow(0x77, irqchip.PitConfig), _VM, _IN, irqchip.PitConfig, cap=Cap.PIT2)
KVM_GET_PIT: Final = Ioctl(
    "KVM_GET_PIT", iowr(0x65, irqchip.PitState), _VM, _INOUT, irqchip.PitState, cap=Cap.PIT)
KVM_SET_PIT: Final = Ioctl(
    "KVM_SET_PIT", ior(0x66, irqchip.PitState), _VM, _IN, irqchip.PitState, cap=Cap.PIT, note="_IOR, but read")
KVM_GET_PIT2: Final = Ioctl(
    "KVM_GET_PIT2", ior(0x9F, irqchip.PitState2), _VM, _OUT, irqchip.PitState2, cap=Cap.PIT_STATE2)
KVM_SET_PIT2: Final = Ioctl(
    "KVM_SET_PIT2", iow(0xA0, irqchip.PitState2), _VM, _IN, irqchip.PitState2, cap=Cap.PIT_STATE2)
KVM_REINJECT_CONTROL: Final = Ioctl(
    "KVM_REINJECT_CONTROL", io(0x71), _VM, _IN, irqchip.ReinjectControl,
    cap=Cap.REINJECT_CONTROL, note="_IO, but reads a struct")
KVM_SET_GSI_ROUTING: Final = Ioctl(
    "KVM_SET_GSI_ROUTING", iow(0x6A, routing.IrqRouting), _VM, _IN, routing.IrqRouting,
    Tail("entries", routing.IrqRoutingEntry, "nr"), cap=Cap.IRQ_ROUTING)
KVM_IRQFD: Final = Ioctl(
    "KVM_IRQFD", iow(0x76, routing.Irqfd), _VM, _IN, routing.Irqfd, cap=Cap.IRQFD, fds=("fd", "resamplefd"))
KVM_IOEVENTFD: Final = Ioctl(
    "KVM_IOEVENTFD", iow(0x79, routing.Ioeventfd), _VM, _IN, routing.Ioeventfd, cap=Cap.IOEVENTFD, fds=("fd",))
KVM_SIGNAL_MSI: Final = Ioctl(
    "KVM_SIGNAL_MSI", iow(0xA5, routing.Msi), _VM, _IN, routing.Msi, result=Result.VALUE, cap=Cap.SIGNAL_MSI,
    note="returns how many vCPUs it was delivered to")

# VM: the rest
KVM_SET_BOOT_CPU_ID: Final = Ioctl("KVM_SET_BOOT_CPU_ID", io(0x78), _VM, _VALUE, cap=Cap.SET_BOOT_CPU_ID)
KVM_SET_CLOCK: Final = Ioctl("KVM_SET_CLOCK", iow(0x7B, vm.ClockData), _VM, _IN, vm.ClockData, cap=Cap.ADJUST_CLOCK)
KVM_GET_CLOCK: Final = Ioctl("KVM_GET_CLOCK", ior(0x7C, vm.ClockData), _VM, _OUT, vm.ClockData, cap=Cap.ADJUST_CLOCK)
KVM_X86_SET_MSR_FILTER: Final = Ioctl(
    "KVM_X86_SET_MSR_FILTER", iow(0xC6, msrs.MsrFilter), _VM, _IN, msrs.MsrFilter,
    cap=Cap.X86_MSR_FILTER, addresses=tuple(f"ranges[{i}].bitmap" for i in range(msrs.KVM_MSR_FILTER_MAX_RANGES)))
KVM_SET_PMU_EVENT_FILTER: Final = Ioctl(
    "KVM_SET_PMU_EVENT_FILTER", iow(0xB2, vm.PmuEventFilter), _VM, _IN, vm.PmuEventFilter,
    Tail("events", u64, "nevents"), cap=Cap.PMU_EVENT_FILTER)
KVM_CREATE_DEVICE: Final = Ioctl(
    "KVM_CREATE_DEVICE", iowr(0xE0, vm.CreateDevice), _VM, _INOUT, vm.CreateDevice,
    cap=Cap.DEVICE_CTRL, note="the new fd is written to .fd")
KVM_MEMORY_ENCRYPT_OP: Final = Ioctl(
    "KVM_MEMORY_ENCRYPT_OP", iowr(0xBA, u64), _VM, _INOUT, sev.SevCmd, addresses=("data",), fds=("sev_fd",),
    note="_IOWR of an unsigned long, but points to a struct; error is written on failure too")
KVM_MEMORY_ENCRYPT_REG_REGION: Final = Ioctl(
    "KVM_MEMORY_ENCRYPT_REG_REGION", ior(0xBB, vm.EncRegion), _VM, _IN, vm.EncRegion,
    addresses=("addr",), note="_IOR, but read")
KVM_MEMORY_ENCRYPT_UNREG_REGION: Final = Ioctl(
    "KVM_MEMORY_ENCRYPT_UNREG_REGION", ior(0xBC, vm.EncRegion), _VM, _IN, vm.EncRegion,
    addresses=("addr",), note="_IOR, but read")
KVM_HYPERV_EVENTFD: Final = Ioctl(
    "KVM_HYPERV_EVENTFD", iow(0xBD, hyperv.HypervEventfd), _VM, _IN, hyperv.HypervEventfd,
    cap=Cap.HYPERV_EVENTFD, fds=("fd",))
KVM_XEN_HVM_CONFIG: Final = Ioctl(
    "KVM_XEN_HVM_CONFIG", iow(0x7A, xen.XenHvmConfig), _VM, _IN, xen.XenHvmConfig,
    cap=Cap.XEN_HVM, addresses=("blob_addr_32", "blob_addr_64"))
KVM_XEN_HVM_GET_ATTR: Final = Ioctl(
    "KVM_XEN_HVM_GET_ATTR", iowr(0xC8, xen.XenHvmAttr), _VM, _INOUT, xen.XenHvmAttr, cap=Cap.XEN_HVM)
KVM_XEN_HVM_SET_ATTR: Final = Ioctl(
    "KVM_XEN_HVM_SET_ATTR", iow(0xC9, xen.XenHvmAttr), _VM, _IN, xen.XenHvmAttr,
    cap=Cap.XEN_HVM, fds=("u.evtchn.deliver.eventfd.fd",))
KVM_XEN_HVM_EVTCHN_SEND: Final = Ioctl(
    "KVM_XEN_HVM_EVTCHN_SEND", iow(0xD0, routing.IrqRoutingXenEvtchn), _VM, _IN, routing.IrqRoutingXenEvtchn,
    cap=Cap.XEN_HVM)

# vCPU: running
KVM_RUN: Final = Ioctl("KVM_RUN", io(0x80), _VCPU, _ZERO, note="the rest is in struct kvm_run")
KVM_SET_SIGNAL_MASK: Final = Ioctl(
    "KVM_SET_SIGNAL_MASK", iow(0x8B, vcpu.SignalMask), _VCPU, _IN, vcpu.SignalMask, Tail("sigset", u8, "len"),
    note="address 0: no mask")
KVM_INTERRUPT: Final = Ioctl("KVM_INTERRUPT", iow(0x86, vcpu.Interrupt), _VCPU, _IN, vcpu.Interrupt)
KVM_NMI: Final = Ioctl("KVM_NMI", io(0x9A), _VCPU, _NONE, cap=Cap.USER_NMI)
KVM_SMI: Final = Ioctl("KVM_SMI", io(0xB7), _VCPU, _NONE, cap=Cap.X86_SMM)
KVM_SET_GUEST_DEBUG: Final = Ioctl(
    "KVM_SET_GUEST_DEBUG", iow(0x9B, debug.GuestDebug), _VCPU, _IN, debug.GuestDebug, cap=Cap.SET_GUEST_DEBUG)
KVM_TRANSLATE: Final = Ioctl("KVM_TRANSLATE", iowr(0x85, vcpu.Translation), _VCPU, _INOUT, vcpu.Translation)
KVM_PRE_FAULT_MEMORY: Final = Ioctl(
    "KVM_PRE_FAULT_MEMORY", iowr(0xD5, memory.PreFaultMemory), _VCPU, _INOUT, memory.PreFaultMemory,
    cap=Cap.PRE_FAULT_MEMORY, note="written on failure too: what is left of the range")
KVM_KVMCLOCK_CTRL: Final = Ioctl("KVM_KVMCLOCK_CTRL", io(0xAD), _VCPU, _NONE, cap=Cap.KVMCLOCK_CTRL)

# vCPU: state
KVM_GET_REGS: Final = Ioctl("KVM_GET_REGS", ior(0x81, vcpu.Regs), _VCPU, _OUT, vcpu.Regs)
KVM_SET_REGS: Final = Ioctl("KVM_SET_REGS", iow(0x82, vcpu.Regs), _VCPU, _IN, vcpu.Regs)
KVM_GET_SREGS: Final = Ioctl("KVM_GET_SREGS", ior(0x83, vcpu.Sregs), _VCPU, _OUT, vcpu.Sregs)
KVM_SET_SREGS: Final = Ioctl("KVM_SET_SREGS", iow(0x84, vcpu.Sregs), _VCPU, _IN, vcpu.Sregs)
KVM_GET_SREGS2: Final = Ioctl("KVM_GET_SREGS2", ior(0xCC, vcpu.Sregs2), _VCPU, _OUT, vcpu.Sregs2, cap=Cap.SREGS2)
KVM_SET_SREGS2: Final = Ioctl(
    "KVM_SET_SREGS2", iow(0xCD, vcpu.Sregs2), _VCPU, _IN, vcpu.Sregs2, cap=Cap.SREGS2, note=_STATE_FIRST)
KVM_GET_FPU: Final = Ioctl("KVM_GET_FPU", ior(0x8C, fpu.Fpu), _VCPU, _OUT, fpu.Fpu)
KVM_SET_FPU: Final = Ioctl("KVM_SET_FPU", iow(0x8D, fpu.Fpu), _VCPU, _IN, fpu.Fpu)
KVM_GET_XSAVE: Final = Ioctl(
    "KVM_GET_XSAVE", ior(0xA4, fpu.Xsave), _VCPU, _OUT, fpu.Xsave, cap=Cap.XSAVE,
    note="EINVAL if the state is larger than the struct")
KVM_SET_XSAVE: Final = Ioctl(
    "KVM_SET_XSAVE", iow(0xA5, fpu.Xsave), _VCPU, _IN, fpu.Xsave, cap=Cap.XSAVE,
    note="as long as KVM_CAP_XSAVE2 says")
KVM_GET_XSAVE2: Final = Ioctl(
    "KVM_GET_XSAVE2", ior(0xCF, fpu.Xsave), _VCPU, _OUT, fpu.Xsave, cap=Cap.XSAVE2,
    note="as long as KVM_CAP_XSAVE2 says")
KVM_GET_XCRS: Final = Ioctl("KVM_GET_XCRS", ior(0xA6, fpu.Xcrs), _VCPU, _OUT, fpu.Xcrs, cap=Cap.XCRS)
KVM_SET_XCRS: Final = Ioctl("KVM_SET_XCRS", iow(0xA7, fpu.Xcrs), _VCPU, _IN, fpu.Xcrs, cap=Cap.XCRS)
KVM_GET_DEBUGREGS: Final = Ioctl(
    "KVM_GET_DEBUGREGS", ior(0xA1, debug.Debugregs), _VCPU, _OUT, debug.Debugregs, cap=Cap.DEBUGREGS)
KVM_SET_DEBUGREGS: Final = Ioctl(
    "KVM_SET_DEBUGREGS", iow(0xA2, debug.Debugregs), _VCPU, _IN, debug.Debugregs, cap=Cap.DEBUGREGS)
KVM_GET_VCPU_EVENTS: Final = Ioctl(
    "KVM_GET_VCPU_EVENTS", ior(0x9F, vcpu.VcpuEvents), _VCPU, _OUT, vcpu.VcpuEvents, cap=Cap.VCPU_EVENTS)
KVM_SET_VCPU_EVENTS: Final = Ioctl(
    "KVM_SET_VCPU_EVENTS", iow(0xA0, vcpu.VcpuEvents), _VCPU, _IN, vcpu.VcpuEvents, cap=Cap.VCPU_EVENTS)
KVM_GET_MP_STATE: Final = Ioctl(
    "KVM_GET_MP_STATE", ior(0x98, vcpu.MpState), _VCPU, _OUT, vcpu.MpState, cap=Cap.MP_STATE)
KVM_SET_MP_STATE: Final = Ioctl(
    "KVM_SET_MP_STATE", iow(0x99, vcpu.MpState), _VCPU, _IN, vcpu.MpState, cap=Cap.MP_STATE)
KVM_SET_MSRS: Final = Ioctl(
    "KVM_SET_MSRS", iow(0x89, msrs.Msrs), _VCPU, _IN, msrs.Msrs, _MSRS_TAIL, Result.COUNT)
KVM_SET_CPUID: Final = Ioctl(
    "KVM_SET_CPUID", iow(0x8A, cpuid.Cpuid), _VCPU, _IN, cpuid.Cpuid, Tail("entries", cpuid.CpuidEntry, "nent"))
KVM_SET_CPUID2: Final = Ioctl(
    "KVM_SET_CPUID2", iow(0x90, cpuid.Cpuid2), _VCPU, _IN, cpuid.Cpuid2, _CPUID_TAIL, cap=Cap.EXT_CPUID)
KVM_GET_CPUID2: Final = Ioctl(
    "KVM_GET_CPUID2", iowr(0x91, cpuid.Cpuid2), _VCPU, _INOUT, cpuid.Cpuid2, _CPUID_TAIL,
    cap=Cap.EXT_CPUID)
KVM_GET_LAPIC: Final = Ioctl(
    "KVM_GET_LAPIC", ior(0x8E, apic.LapicState), _VCPU, _OUT, apic.LapicState, cap=Cap.IRQCHIP)
KVM_SET_LAPIC: Final = Ioctl(
    "KVM_SET_LAPIC", iow(0x8F, apic.LapicState), _VCPU, _IN, apic.LapicState, cap=Cap.IRQCHIP, note=_STATE_FIRST)
KVM_TPR_ACCESS_REPORTING: Final = Ioctl(
    "KVM_TPR_ACCESS_REPORTING", iowr(0x92, apic.TprAccessCtl), _VCPU, _INOUT, apic.TprAccessCtl, cap=Cap.VAPIC)
KVM_SET_VAPIC_ADDR: Final = Ioctl(
    "KVM_SET_VAPIC_ADDR", iow(0x93, apic.VapicAddr), _VCPU, _IN, apic.VapicAddr, cap=Cap.VAPIC, note=_STATE_FIRST)
KVM_X86_SETUP_MCE: Final = Ioctl("KVM_X86_SETUP_MCE", iow(0x9C, u64), _VCPU, _IN, u64, cap=Cap.MCE)
KVM_X86_SET_MCE: Final = Ioctl("KVM_X86_SET_MCE", iow(0x9E, debug.X86Mce), _VCPU, _IN, debug.X86Mce, cap=Cap.MCE)
KVM_GET_NESTED_STATE: Final = Ioctl(
    "KVM_GET_NESTED_STATE", iowr(0xBE, nested.NestedState), _VCPU, _INOUT, nested.NestedState, _NESTED_TAIL,
    cap=Cap.NESTED_STATE, note="E2BIG if there is not room, with size written")
KVM_SET_NESTED_STATE: Final = Ioctl(
    "KVM_SET_NESTED_STATE", iow(0xBF, nested.NestedState), _VCPU, _IN, nested.NestedState, _NESTED_TAIL,
    cap=Cap.NESTED_STATE)
KVM_XEN_VCPU_GET_ATTR: Final = Ioctl(
    "KVM_XEN_VCPU_GET_ATTR", iowr(0xCA, xen.XenVcpuAttr), _VCPU, _INOUT, xen.XenVcpuAttr, cap=Cap.XEN_HVM)
KVM_XEN_VCPU_SET_ATTR: Final = Ioctl(
    "KVM_XEN_VCPU_SET_ATTR", iow(0xCB, xen.XenVcpuAttr), _VCPU, _IN, xen.XenVcpuAttr, cap=Cap.XEN_HVM)
# fmt: on

ALL: Final[tuple[Ioctl, ...]] = tuple(row for row in list(globals().values()) if isinstance(row, Ioctl))
BY_NAME: Final = {row.name: row for row in ALL}
_BY_FD: Final = {fd: {row.number: row for row in ALL if fd in row.on} for fd in Fd}

UNKNOWN: Final = {
    Fd.SYSTEM: errno.EINVAL,
    Fd.VM: errno.ENOTTY,
    Fd.VCPU: errno.EINVAL,
    Fd.DEVICE: errno.ENOTTY,
}
"""What the kernel answers to a number that it does not know."""


def lookup(fd: Fd, number: int) -> Ioctl | None:
    """The ioctl that ``number`` means on this kind of fd, or None."""
    return _BY_FD[fd].get(number)
