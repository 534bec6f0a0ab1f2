"""The target cache: right rows, resumable, and refused when anything differs."""

from __future__ import annotations

import errno
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from ssmke.data.atomic import HashingWriter, write_error
from ssmke.data.augmentation import AugmentationConfig, canonical_box, render, view_box
from ssmke.data.dataset import ImageTextShards
from ssmke.data.decode import decode_image
from ssmke.data.shards import file_sha256
from ssmke.errors import BadSample, ConfigError, DataError, TargetCacheError
from ssmke.models.teachers import Teacher, TeacherConfig, build_teacher
from ssmke.targets.build import BuildReport, build_targets
from ssmke.targets.cache import CacheIdentity, TargetCache, TargetsConfig, cache_dir, rows_path
from ssmke.targets.image_rows import ImageRows
from ssmke.targets.verify import verify_targets

AUGMENTATION = AugmentationConfig(crop_min=0.5)
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
CONFIG = TargetsConfig(batch_size=5)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", **VIT).state_dict(), path)
    return build_teacher(TeacherConfig("vit_tiny_patch16_224", str(path), timm_kwargs=VIT))


def identity_of(teacher: Teacher, views: int = 1) -> CacheIdentity:
    return CacheIdentity.of(teacher.describe(), teacher.image_size, views, AUGMENTATION)


def build_images(
    shards: ImageTextShards, teacher: Teacher, identity: CacheIdentity, config: TargetsConfig = CONFIG
) -> BuildReport:
    return build_targets(shards, ImageRows(teacher, identity, AUGMENTATION, config.batch_size), config)


@pytest.fixture
def copied(shards_dir: Path, tmp_path: Path) -> ImageTextShards:
    """The shared shards (with three damaged images) in a folder of this test's own."""
    for path in shards_dir.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return ImageTextShards.open([tmp_path], "test")


def build(shards: ImageTextShards, teacher: Teacher, views: int = 1) -> TargetCache:
    identity = identity_of(teacher, views)
    build_images(shards, teacher, identity, CONFIG)
    return TargetCache.open(shards, identity, CONFIG)


def test_one_view_is_what_the_teacher_says_of_the_canonical_view(
    copied: ImageTextShards, teacher: Teacher
) -> None:
    cache = build(copied, teacher)
    usable = 0
    for image in range(copied.images):
        try:
            picture = decode_image(copied.read(image).image)
        except BadSample:
            assert np.isnan(cache.row(image, 0)).all()
            continue
        pixels = render(np.array(picture), canonical_box(*picture.size), False, 32)
        usable += 1
        expected = teacher(torch.from_numpy(pixels)[None])[0].half().numpy()
        np.testing.assert_allclose(cache.row(image, 0), expected, rtol=2e-3, atol=2e-3)
    assert usable == 20


def test_each_view_is_what_the_teacher_says_of_that_crop(copied: ImageTextShards, teacher: Teacher) -> None:
    cache = build(copied, teacher, views=3)
    picture = decode_image(copied.read(0).image)
    rows = [cache.row(0, view) for view in range(3)]
    for view, row in enumerate(rows):
        box, flip = view_box(copied.key(0), view, AUGMENTATION, *picture.size)
        expected = teacher(torch.from_numpy(render(np.array(picture), box, flip, 32))[None])[0].half().numpy()
        np.testing.assert_allclose(row, expected, rtol=2e-3, atol=2e-3)
    assert not np.array_equal(rows[0], rows[1])


def test_a_second_build_reuses_and_a_broken_off_one_goes_on(
    copied: ImageTextShards, teacher: Teacher
) -> None:
    identity = identity_of(teacher)
    first = build_images(copied, teacher, identity, CONFIG)
    assert (first.images, first.reused, first.bad) == (23, 0, 3)
    again = build_images(copied, teacher, identity, CONFIG)
    assert (again.images, again.reused, again.bad) == (0, 23, 3)
    folder = copied.shards[0][0].parent / "targets" / identity.folder_name
    (folder / "test-00001.json").unlink()
    with pytest.raises(TargetCacheError, match=r"1 of 2 shards .*test-00001.*ssmke targets build"):
        TargetCache.open(copied, identity, CONFIG)
    resumed = build_images(copied, teacher, identity, CONFIG)
    assert (resumed.images, resumed.reused) == (14, 9)
    TargetCache.open(copied, identity, CONFIG)


def test_a_cache_survives_pickling_for_workers(copied: ImageTextShards, teacher: Teacher) -> None:
    cache = build(copied, teacher)
    row = cache.row(0, 0)
    assert np.array_equal(pickle.loads(pickle.dumps(cache)).row(0, 0), row)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"digest": "0" * 64}, "teacher.digest"),
        ({"name": "dino"}, "teacher.name"),
        ({"mean": [0.1, 0.2, 0.3]}, "teacher.mean"),
    ],
)
def test_another_teacher_is_refused_with_the_difference(
    change: dict[str, object], named: str, copied: ImageTextShards, teacher: Teacher, tmp_path: Path
) -> None:
    config = TargetsConfig(dir=str(tmp_path / "caches"))
    build_images(copied, teacher, identity_of(teacher), config)
    other = CacheIdentity.of({**teacher.describe(), **change}, teacher.image_size, 1, AUGMENTATION)
    if "name" in change:  # another name is another folder; this one is put where it will be looked for
        built, wanted = (
            cache_dir(copied.shards[0][0].parent, i, config) for i in (identity_of(teacher), other)
        )
        built.rename(wanted)
    for action in (
        lambda: TargetCache.open(copied, other, config),
        lambda: build_images(copied, teacher, other, config),
    ):
        with pytest.raises(TargetCacheError, match=named):
            action()


