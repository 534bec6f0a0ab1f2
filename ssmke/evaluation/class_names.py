"""What classes are called in prompts, and the prompts.

ImageNet's 1,000 classes have the names that CLIP's authors chose ("tench", not "tench, Tinca tinca"), without which its
published accuracies cannot be met; other WordNet ids have WordNet's first name, from the table that timm ships. Prompts
are CLIP's 80, the 7 that its authors selected of them, or a file of one's own. Both lists are files in
`ssmke/evaluation/data`, with their source.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from ssmke.errors import ConfigError, DataError

TEMPLATES = ("clip", "simple")
_SYNSET = re.compile(r"n\d{8}")


def class_name(folder: str) -> str:
    """The name of the class whose folder is called so: of a WordNet id its name, else with spaces for underscores."""
    if not _SYNSET.fullmatch(folder):
        return folder.replace("_", " ")
    return imagenet_names().get(folder) or _lemmas().get(folder) or folder


@functools.cache
def imagenet_names() -> dict[str, str]:
    """CLIP's name of each of ImageNet's 1,000 WordNet ids, in their order."""
    return dict(line.split("\t") for line in _lines("imagenet_classes.tsv"))


@functools.cache
def _lemmas() -> dict[str, str]:
    import timm.data

    text = resources.files(timm.data).joinpath("_info", "imagenet_synset_to_lemma.txt").read_text("utf-8")
    pairs = (line.partition("\t")[::2] for line in text.splitlines())
    return {synset: names.split(",")[0].strip() for synset, names in pairs if names.strip()}


def _lines(name: str) -> list[str]:
    text = resources.files("ssmke.evaluation").joinpath("data", name).read_text("utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def load_templates(name: str) -> list[str]:
    """The prompts ``clip`` or ``simple``, or those of a text file, one a line, ``{}`` (or ``{c}``) for the class.

    Raises:
        ConfigError: neither a set nor a file, or a line has no place for the class.
    """
    if name in TEMPLATES:
        return _lines(f"templates_{name}.txt")
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"--templates {name}: neither {' nor '.join(TEMPLATES)}, and no text file ({error})"
        ) from None
    lines = [line.strip().replace("{c}", "{}") for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    bad = next((line for line in lines if line.count("{}") != 1), None)
    if bad is not None or not lines:
        what = "has no prompts" if bad is None else f"{bad!r} must have {{}} once, where the class goes"
        raise ConfigError(f"--templates {name}: {what}")
    return lines


def load_class_names(path: Path, folders: Sequence[str]) -> list[str]:
    """Names of ``folders`` from a text file: ``folder<tab>name`` a line, or plain names in the order of ``folders``.

    Raises:
        DataError: it cannot be read, or does not name each class once.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise DataError(f"--classes {path}: cannot be read ({error})") from None
    if any("\t" in line for line in lines):
        named = dict(line.partition("\t")[::2] for line in lines)
        missing = [folder for folder in folders if not named.get(folder, "").strip()]
        if missing:
            raise DataError(
                f"--classes {path}: does not name {len(missing)} classes of the data: {', '.join(missing[:5])}"
            )
        return [named[folder].strip() for folder in folders]
    if len(lines) != len(folders):
        raise DataError(f"--classes {path}: {len(lines)} names for {len(folders)} classes of the data")
    return lines
