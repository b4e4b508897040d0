"""The latency of an artifact, measured fairly against others."""
