"""Decoded instructions: a block is a header and a run of 64-byte records, one or more an instruction.

A record names a handler and its operands as host addresses: a general register's slot, a scratch slot, the record's
own immediate. So one handler serves register, memory and immediate forms: memory operands are brought into a scratch
slot by a load record before, and taken back by a store record after. A handler is `int64 f(vcpu, record)`: it returns
the next record's address, or 0 to leave the block with LEAVE set.
"""

# Record fields
HANDLER = 0  # address of the compiled handler
DST = 8  # address of the destination operand (read too, for two-operand arithmetic)
SRC = 16  # address of the source operand
IMM = 24  # immediate, displacement, branch target offset (sign-extended)
BASE_PTR = 32  # address of the word that holds the base register, RIP base or ZERO
INDEX_PTR = 40  # address of the index register word or ZERO
SEG_PTR = 48  # address of the segment's record (state.SEGMENTS...) or 0 when its base is known to be 0 and flat
SCALE = 56  # u8: index shift
ASIZE = 57  # u8: address size in bytes, 2, 4 or 8
OSIZE = 58  # u8: operand size in bytes
AUX = 59  # u8: handler's own
OFFSET = 60  # u8: the instruction's first byte, counted from the block's first byte
NEXT = 61  # u8: the following instruction's first byte, same count
FLAGS = 62  # u16: RECORD_* below
RECORD = 64

RECORD_LOCK = 1
RECORD_REP = 2
RECORD_REPNE = 4
RECORD_STACK = 16  # addresses relative to RSP or RBP: a bad address is #SS, not #GP
RECORD_NO_MMIO = 64  # an instruction that KVM's emulator does not know: its operand cannot be MMIO

# Block header, one record in size
BLOCK_KEY_RIP = 0  # guest RIP
BLOCK_KEY_MODE = 8  # HFLAGS
BLOCK_HOST = 16  # host address of its first byte
BLOCK_LENGTH = 24  # bytes of guest code
BLOCK_SPLIT = 32  # bytes on the first page, when it crosses into a second, else 0
BLOCK_HOST2 = 40  # host address of the second page's part
BLOCK_INSTRUCTIONS = 48
BLOCK_BYTES = 64  # a copy of the guest bytes, up to BLOCK_MAX_BYTES, to validate against
BLOCK_MAX_BYTES = 192
HEADER = 256
MAX_INSTRUCTIONS = 32
