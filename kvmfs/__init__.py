"""kvmfs: a /dev/kvm without a hypervisor."""

from pathlib import Path

# In a checkout the vCPU lives in the top-level folder jit/; a wheel ships it inside the package.
# Either way it is imported as kvmfs.jit, and the name `jit` stays free in site-packages.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "jit" / "raw.py").is_file() and not (_checkout / "kvmfs" / "jit").exists():
    __path__.append(str(_checkout))

__version__ = "0.1.0"
