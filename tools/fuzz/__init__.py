"""Damage everything that comes from outside, by seed, and see that nothing worse than an error of fedge's comes of it.

``mutate`` damages, ``frames``, ``live``, ``texts`` and ``folders`` say what is damaged and who has to stand it,
``campaign`` holds them to it.
"""
