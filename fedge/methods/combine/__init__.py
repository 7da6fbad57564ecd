"""Methods of this part of the taxonomy, one file each."""
