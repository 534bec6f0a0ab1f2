"""Datasets that lie elsewhere (s3://, gs://, hf://, https://): fetched whole shard by whole shard, and kept."""
