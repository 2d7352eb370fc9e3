"""The calling process: its memory, its descriptors, its mappings, and a thread of it borrowed for a moment.

Nothing here knows FUSE or KVM. A request names the thread that made it (`tid`), which stays blocked in its system
call until the request is answered: that is what makes every pid in here safe from reuse.
"""
