"""Running a federation: the run folder, the coordinator, the processes of the devices, and the inline driver."""
