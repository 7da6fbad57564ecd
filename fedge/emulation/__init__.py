"""What makes a process a device: the memory wall, allocator, cores, link, roofline clock and power."""
