"""Under which terms the parts of a model came: what is known, and "not known" for everything else.

A trained model is made of pretrained weights and of data, each with terms of its own, and whoever passes it on has to
look at them. Datasets are those of `ssmke.data.sources.catalogue`, which says where it read their terms. Weights are
known by the name in the recipe; a licence is stated only for what ships with ssmke or is beyond doubt.
"""

from __future__ import annotations

from ssmke.data.sources.catalogue import CC3M, CC12M, COCO, FLICKR8K, FLICKR30K, SBU

UNKNOWN = "not known to ssmke: find out before you pass the model on"
_CATALOGUE = {known.name: known for known in (COCO, FLICKR8K, FLICKR30K, CC3M, CC12M, SBU)}
_CATALOGUE["coco"] = COCO
_HOMES = {
    "beitv2": "https://github.com/microsoft/unilm",
    "data2vec2": "https://github.com/facebookresearch/fairseq",
    "vit_base_patch16_224.dino": "https://github.com/facebookresearch/dino",
    "vit_small_patch16_224.dino": "https://github.com/facebookresearch/dino",
}


def data_terms(name: str) -> str:
    """Of the dataset that is called ``name`` in its manifest."""
    if name == "scenes":
        return "drawn by ssmke, MIT"
    known = _CATALOGUE.get(name)
    return UNKNOWN if known is None else f"{known.terms} ({known.terms_link})"


def weights_terms(name: str, weights: str) -> str:
    """Of the pretrained weights ``weights`` (as in a recipe) of the architecture ``name``."""
    if weights == "none":
        return "none: it started from random weights"
    if weights.startswith("package:"):
        return "ships with ssmke, MIT"
    if weights == "hub" and name.rsplit("/", 1)[-1] == "bert-base-uncased":
        return "Apache-2.0 (https://github.com/google-research/bert)"
    home = next((home for start, home in _HOMES.items() if name.startswith(start)), None)
    return UNKNOWN if home is None else f"those of {home}; {UNKNOWN}"
