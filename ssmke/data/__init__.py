"""Image-text data: shards on disk, their manifest, index, reading and checking.

The way of a sample: a source (`ssmke.data.sources`) writes tar shards (`shards`) and their `manifest`;
`dataset` opens directories of them as one numbered set of images and pairs; `decode` and `captions` turn
bytes into pixels and text. Nothing here imports torch at import time except what feeds training.
"""
