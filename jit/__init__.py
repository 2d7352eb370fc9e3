"""The vCPU: a software x86-64 processor with a two-stage MMU, compiled by numba.

Nothing here knows of KVM's ABI, files or processes. State lives in raw memory blocks whose layouts are tables
(state.py, mmu/layout.py); functions take the address of a vCPU block and run without the GIL.
"""
