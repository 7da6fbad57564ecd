"""The methods, one file each; ``table.py`` lists what is built. Nothing here is imported until it is asked for."""
