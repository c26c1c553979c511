"""Source shards in, reinforced shards out: what is read from tars and what lies on disk."""
