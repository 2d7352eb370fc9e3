"""What passes between VMMs and KVM, from rings of records (kvmfs.kvm.ring) to events for people, files and tests.

records   a ring as its reader sees it; a spool between it and decoding
decode    records as events, by the tables of kvmfs.abi
session   a trace under way: rings that come and go
text      events as strace-like lines
summary   counts, times, errors
golden    traces compared: what is to be the same in every run
"""
