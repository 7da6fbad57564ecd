"""Spans and counters of what a device does, and the counting of work on real or fake tensors."""
