"""The vCPU block: all state of one virtual CPU, as byte offsets from its base address.

The block is 64-byte aligned. Words are 64 bits unless a size is given. Segment registers, control registers and MSRs
hold the architectural values (Intel SDM vol. 3 ch. 2 and 3); what is derived from them for speed is marked so.
"""

from .layout import Layout

_l = Layout()

# General registers (SDM vol. 1, 3.4), in ModRM order: RAX RCX RDX RBX RSP RBP RSI RDI R8..R15
GPR = _l.u64(16)
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = (GPR + 8 * i for i in range(8))
ZERO = _l.u64()  # always 0: the base or index of an address that has none
RIP = _l.u64()  # the instruction to execute; within a block only BLOCK_RIP and the record know
BLOCK_RIP = _l.u64()  # linear-less RIP of the running block's first instruction

# Arithmetic flags, lazily (cpu/flags.py): ZF and SF from the result, PF from its low byte, the rest in AUX.
FLAG_RESULT = _l.u64()
FLAG_AUX = _l.u64()
RFLAGS = _l.u64()  # all other flags; bit 1 is set, the six arithmetic bits are 0 here

LEAVE = _l.u64()  # why a handler returned 0 (LEAVE_* below)
REQUEST = _l.u64()  # bits set atomically by other threads (REQ_* below), looked at between blocks
MODE = _l.u64()  # 1 while this thread may hold translations (in guest), else 0; seq_cst
TLB = _l.u64()  # derived: address of the TLB for the current privilege (mmu/tlb.py)
FUNCTIONS = _l.u64()  # address of the function table (build.py)
VM = _l.u64()  # address of the VM block (mmu/layout.py)
CODE_PAGE = _l.u64()  # host address of the page that the running block came from (stores to it end the block)
CODE_PAGE2 = _l.u64()  # its second page when a block crosses one, else the same

# Derived mode bits: key of decoded blocks (MODE_* below)
HFLAGS = _l.u64()
CPL = _l.u64()

# Scratch operands: 64 bytes each, addressed by records like registers
TEMP = _l.bytes(64 * 4, align=64)
T0, T1, T2, T3 = (TEMP + 64 * i for i in range(4))

# A read-modify-write in progress (cpu/memory.py): where its operand lies on the host, or how to write it back
RMW_HOST = _l.u64()  # host address, 0: not directly reachable
RMW_LINEAR = _l.u64()
RMW_OLD = _l.bytes(16)
RMW_FLAGS = _l.u64(2)  # FLAG_RESULT, FLAG_AUX before the operation, for a retried locked instruction
RMW_SAVED = _l.u64(2)  # RAX and the source register before it

# Segment registers: ES CS SS DS FS GS LDTR TR, each {selector, base, limit in bytes (inclusive), attributes}
# Attributes: bits 40..55 of the descriptor moved down (type 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13, D/B 14, G 15),
# bit 16: unusable.
SEGMENTS = _l.u64(8 * 4)
SEGMENT_SIZE = 32
SEL, BASE, LIMIT, ATTR = 0, 8, 16, 24
ES, CS, SS, DS, FS, GS, LDTR, TR = (SEGMENTS + SEGMENT_SIZE * i for i in range(8))
GDTR_BASE, GDTR_LIMIT, IDTR_BASE, IDTR_LIMIT = (_l.u64() for _ in range(4))

CR0, CR2, CR3, CR4, CR8, XCR0 = (_l.u64() for _ in range(6))
PDPTE = _l.u64(4)  # PAE paging walks these registers, loaded with CR3 (mmu/walk.py load_pdptes), not memory
DR = _l.u64(4)
DR6, DR7 = _l.u64(), _l.u64()

