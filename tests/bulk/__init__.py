"""Tests of embedding in shards."""
