"""Datasets from the network: lists of URLs through img2dataset, and the archives of COCO and Flickr."""
