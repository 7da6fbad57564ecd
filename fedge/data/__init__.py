"""Data: sources, the encoded rows that models take, partitions, and the baselines beside every figure."""
