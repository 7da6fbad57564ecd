"""Each method's headline claim, as its paper makes it and as fedge measures it; see ``__main__``."""
