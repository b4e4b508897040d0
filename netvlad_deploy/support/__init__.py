"""Files, locks, child processes, arrays and limits: nothing here knows of NetVLAD."""
