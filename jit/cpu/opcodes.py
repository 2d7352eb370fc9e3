"""The opcode maps, as data: rows in the notation of the Intel SDM, vol. 2, appendix A.

A row is `[prefix.]opcode[/reg][m|r] mnemonic operands... [: attributes]`. Opcodes of a run are written `50+r` (register
in the low bits) or `70+cc` (condition in the low bits). `/reg` selects by the ModRM reg field, a trailing `m` or `r`
restricts to memory or register forms. A prefix (66, F3, F2, NP) is mandatory where given.

Operands: E ModRM r/m, G ModRM reg, I immediate, Z register in the opcode, A accumulator, D rDX, C CL, 1 the constant, J
branch offset, M memory whose address the handler uses itself, O absolute offset, S segment register, K control
register, T debug register, R the r/m field as a general register, V vector register, W vector r/m, U vector r/m
register, P, Q, N the same with MMX registers. Sizes: b w d q, v (operand size), y (4, or 8 with REX.W), z (2, or 4), x
(16 bytes), s (sign-extended byte).

Handlers are named mnemonic + width of the first operand; `@` in the mnemonic stands for that width and `%` for the
second operand's; with the attribute `bare` the mnemonic is the handler.

Attributes: w (first operand only written), r (only read; default is both), one (the operand is a source), lock (LOCK
allowed with a memory destination), end (ends the block), d64 (operand size 64 by default in 64-bit mode), f64 (always
64 there), no64 (#UD in 64-bit mode), o64 (there alone: another row has the opcode elsewhere), pm (#UD in real and
virtual-8086 mode), al (16-byte memory operand must be aligned), cpl0 (#GP unless CPL 0), mv (a plain
vector move), w16 (16 bits to memory, the operand size to a register), bit (a bit string in memory), xmem, popmem (a
handler of their own for the memory form), by2 (the second operand's width chooses the handler), noea (the operand is
decoded, not used), x87 (CR0.EM and CR0.TS forbid it, the record's SRC is FOP), ud (always #UD), mem (KVM's emulator
does not know it, so its operand cannot be MMIO), em (an x87, MMX or SSE instruction that it knows: the others are all
mem), has:NAME or has:NAME|NAME (#UD unless the guest has the feature, or one of two), else (without the feature, the
instruction is what its opcode is without the prefix). What is in no row is #UD.
"""

_ALU = ("add", "or", "adc", "sbb", "and", "sub", "xor", "cmp")
_SHIFT = ("rol", "ror", "rcl", "rcr", "shl", "shr", "shl", "sar")


def _alu_rows() -> str:
    rows = []
    for number, name in enumerate(_ALU):
        attributes = ": r" if name == "cmp" else ": lock"
        base = number * 8
        rows += [
            f"{base:02X} {name} Eb Gb {attributes}",
            f"{base + 1:02X} {name} Ev Gv {attributes}",
            f"{base + 2:02X} {name} Gb Eb {attributes}",
            f"{base + 3:02X} {name} Gv Ev {attributes}",
            f"{base + 4:02X} {name} Ab Ib {attributes}",
            f"{base + 5:02X} {name} Av Iz {attributes}",
            f"80/{number} {name} Eb Ib {attributes}",
            f"81/{number} {name} Ev Iz {attributes}",
            f"82/{number} {name} Eb Ib {attributes} no64",
            f"83/{number} {name} Ev Is {attributes}",
        ]
    for number, name in enumerate(_SHIFT):
        rows += [
            f"C0/{number} {name} Eb Ib",
            f"C1/{number} {name} Ev Ib",
            f"D0/{number} {name} Eb 1b",
            f"D1/{number} {name} Ev 1b",
            f"D2/{number} {name} Eb Cb",
            f"D3/{number} {name} Ev Cb",
        ]
    return "\n".join(rows)


