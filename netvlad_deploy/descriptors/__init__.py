"""Files of descriptors: written row by row, the same bytes for the same rows, and read back, those of others too."""
