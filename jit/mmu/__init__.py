"""Guest memory: slots, attributes, page walks, fault resolution, TLB."""
