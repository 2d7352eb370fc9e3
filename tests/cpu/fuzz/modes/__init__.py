"""Every mode but 64-bit, system instructions and far transfers included, next to Unicorn."""
