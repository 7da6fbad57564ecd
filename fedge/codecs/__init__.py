"""What makes payloads smaller on their way: a chain of small values, one file a codec; ``chain`` has the rules."""
