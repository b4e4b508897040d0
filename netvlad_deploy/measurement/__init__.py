"""Judge and time artifacts: parity with the oracle, latency against each other."""
