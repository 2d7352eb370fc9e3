"""Faults on purpose: what a VMM does when memory or an ioctl lets it down can be tried, again and again the same way.

    when      which of the matches of a rule it fires at
    rules     a rule as data: from a line, from a TOML file, to JSON and back
    ioctls    rules about ioctls, kept by whoever serves them
    memory    rules about memory accesses, of one VM
    access    what decides about each access: compiled
    records   what it reads

docs/fault-injection.md explains the rules. Without rules nothing of this is on any path.
"""