ONE_BYTE = (
    _alu_rows()
    + """
06 push_es : bare end no64
07 pop_es : bare end no64
0E push_cs : bare end no64
16 push_ss : bare end no64
17 pop_ss : bare end no64
1E push_ds : bare end no64
1F pop_ds : bare end no64
27 daa : bare no64
2F das : bare no64
37 aaa : bare no64
3F aas : bare no64
40+r inc Zv : no64
48+r dec Zv : no64
50+r push Zv : r d64
58+r pop Zv : w d64
60 pusha : bare end no64
61 popa : bare no64
62m bound Gv M : bare no64 mem
63 movsx@_32 Gv Ed : w o64
63r arpl Ew Gw : bare no64 pm
63m arpl_mem M Gw : bare end no64 pm mem
68 push Iz : r d64
69 imul3_ Gv Ev Iz : w
6A push Is : r d64
6B imul3_ Gv Ev Is : w
6C insb : bare end
6D ins Xv : bare end
6E outsb : bare end
6F outs Xv : bare end
70+cc j Jb : bare end f64
84 test Eb Gb : r
85 test Ev Gv : r
86 xchg Eb Gb : xmem lock
87 xchg Ev Gv : xmem lock
88 mov Eb Gb : w
89 mov Ev Gv : w
8A mov Gb Eb : w
8B mov Gv Ev : w
8C mov_from_seg Ev Sw : bare w16
8C/6 no_seg Ev Sw : bare ud
8C/7 no_seg Ev Sw : bare ud
8D lea Gv M : w
8E mov_to_seg Ew Sw : bare one end
8E/1 mov_to_cs Ew Sw : bare ud
8E/6 no_seg Ew Sw : bare ud
8E/7 no_seg Ew Sw : bare ud
8F/0 pop Ev : w d64 popmem
90+r xchg Zv Av
98 cbw Av
99 cwd Av
9A call_far Iz Iw : bare end no64
9B fwait : bare
9C pushf : bare end d64
9D popf : bare end d64
9E sahf : bare o64 has:LAHF_LM
9E sahf : bare
9F lahf : bare o64 has:LAHF_LM
9F lahf : bare
A0 mov Ab Ob : w
A1 mov Av Ov : w
A2 mov Ob Ab : w
A3 mov Ov Av : w
A4 movs8 : bare end
A5 movs@ Xv : bare end
A6 cmps8 : bare end
A7 cmps@ Xv : bare end
A8 test Ab Ib : r
A9 test Av Iz : r
AA stos8 : bare end
AB stos@ Xv : bare end
AC lods8 : bare end
AD lods@ Xv : bare end
AE scas8 : bare end
AF scas@ Xv : bare end
B0+r mov Zb Ib : w
B8+r mov Zv Iv : w
C2 ret_imm Iw : bare end f64
C3 ret : bare end f64
C4m les Gv M : bare end no64
C5m lds Gv M : bare end no64
C6/0 mov Eb Ib : w
C7/0 mov Ev Iz : w
C8 enter_frame Iw Ib : bare end d64
C9 leave Av : d64 w
CA ret_far_imm Iw : bare end
CB ret_far : bare end
CC int3 : bare end
CD int_n Ib : bare end
CE into : bare end no64
CF iret : bare end
D4 aam Ib : bare no64
D5 aad Ib : bare no64
D6 salc : bare no64
D7 xlat : bare
E0 loopne Jb : bare end f64
E1 loope Jb : bare end f64
E2 loop Jb : bare end f64
E3 jrcxz Jb : bare end f64
E4 in8 Ib : bare end
E5 in_imm Ib : bare end
E6 out8 Ib : bare end
E7 out_imm Ib : bare end
E8 call_rel Jz : bare end f64
E9 jmp Jz : bare end f64
EA jmp_far Iz Iw : bare end no64
EB jmp Jb : bare end f64
EC in8 Dw : bare end
ED in_imm Dw : bare end
EE out8 Dw : bare end
EF out_imm Dw : bare end
F1 int1 : bare end
F4 hlt : bare end cpl0
F5 cmc : bare
F6/0 test Eb Ib : r
F6/1 test Eb Ib : r
F6/2 not Eb : lock
F6/3 neg Eb : lock
F6/4 mul Eb : one
F6/5 imul Eb : one
F6/6 div Eb : one
F6/7 idiv Eb : one
F7/0 test Ev Iz : r
F7/1 test Ev Iz : r
F7/2 not Ev : lock
F7/3 neg Ev : lock
F7/4 mul Ev : one
F7/5 imul Ev : one
F7/6 div Ev : one
F7/7 idiv Ev : one
F8 clc : bare
F9 stc : bare
FA cli : bare end
FB sti : bare end
FC cld : bare
FD std : bare
FE/0 inc Eb : lock
FE/1 dec Eb : lock
FF/0 inc Ev : lock
FF/1 dec Ev : lock
FF/2 call_ind Ev : bare one end f64
FF/3m call_far_mem M : bare end
FF/4 jmp_ind Ev : bare one end f64
FF/5m jmp_far_mem M : bare end
FF/6 push Ev : r d64
"""
)

