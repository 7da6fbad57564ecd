"""What a round would cost each device, and what each device picks: the same functions for ``plan`` and for ``up``."""
