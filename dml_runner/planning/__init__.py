"""What a job will cost, from frozen values, before a process starts."""
