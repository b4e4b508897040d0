"""What any program needs and this one cannot take from a library: files, locks, processes, arrays."""