# What the processor compares with (breakpoint.py): DR and DR7, or the embedder's while it debugs the guest
BREAK_ADDRESS = _l.u64(4)
BREAK_CONTROL = _l.u64()
BREAK_CODE, BREAK_DATA = _l.u64(), _l.u64()  # derived: 1 while a breakpoint on code, on data is armed
BREAK_HITS = _l.u64()  # DR6 bits of the breakpoints that the instruction being executed has met
STEP_TRAP = _l.u64()  # TF was set when it began, and it has not called a handler
HELD_DEBUG = _l.u64()  # DR6 bits that wait for the end of a MOV SS shadow
DEBUGGER = _l.u64()  # DEBUG_* below: what the embedder wants of a guest that it debugs; see SINGLE_STEP too
DEBUG_DUE = _l.u64()  # DR6 bits of an EXIT_DEBUG to come before the next instruction

# MSRs that guest execution itself reads or writes; the rest is the embedder's business (exits RDMSR, WRMSR)
EFER, STAR, LSTAR, CSTAR, SFMASK, KERNEL_GS_BASE = (_l.u64() for _ in range(6))
SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP = (_l.u64() for _ in range(3))
TSC_AUX, TSC_OFFSET, TSC_RATIO = (_l.u64() for _ in range(3))  # guest TSC = host TSC * ratio >> 32, + offset
APIC_BASE, PAT, XSS, MISC_ENABLE = (_l.u64() for _ in range(4))
PKRU = _l.u64()

# What the guest may use, derived from CPUID by the embedder (feature.* in cpu/features.py)
FEATURES = _l.u64(4)
MAXPHYADDR = _l.u64()
CPUID_ENTRIES = _l.u64()  # address of records {u32 function, index, flags, eax, ebx, ecx, edx, pad[3]}
CPUID_COUNT = _l.u64()
MSR_EXITS = _l.u64()  # 1: every RDMSR and WRMSR is the embedder's business (an MSR filter is set)
CR4_RESERVED, EFER_RESERVED, XCR0_SUPPORTED = (_l.u64() for _ in range(3))
IS_AMD = _l.u64()  # 1: the guest's CPUID says AMD or Hygon, where processors differ by vendor
PERSONALITY = _l.u64()  # PERSONALITY_* below

# FPU and vector state (XSAVE components 0..2 and room for AVX-512)
FX = _l.bytes(512, align=64)  # an FXSAVE image for the host's x87 unit (cpu/x87_unit.py); what counts in it:
FCW, FSW, FTW = FX, FX + 2, FX + 4  # u16, u16, and u8 abridged: bit set = register in use
ST = FX + 32  # from the top of the stack, 80 bits in 16 bytes; MMX registers when TOP is 0
FOP, FIP, FDP, FCS, FDS = (_l.u64() for _ in range(5))  # of the last instruction that was not a control instruction
MXCSR = _l.u64()
VEC = _l.bytes(64 * 32, align=64)  # ZMM0..31; XMMn is the low 16 bytes

IMAGE = _l.bytes(1024, align=64)  # an FXSAVE or XSAVE image in the making

# A far transfer in the making (cpu/gate.py, cpu/task.py): where it leads, and the frame or TSS image on its way
NEW_CS, NEW_SS = _l.u64(4), _l.u64(4)  # records as in SEGMENTS
NEW_RIP, NEW_RSP = _l.u64(), _l.u64()
FRAME = _l.bytes(192, align=64)

# An exception being raised (cpu/exception.py), and events as struct kvm_vcpu_events has them
EXC_VECTOR, EXC_ERROR, EXC_HAS_ERROR, EXC_PAYLOAD = (_l.u64() for _ in range(4))
EXC_PAYLOAD_USE = _l.u64()  # whether EXC_PAYLOAD is for CR2 or DR6: PAYLOAD_* below; for the embedder to say
EXC_PENDING = _l.u64()  # 1: EXC_* is to be delivered before the next instruction
EXC_INJECTED = _l.u64()  # 1: EXC_* was being delivered when the run ended
INTR_INJECTED, INTR_VECTOR, INTR_SOFT, INTR_SHADOW = (_l.u64() for _ in range(4))  # shadow: 1 STI, 2 MOV SS
NMI_INJECTED, NMI_PENDING, NMI_MASKED = (_l.u64() for _ in range(3))
INTR_REQUEST = _l.u64()  # vector + 1 of an external interrupt to deliver when IF allows, else 0
IRQ_WINDOW = _l.u64()  # embedder wants EXIT_IRQ_WINDOW when an interrupt could be taken (with REQ_EVENT)
SHADOW_SET = _l.u64()  # this instruction set INTR_SHADOW
SINGLE_STEP = _l.u64()  # embedder wants an exit after each instruction

