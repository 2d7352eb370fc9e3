"""The instruction set: decoding into records, handlers by group, the run loop."""