def test_other_crops_are_refused_but_only_where_crops_are_cached(
    copied: ImageTextShards, teacher: Teacher
) -> None:
    build(copied, teacher, views=2)
    changed = CacheIdentity.of(teacher.describe(), 32, 2, AugmentationConfig(crop_min=0.9))
    with pytest.raises(
        TargetCacheError, match=r"augmentation\.crop_min: the cache has 0\.5, this run needs 0\.9"
    ):
        TargetCache.open(copied, changed, CONFIG)
    build(copied, teacher, views=1)
    TargetCache.open(
        copied, CacheIdentity.of(teacher.describe(), 32, 1, AugmentationConfig(crop_min=0.9)), CONFIG
    )


def test_rows_that_were_cut_short_are_named(copied: ImageTextShards, teacher: Teacher) -> None:
    build(copied, teacher)
    rows = rows_path(
        copied.shards[0][0].parent / "targets" / identity_of(teacher).folder_name, "test-00000.tar"
    )
    rows.write_bytes(rows.read_bytes()[:-100])
    with pytest.raises(TargetCacheError, match=r"test-00000\.npy cannot be read .*build again"):
        TargetCache.open(copied, identity_of(teacher), CONFIG)


def test_verify_finds_changed_bytes_and_wrong_targets(copied: ImageTextShards, teacher: Teacher) -> None:
    build(copied, teacher)
    identity = identity_of(teacher)
    whole = verify_targets(copied, ImageRows(teacher, identity, AUGMENTATION, 5), CONFIG)
    assert (whole.problems, whole.images, whole.shards) == ([], 23, 2)
    assert whole.largest_distance < 1e-3

    folder = copied.shards[0][0].parent / "targets" / identity.folder_name
    rows = np.load(folder / "test-00000.npy")
    np.save(folder / "test-00000.npy", -rows)
    assert (
        "bytes changed"
        in verify_targets(copied, ImageRows(teacher, identity, AUGMENTATION, 5), CONFIG).problems[0]
    )
    record = json.loads((folder / "test-00000.json").read_text())
    record["sha256"] = file_sha256(folder / "test-00000.npy")
    (folder / "test-00000.json").write_text(json.dumps(record))
    problems = verify_targets(copied, ImageRows(teacher, identity, AUGMENTATION, 5), CONFIG).problems
    assert "away from the model's" in problems[0]


def test_a_full_disk_leaves_finished_shards_and_names_the_file(
    copied: ImageTextShards, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity, write = identity_of(teacher), HashingWriter.write

    def full(writer: HashingWriter, data: bytes) -> int:
        if writer._path.name == "test-00001.npy":
            raise write_error(writer._path, OSError(errno.ENOSPC, "No space left on device"))
        return write(writer, data)

    monkeypatch.setattr(HashingWriter, "write", full)
    with pytest.raises(DataError, match=r"test-00001\.npy.*[Nn]o space left"):
        build_images(copied, teacher, identity, CONFIG)
    monkeypatch.undo()
    resumed = build_images(copied, teacher, identity, CONFIG)
    assert (resumed.images, resumed.reused) == (14, 9)
    folder = copied.shards[0][0].parent / "targets" / identity.folder_name
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(("values", "flag"), [({"views": 0}, "views"), ({"mode": "both"}, "mode")])
def test_impossible_settings_are_refused_by_flag(values: dict[str, object], flag: str) -> None:
    with pytest.raises(ConfigError, match=rf"--targets\.{flag}"):
        TargetsConfig(**values)  # type: ignore[arg-type]


def test_targets_that_do_not_fit_fp16_are_refused(copied: ImageTextShards, teacher: Teacher) -> None:
    class Loud(Teacher):
        """The teacher, far too loud."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) * 1e20

    loud = Loud.__new__(Loud)
    loud.__dict__ = teacher.__dict__
    with pytest.raises(TargetCacheError, match="do not fit into fp16"):
        build_images(copied, loud, identity_of(teacher), CONFIG)


def test_other_images_under_the_same_keys_are_refused(copied: ImageTextShards, teacher: Teacher) -> None:
    build(copied, teacher)
    folder = copied.shards[0][0].parent
    text = (folder / "manifest.json").read_text()
    digest = copied.shards[0][1].sha256
    (folder / "manifest.json").write_text(text.replace(digest, "a" * 64))
    with pytest.raises(TargetCacheError, match="shards were changed"):
        TargetCache.open(ImageTextShards.open([folder], "test"), identity_of(teacher), CONFIG)
