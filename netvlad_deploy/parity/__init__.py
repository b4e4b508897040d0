"""Whether an artifact computes what it should: cases, tolerances, and the verdict."""
