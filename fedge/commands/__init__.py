"""The verbs that are more than a few lines, by subject; ``fedge.cli`` puts them all on the command line."""
