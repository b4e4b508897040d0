"""The oracle: NetVLAD in float64, the file of its parameters, and the golden images of a pipeline."""
