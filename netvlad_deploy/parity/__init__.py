"""Compare an artifact with its reference: cases, tolerances, and the verdict."""
