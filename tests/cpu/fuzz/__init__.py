"""The CPU fuzzer: our vCPU next to this host's processor and to iced-x86, on cases made from the opcode tables."""
