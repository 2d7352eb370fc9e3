"""For those who test VMMs: a pytest plugin. docs/testing.md has a tutorial.

plugin    fixtures, marks and options; loaded by pytest by itself where kvmfs is installed
result    what a VMM did under test: its exits, faults and ioctls
"""
