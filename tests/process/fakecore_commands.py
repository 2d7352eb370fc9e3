"""What clients tell the fake core to do."""

# in the run page's cr8
RETURN = 0  # comes back at once with KVM_EXIT_IO
BLOCK = 1  # marks the page, comes back when interrupted, with KVM_EXIT_INTR and EINTR
SERVICE = 2  # goes to Python once, which adds 1 to apic_base, and then is RETURN
CRASH = 3  # dies of SIGSEGV

BLOCKED = 0xB10C
"""exit_reason while BLOCK lasts."""

# ioctls of a VM
PROBE = 0xAEF0  # tries to break out: the answers as JSON, at most 4096 bytes, go to the argument
FAIL_AFTER_INSTALL = 0xAEF1  # installs a vCPU and then fails with EDOM
ADOPT = 0xAEF2  # argument: three words {address, length, offset}; adopts, and adds 1 to the word at the offset
BACKING = 0xAEF3  # argument as above; writes the first piece's {kind, length, offset, writable} over it
LIE = 0xAEF4  # asks the broker for what is not the worker's: the answers as JSON, as with PROBE
NONSENSE = 0xAEF5  # sends the broker what is no message
EVENTFD = 0xAEF6  # argument: a descriptor's number; writes 1 to that eventfd, returns its id

# BACKING's kinds
KINDS = ("SHARED", "ANONYMOUS", "PRIVATE", "OTHER", "HOLE")

# arguments of KVM_CREATE_VM
REFUSED_BY_SYSTEM = 98  # EINVAL
REFUSED_BY_WORKER = 99  # EDOM
