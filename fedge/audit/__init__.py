"""What leaked: attacks on exactly what left a device, and on the model that a run released."""
