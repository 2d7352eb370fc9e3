"""Opcode rows of the x87 instructions, in the notation of opcodes.py.

All of them raise #NM when CR0.EM or CR0.TS is set; the handler's record has the opcode as FOP does. There is one
handler a size of memory operand, and one a way of using the registers: which instruction it is follows from the opcode.
With `em` KVM emulates it, so that its operand may be MMIO.
"""

ONE_BYTE = """
D8m x87_read32 M : bare x87
D8r x87_arithmetic Rd : bare x87
D9m x87_read32 M : bare x87
D9/1m ud M : ud
D9/2m x87_write32 M : bare x87
D9/3m x87_write32 M : bare x87
D9/4m fldenv M : bare x87
D9/5m fldcw M : bare x87
D9/6m fnstenv M : bare x87
D9/7m fnstcw M : bare x87 em
D9r x87_registers Rd : bare x87
D9/0r fld_register Rd : bare x87
D9/1r fxch Rd : bare x87
D9/4r x87_alone Rd : bare x87
D9/5r x87_constant Rd : bare x87
D9/7r x87_alone Rd : bare x87
DAm x87_read32 M : bare x87
DAr x87_flags Rd : bare x87 has:CMOV
DA/5r x87_registers Rd : bare x87
DB/0m x87_read32 M : bare x87
DB/1m x87_write32 M : bare x87 has:XMM3
DB/2m x87_write32 M : bare x87
DB/3m x87_write32 M : bare x87
DB/5m x87_read80 M : bare x87
DB/7m x87_write80 M : bare x87
DBr x87_flags Rd : bare x87 has:CMOV
DB/4r x87_control Rd : bare x87
DCm x87_read64 M : bare x87
DCr x87_arithmetic Rd : bare x87
DD/0m x87_read64 M : bare x87
DD/1m x87_write64 M : bare x87 has:XMM3
DD/2m x87_write64 M : bare x87
DD/3m x87_write64 M : bare x87
DD/4m frstor M : bare x87
DD/6m fnsave M : bare x87
DD/7m fnstsw_mem M : bare x87 em
DDr x87_registers Rd : bare x87
DD/2r fst_register Rd : bare x87
DD/3r fst_register Rd : bare x87
DD/4r x87_arithmetic Rd : bare x87
DD/5r x87_arithmetic Rd : bare x87
DEm x87_read16 M : bare x87
DEr x87_arithmetic Rd : bare x87
DF/0m x87_read16 M : bare x87
DF/1m x87_write16 M : bare x87 has:XMM3
DF/2m x87_write16 M : bare x87
DF/3m x87_write16 M : bare x87
DF/4m x87_read80 M : bare x87
DF/5m x87_read64 M : bare x87
DF/6m x87_write80 M : bare x87
DF/7m x87_write64 M : bare x87
DFr x87_registers Rd : bare x87
DF/4r fnstsw_ax Rd : bare x87
DF/5r x87_flags Rd : bare x87 has:CMOV
DF/6r x87_flags Rd : bare x87 has:CMOV
"""
