"""Differential privacy: clipping, noise, and how much of a budget rounds have spent. Knows core alone."""