TWO_BYTE = """
00/0 sldt Ev : bare w16 pm
00/1 str_ Ev : bare w16 pm
00/2 lldt Ew : bare one end cpl0 pm
00/3 ltr Ew : bare one end cpl0 pm
00/4 verr Ew : bare r pm mem
00/5 verw Ew : bare r pm mem
01/0m sgdt M : bare end
01/1m sidt M : bare end
01/2m lgdt M : bare end cpl0
01/3m lidt M : bare end cpl0
01/4 smsw Ev : bare w16
01/6 lmsw Ew : bare one end cpl0
01/7m invlpg M : bare end cpl0
01/0r vmx_group : bare end reg
01/1r monitor_group : bare end reg
NP.01/2r xgetbv_group : bare end reg
01/3r svm_group : bare end reg
NP.01/5r pkru_group : bare end reg
01/7r swapgs_group : bare end reg
02 lar Gv Ew : pm mem
03 lsl Gv Ew : pm mem
05 syscall : bare end has:SYSCALL
06 clts : bare end cpl0
07 sysret : bare end has:SYSCALL
08 barrier : bare end cpl0
09 barrier : bare end cpl0
0B ud2 : bare end
0D/0m nop M : bare
0D/1m nop M : bare
0D/2m nop M : bare
0D/3m nop M : bare
0D/4m nop M : bare
0D/5m nop M : bare
0D/6m nop M : bare
0D/7m nop M : bare
18 nop Ev : bare noea
19 nop Ev : bare noea
1A nop Ev : bare noea
1B nop Ev : bare noea
1C nop Ev : bare noea
1D nop Ev : bare noea
1E nop Ev : bare noea
1F nop Ev : bare noea
20 mov_from_cr Rq Kq : bare end cpl0
21 mov_from_dr Rq Tq : bare end cpl0
22 mov_to_cr Kq Rq : bare end cpl0
23 mov_to_dr Tq Rq : bare end cpl0
30 wrmsr : bare end cpl0 has:MSR
31 read_tsc : bare has:TSC
32 rdmsr : bare end cpl0 has:MSR
33 rdpmc : bare end
34 sysenter : bare end has:SEP
35 sysexit : bare end cpl0 has:SEP
40+cc cmov Gv Ev : has:CMOV
80+cc j Jz : bare end f64
90+cc set Eb : w
A0 push_fs : bare end d64
A1 pop_fs : bare end d64
A2 cpuid : bare end
A3 bt Ev Gv : r bit
A4 shld Ev Gv Ib
A5 shld Ev Gv Cb
A8 push_gs : bare end d64
A9 pop_gs : bare end d64
AA rsm : bare ud
AB bts Ev Gv : lock bit
AC shrd Ev Gv Ib
AD shrd Ev Gv Cb
NP.AE/0m fxsave M : bare end has:FXSR
NP.AE/1m fxrstor M : bare end has:FXSR
NP.AE/2m ldmxcsr M : bare end mem has:XMM
NP.AE/3m stmxcsr M : bare end mem has:XMM
NP.AE/4m xsave M : bare end mem has:XSAVE
NP.AE/5m xrstor M : bare end mem has:XSAVE
NP.AE/6m xsaveopt M : bare end mem has:XSAVEOPT
NP.AE/7m clflush M : bare has:CLFLUSH
F3.AE/0r rdfsbase Ry : bare
F3.AE/1r rdgsbase Ry : bare
F3.AE/2r wrfsbase Ry : bare end
F3.AE/3r wrgsbase Ry : bare end
NP.AE/5r barrier : bare has:XMM2
NP.AE/6r barrier : bare has:XMM2
NP.AE/7r barrier : bare has:XMM|MMXEXT
66.AE/6m clflush M : bare mem has:CLWB
66.AE/7m clflush M : bare has:CLFLUSHOPT else
AF imul2_ Gv Ev
B0 cmpxchg Eb Gb : lock
B1 cmpxchg Ev Gv : lock
B2 lss Gv M : bare end
B3 btr Ev Gv : lock bit
B4 lfs Gv M : bare end
B5 lgs Gv M : bare end
B6 movzx@_8 Gv Eb : w
B7 movzx@_16 Gv Ew : w
F3.B8 popcnt Gv Ev : w mem has:POPCNT
B9 ud1 Gv Ev : bare ud
BA/4 bt Ev Ib : r
BA/5 bts Ev Ib : lock
BA/6 btr Ev Ib : lock
BA/7 btc Ev Ib : lock
BB btc Ev Gv : lock bit
BC bsf Gv Ev
BD bsr Gv Ev
F3.BC tzcnt Gv Ev : w has:BMI1 else
F3.BD lzcnt Gv Ev : w has:ABM else
BE movsx@_8 Gv Eb : w
BF movsx@_16 Gv Ew : w
C0 xadd Eb Gb : lock
C1 xadd Ev Gv : lock
NP.C3m mov Ey Gy : w has:XMM2
C7/1m cmpxchg8b M : bare end lock cx8 has:CX8
NP.C7/3m xrstors M : bare end mem has:XSAVES
NP.C7/4m xsavec M : bare end mem has:XSAVEC
NP.C7/5m xsaves M : bare end mem has:XSAVES
C7/6r rdrand Rv : w has:RDRAND
C7/7r rdseed Rv : w has:RDSEED
F2.C7/1m cmpxchg8b M : bare end lock cx8 has:CX8
F3.C7/1m cmpxchg8b M : bare end lock cx8 has:CX8
F3.C7/7r rdpid Rq : bare
C8+r bswap Zv
FF ud0 Gv Ev : bare ud
"""

# Three-byte maps 0F 38 and 0F 3A: integer instructions; vector rows are in opcodes_vector.py.
MAP_38 = """
F3.F0m no_movbe Gv Ev : bare ud
F3.F1m no_movbe Ev Gv : bare ud
F0m movbe Gv Ev : w has:MOVBE
F1m movbe Ev Gv : w has:MOVBE
F2.F0 crc32_@_8 Gy Eb : mem has:XMM4_2
F2.F1 crc32_@_% Gy Ev : by2 mem has:XMM4_2
66.F6 adcx Gy Ey : mem has:ADX
F3.F6 adox Gy Ey : mem has:ADX
66.F8m movdir64b Gq M : bare end mem has:MOVDIR64B
NP.F9m mov Ey Gy : w mem has:MOVDIRI
66.82m invpcid Gy M : bare end cpl0 mem has:INVPCID
"""

MAP_3A = ""
