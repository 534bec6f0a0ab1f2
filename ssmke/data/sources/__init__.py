"""Where datasets come from: one module a source, each writing the one shard layout of `ssmke.data.shards`."""
