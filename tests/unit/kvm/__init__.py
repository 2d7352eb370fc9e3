"""KVM's objects without a process, a device or compiled code behind them."""
