"""The shards of one plan, computed by many machines at once."""
