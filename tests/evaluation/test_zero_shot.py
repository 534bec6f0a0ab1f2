"""Zero-shot: open_clip's classifier, scikit-learn's accuracies, expectation at ties, and the published prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from ssmke.errors import ConfigError, DataError
from ssmke.evaluation.class_names import class_name, imagenet_names, load_class_names, load_templates
from ssmke.evaluation.retrieval import EvaluationError
from ssmke.evaluation.zero_shot import class_embeddings, classify
from ssmke.models.dual_encoder import Student
from ssmke.models.student import SSMKE

NAMES = ["red dog", "blue cat", "two children", "green grass", "dog", "cat"]
TEMPLATES = ["a {}", "{} on grass", "two {} near a red dog"]


class AsOpenClip:
    """A student under the names that open_clip's builder calls."""

    def __init__(self, model: SSMKE) -> None:
        self.model = model

    def encode_text(self, texts: list[str], normalize: bool) -> torch.Tensor:
        assert normalize
        return torch.cat([self.model.encode_text([text]) for text in texts])


class Texts(list):  # type: ignore[type-arg]
    def to(self, device: str) -> Texts:
        return self


def test_class_embeddings_are_open_clips(model: SSMKE) -> None:
    theirs = open_clip.build_zero_shot_classifier(AsOpenClip(model), Texts, NAMES, TEMPLATES)  # [D, C]
    ours = class_embeddings(Student(model, "tiny"), NAMES, TEMPLATES, batch_size=4)
    torch.testing.assert_close(ours.float(), theirs.T, atol=1e-5, rtol=0)


def test_accuracies_are_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    heads = torch.randn(9, 16, generator=generator)
    labels = torch.randint(9, (400,), generator=generator) % 8  # the last class has no images
    images = heads[labels] + 1.8 * torch.randn(400, 16, generator=generator)
    scores = torch.nn.functional.normalize(images.double()) @ torch.nn.functional.normalize(heads.double()).T
    found = classify(images, heads, labels.numpy(), [f"class {i}" for i in range(9)])
    guesses = scores.argmax(1).numpy()
    assert found.top1 == pytest.approx(100 * float(np.mean(guesses == labels.numpy())))
    assert found.top5 == pytest.approx(
        100 * top_k_accuracy_score(labels, scores.numpy(), k=5, labels=range(9))
    )
    assert found.class_mean == pytest.approx(100 * balanced_accuracy_score(labels, guesses))
    for name, value in (
        ("top1", found.top1),
        ("top5", found.top5),
        ("mean_per_class_recall", found.class_mean),
    ):
        assert found.intervals[name].low < value < found.intervals[name].high
    worst = found.worst[0]
    label = int(worst.name.removeprefix("class "))
    own = guesses[labels.numpy() == label]
    assert worst.recall == pytest.approx(100 * np.mean(own == label))
    assert worst.recall == min(100 * np.mean(guesses[labels.numpy() == c] == c) for c in range(8))
    answer, share = worst.taken_for[0]
    assert share == pytest.approx(100 * np.mean(own == int(answer.removeprefix("class "))))
    assert answer != worst.name


def test_a_collapsed_model_scores_chance() -> None:
    found = classify(torch.ones(60, 4), torch.ones(12, 4), np.arange(60) % 12, [str(i) for i in range(12)])
    assert found.top1 == pytest.approx(100 / 12)
    assert found.top5 == pytest.approx(500 / 12)
    assert found.top1 == pytest.approx(found.to_dict()["top1_chance"])
    assert found.top5 == pytest.approx(found.to_dict()["top5_chance"])


def test_broken_embeddings_are_said() -> None:
    with pytest.raises(EvaluationError, match="image embeddings are NaN"):
        classify(torch.full((2, 4), torch.nan), torch.ones(3, 4), np.zeros(2, np.int64), ["a", "b", "c"])
    with pytest.raises(EvaluationError, match="Nothing to classify"):
        classify(torch.ones(0, 4), torch.ones(3, 4), np.zeros(0, np.int64), ["a", "b", "c"])


def test_prompts_and_names_are_the_published_ones() -> None:
    assert load_templates("clip") == [t("{}") for t in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert load_templates("simple") == [t("{}") for t in open_clip.SIMPLE_IMAGENET_TEMPLATES]
    assert list(imagenet_names().values()) == list(open_clip.IMAGENET_CLASSNAMES)
    assert list(imagenet_names()) == sorted(imagenet_names())
    assert class_name("n01440764") == "tench"
    assert class_name("n02084071") == "dog"  # not among the 1,000: WordNet's first name
    assert class_name("maple_tree") == "maple tree"


def test_own_prompts_and_names(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text("# mine\nan image of a {}\n\na {c}\n")
    assert load_templates(str(file)) == ["an image of a {}", "a {}"]
    file.write_text("no place\n")
    with pytest.raises(ConfigError, match=r"'no place' must have \{\} once"):
        load_templates(str(file))
    with pytest.raises(ConfigError, match="--templates nothing: neither clip nor simple"):
        load_templates("nothing")
    file.write_text("dog\tbig dog\ncat\tsmall cat\nmore\tx\n")
    assert load_class_names(file, ["cat", "dog"]) == ["small cat", "big dog"]
    with pytest.raises(DataError, match="does not name 1 classes of the data: cow"):
        load_class_names(file, ["cow", "dog"])
    file.write_text("first\nsecond\n")
    assert load_class_names(file, ["a", "b"]) == ["first", "second"]
    with pytest.raises(DataError, match="2 names for 3 classes"):
        load_class_names(file, ["a", "b", "c"])
