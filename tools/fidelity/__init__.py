"""How exactly a device is one: what was asked of each limit beside what was measured.

One module a subject, each with ``measure(quick)``, which gives figures as ``tools.fidelity.seen`` writes them.
"""