# The exit: why run() returned (EXIT_* below) and its details
EXIT = _l.u64()
EXIT_ARGS = _l.u64(8)
INSN_BYTES = _l.bytes(16)  # bytes of the instruction that could not be emulated
INSN_LENGTH = _l.u64()

# I/O in flight. Data of port I/O and of MMIO, and where to go on.
PIO_PORT, PIO_SIZE, PIO_COUNT, PIO_IN = (_l.u64() for _ in range(4))
PIO_DATA = _l.bytes(4096, align=64)
PIO_STATE = _l.u64()  # IO_* below
PIO_STRING, PIO_RIP = _l.u64(), _l.u64()  # it is INS; RIP at the exit
MMIO_GPA, MMIO_SIZE, MMIO_STATE = (_l.u64() for _ in range(3))
MMIO_DATA = _l.bytes(8)
MMIO_WRITES = _l.u64()  # number of queued write fragments {gpa, size, data}, reported one exit each
MMIO_QUEUE = _l.bytes(24 * 64)
MMIO_READS = _l.u64()  # completed read fragments {gpa, size, data} of the instruction being re-executed
MMIO_CACHE = _l.bytes(24 * 64)
MMIO_USED = _l.u64()  # how many of them this attempt has consumed; 0 at the start of each attempt
MMIO_LIMIT = 64  # fragments in each of the two

# Address translation results (mmu/)
XLAT_GPA = _l.u64()
XLAT_KIND = _l.u64()
XLAT_CLIENT = _l.u64()  # client address, for remote memory
FAULT_GPA, FAULT_SIZE, FAULT_FLAGS, FAULT_ERRNO = (_l.u64() for _ in range(4))
XLAT_LINEAR = _l.u64()  # what is being translated; NOT_LINEAR while it is a guest-physical address
XLAT_WATCHED = _l.u64()  # the embedder wants to see each access to this page: it stays out of the TLB
LOG_SINCE, LOG_SLOT = _l.u64(), _l.u64()  # of what is to be logged: host TSC at its beginning; slot id + 1, 0: none
SLOT_HINT, ATTRIBUTE_HINT = _l.u64(), _l.u64()  # where the last lookups ended, as table indices
WALK_GPA, WALK_PTE = _l.u64(6), _l.u64(6)  # paging-structure entries that the walk used, by level (1: PTE)
WALK_TOP, WALK_LEAF = _l.u64(), _l.u64()  # levels where it began and ended
PIECES = _l.u64(2 * 2)  # an access in one or two pages: {XLAT_KIND, host address or gpa or client address}
BOUNCE = _l.bytes(4096, align=64)  # assembles reads that are not one piece of host memory

# The decoded-code cache (cpu/block.py) and the TLBs (mmu/tlb.py)
BLOCK_TABLE, BLOCK_ARENA, BLOCK_NEXT, BLOCK_END = (_l.u64() for _ in range(4))
TLB_BASE = _l.u64()
TLB_GENERATION = _l.u64()

