"""Opcode rows of the vector instructions, in the notation of opcodes.py; `mv` marks plain moves: no operation, only a
load, a store or a copy of the first operand's size."""

TWO_BYTE = ""

MAP_38 = ""

MAP_3A = ""
