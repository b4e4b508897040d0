"""The oracle: NetVLAD in float64, the file its parameters stand in, and the golden images of a pipeline."""
