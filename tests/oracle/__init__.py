"""The same client programs on the real KVM and on kvmfs: transcripts that must be equal."""
