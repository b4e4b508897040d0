"""Embedding in shards that survive whatever stops a run: the plan, the work on a shard, and the join."""
