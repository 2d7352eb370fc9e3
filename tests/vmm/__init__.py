"""Virtual machine monitors on kvmfs, unmodified ones and one that stands for others, and the guests that they run."""
