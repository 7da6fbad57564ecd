"""The public kit for whoever writes a method: rounds in one process, with nothing but the bytes between its sides."""
