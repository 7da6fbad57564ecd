"""Runs a federation again and again while killing its processes, and compares with the undisturbed run."""
