"""Where datasets come from: one module a source, each writing the one shard layout of `ssmke.data.shards`."""

from ssmke.data.sources.coco import import_coco
from ssmke.data.sources.flickr import import_flickr8k, import_flickr30k
from ssmke.data.sources.tars import TarsConfig, import_tars

__all__ = ["TarsConfig", "import_coco", "import_flickr8k", "import_flickr30k", "import_tars"]