OPCODES = _l.u64()  # address of the compiled opcode tables (cpu/optable.py)
# The decoder's working words (cpu/decode.py, cpu/emit.py)
D_BYTES, D_CURSOR, D_LIMIT, D_SHORT = (_l.u64() for _ in range(4))  # guest bytes, position, how many, ran out
D_START, D_RECORD = _l.u64(), _l.u64()
D_OPCODE, D_PREFIX, D_REX, D_OSIZE, D_ASIZE, D_REP, D_LOCK, D_SEGMENT = (_l.u64() for _ in range(8))
D_MODRM, D_MOD, D_REG, D_RM = (_l.u64() for _ in range(4))
D_BASE, D_INDEX, D_SCALE, D_DISP, D_SEG_PTR, D_STACK, D_RIP_RELATIVE = (_l.u64() for _ in range(7))
D_IMM, D_FIRST = _l.u64(), _l.u64()
D_VEX, D_VVVV, D_LENGTH, D_VSIB = (_l.u64() for _ in range(4))  # a VEX prefix, its vvvv and L; the index is a vector
REMOTE_CODE = _l.u64()  # two pages of scratch: code that lies in remote memory is copied here before it is decoded

# Counters
INSTRUCTIONS, EXITS, TLB_MISSES, BLOCKS_DECODED = (_l.u64() for _ in range(4))
EXCEPTIONS_TAKEN, IRQS_TAKEN, HALTS, FAULTS = (_l.u64() for _ in range(4))
NMIS_TAKEN = _l.u64()
TLB_FLUSHES = _l.u64()  # because translations changed under the guest
VCPU_INDEX = _l.u64()
EMBEDDER = _l.bytes(512, align=64)  # kvmfs's own words

SIZE = (_l.size + 4095) & -4096

NOT_LINEAR = -1

# LEAVE: why a handler ended its block.
LEAVE_NEXT = 0  # RIP is set, go on there
LEAVE_EXCEPTION = 1  # EXC_* is set, RIP is that of the instruction (fault) or past it (trap)
LEAVE_EXIT = 2  # EXIT and its arguments are set
LEAVE_RETRY = 3  # execute the same instruction again (translations changed under it)

# REQUEST bits.
REQ_TLB_FLUSH = 1  # drop all translations, then acknowledge by clearing the bit
REQ_STOP = 2  # leave run() with EXIT_INTERRUPTED at the next instruction boundary
REQ_EVENT = 4  # an event (interrupt, NMI, ...) may be deliverable
REQ_KICK = 8  # leave run() with EXIT_KICKED at the next instruction boundary: the embedder has something to do
REQ_DEBUG = 16  # BREAK_HITS is to be looked at before the next instruction (set by the vCPU's own thread)

# EXIT: why run() returned, and EXIT_ARGS.
EXIT_NONE = 0
EXIT_PIO = 1  # PIO_*
EXIT_MMIO_READ = 2  # MMIO_GPA, MMIO_SIZE
EXIT_MMIO_WRITE = 3  # MMIO_GPA, MMIO_SIZE, MMIO_DATA
EXIT_HLT = 4
EXIT_SHUTDOWN = 5  # triple fault
EXIT_MEMORY_FAULT = 6  # FAULT_GPA, FAULT_SIZE, FAULT_FLAGS, FAULT_ERRNO
EXIT_EFAULT = 7  # FAULT_ERRNO without fault information
EXIT_RDMSR = 8  # args: index; answer in RAX, RDX, or raise #GP
EXIT_WRMSR = 9  # args: index, value
EXIT_EMULATION_FAILURE = 10  # INSN_BYTES, INSN_LENGTH: an instruction, or its operand, that KVM's emulator fails on
EXIT_INTERRUPTED = 11  # REQ_STOP
EXIT_IRQ_WINDOW = 12  # the guest can take an interrupt now
EXIT_DEBUG = 13  # args: exception, dr6, dr7, pc
EXIT_HYPERCALL = 14  # VMCALL/VMMCALL; registers tell
EXIT_CR8 = 15  # args: new value
EXIT_KICKED = 16  # REQ_KICK

# DEBUGGER bits.
DEBUG_HARDWARE = 1  # BREAK_ADDRESS and BREAK_CONTROL are the embedder's, and so is every #DB
DEBUG_SOFTWARE = 2  # INT3 is an EXIT_DEBUG
DEBUG_BLOCK_IRQS = 4  # no external interrupt is delivered

