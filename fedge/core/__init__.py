"""What every other room speaks in: payloads, methods, costs, folding, the training loop, hashed randomness."""
