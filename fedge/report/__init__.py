"""What a run looks like to a person: tables, one HTML page, comparisons. Reads run folders and nothing else."""