# EXC_PAYLOAD_USE
PAYLOAD_BY_VECTOR = 0  # #PF and #DB have one: what the processor raised itself
PAYLOAD_APPLIES = 1
PAYLOAD_DONE = 2  # CR2 or DR6 has it already, or there is none

# PERSONALITY bits: the hypercall instruction that the embedder knows, and what the others do.
PERSONALITY_VMMCALL = 1  # VMMCALL (AMD), else VMCALL (Intel)
PERSONALITY_PATCHES = 2  # the other one is overwritten with it; else #UD
PERSONALITY_MWAIT = 4  # MONITOR and MWAIT do nothing even if CPUID does not have them; else #UD

# HFLAGS bits: what decoding and translation depend on.
MODE_CODE64 = 1
MODE_CODE32 = 2  # CS.D
MODE_STACK32 = 4  # SS.B
MODE_LONG = 8  # EFER.LMA
MODE_PROTECTED = 16
MODE_V86 = 32
MODE_PAGING = 64
MODE_USER = 256  # CPL 3
MODE_STEP = 512  # one instruction a block
MODE_TS = 1024  # CR0.TS: vector instructions raise #NM
MODE_NO_SSE = 2048  # CR0.EM or not CR4.OSFXSR: they raise #UD
MODE_NO_AVX = 4096  # not CR4.OSXSAVE, or XCR0 without SSE or AVX: VEX-encoded ones raise #UD
MODE_UNPRIVILEGED = 8192  # CPL is not 0
MODE_BREAK = 16384  # a breakpoint on code is armed: blocks of its page are stepped through
MODE_SLOW = MODE_STEP | MODE_BREAK
MODE_EM = 32768  # CR0.EM: x87 instructions raise #NM, MMX ones #UD

# PIO_STATE and MMIO_STATE.
IO_NONE = 0
IO_PENDING = 1  # exit reported, answer awaited
IO_DONE = 2  # answer is there

# Arithmetic flag bits of RFLAGS, and others by their SDM names
CF, PF, AF, ZF, SF, TF, IF, DF, OF = 1, 4, 16, 64, 128, 256, 512, 1024, 2048
IOPL, NT, RF, VM86, AC, VIF, VIP, ID = 3 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21
ARITHMETIC = CF | PF | AF | ZF | SF | OF

CR0_PE, CR0_MP, CR0_EM, CR0_TS, CR0_ET, CR0_NE, CR0_WP, CR0_AM = 1, 2, 4, 8, 16, 32, 1 << 16, 1 << 18
CR0_NW, CR0_CD, CR0_PG = 1 << 29, 1 << 30, 1 << 31
CR4_VME, CR4_PVI, CR4_TSD, CR4_DE, CR4_PSE, CR4_PAE, CR4_MCE, CR4_PGE, CR4_PCE = (1 << i for i in range(9))
CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_UMIP, CR4_LA57, CR4_VMXE, CR4_SMXE = (1 << i for i in range(9, 15))
CR4_FSGSBASE, CR4_PCIDE, CR4_OSXSAVE = (1 << i for i in (16, 17, 18))
CR4_SMEP, CR4_SMAP, CR4_PKE = (1 << i for i in (20, 21, 22))
EFER_SCE, EFER_LME, EFER_LMA, EFER_NX, EFER_SVME, EFER_FFXSR = (1 << i for i in (0, 8, 10, 11, 12, 14))

DR6_BD, DR6_BS, DR6_BT, DR6_RTM = 1 << 13, 1 << 14, 1 << 15, 1 << 16
DR6_TRAPS, DR6_FIXED_1, DR6_ACTIVE_LOW = 0xF, 0xFFFE0FF0, 0xFFFF0FF0
DR7_GD = 1 << 13

# Exception vectors (SDM vol. 3, table 6-1)
DE, DB, NMI, BP, OF_TRAP, BR, UD, NM, DF_FAULT, _, TS, NP, SS_FAULT, GP, PF_FAULT, _, MF, AC_FAULT, MC, XM = range(20)
