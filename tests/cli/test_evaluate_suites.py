"""`ssmke evaluate`: peers, several seeds, the public layout, MLflow, zero-shot and probe, end to end."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ssmke.cli.evaluate import main
from ssmke.cli.evaluate.common import comparison
from ssmke.console import CleanConsole
from ssmke.errors import ConfigError, DataError, WeightsError
from ssmke.evaluation.class_names import load_templates
from ssmke.evaluation.intervals import accuracy_interval
from ssmke.models.student import SSMKE

COLOURS = {"blue_cat": (20, 40, 220), "green_grass": (30, 200, 40), "red_dog": (220, 30, 20)}


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in (*arguments, "--device", "cpu")])


def picture(colour: tuple[int, int, int], rng: np.random.Generator) -> bytes:
    noise = rng.normal(0, 12, (40, 48, 3))
    out = io.BytesIO()
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of one colour each: train/ with 20 images a class, val/ with 8, one of them damaged."""
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 8)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i}.png").write_bytes(picture(colour, rng))
    damaged = root / "val" / "red_dog" / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    return root


@pytest.fixture(scope="module")
def second_seed(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("second") / "model"
    shutil.copytree(model_dir, folder)
    state = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    save_file(
        {name: value + 0.02 * torch.randn(value.shape, generator=generator) for name, value in state.items()},
        folder / "model.safetensors",
    )
    return folder


@pytest.fixture
def runs(model_dir: Path, second_seed: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The models of two runs of one recipe that differ in their seed and folders."""
    for seed, model in enumerate((model_dir, second_seed)):
        shutil.copytree(model, tmp_path / f"run{seed}" / "model")
        write_recipe(tmp_path / f"run{seed}", seed=seed)
    return tmp_path / "run0" / "model", tmp_path / "run1" / "model"


def write_recipe(run_dir: Path, *, seed: int, lr: float = 0.1) -> None:
    places = {"run_dir": str(run_dir), "runs_dir": f"runs{seed}", "targets": {"dir": str(run_dir / "t")}}
    recipe = {"name": "tiny", "seed": seed, "optim": {"lr": lr}, "cost": {"max_usd": seed}, **places}
    (run_dir / "recipe.json").write_text(json.dumps(recipe))


def test_seeds_are_aggregated(
    runs: tuple[Path, Path], shards_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_dir, second_seed = runs
    out = tmp_path / "both.json"
    run("retrieval", "--model", *runs, "--data", shards_dir, "--out", out)
    both = json.loads(out.read_text())
    values = []
    for folder in (model_dir, second_seed):
        run("retrieval", "--model", folder, "--data", shards_dir, "--out", out)
        alone = json.loads(out.read_text())
        values.append(alone["metrics"]["t2i_mean_rank"])
        low, high = alone["intervals"]["t2i_r10"]
        assert low <= alone["metrics"]["t2i_r10"] <= high
        assert low < high
        assert alone["folds_1k"] is None
    assert values[0] != values[1]
    assert both["aggregate"]["t2i_mean_rank"]["mean"] == pytest.approx(np.mean(values))
    assert both["aggregate"]["t2i_mean_rank"]["std"] == pytest.approx(np.std(values, ddof=1))
    assert [m["model"]["path"] for m in both["models"]] == [str(model_dir), str(second_seed)]
    assert "mean ± std" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--sheet: draws one model"):
        run(
            "retrieval",
            "--model",
            model_dir,
            second_seed,
            "--data",
            shards_dir,
            "--sheet",
            tmp_path / "s.png",
        )


def test_other_models_are_compared_and_not_averaged(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = [{"top1": 50.0}, {"top1": 60.0}]

    def why(*models: object, seeds: bool = False) -> str | None:
        table, spread, reason = comparison([str(model) for model in models], numbers, ["top1"], seeds)
        CleanConsole(width=200).print(table)
        printed = capsys.readouterr().out
        assert ("mean ± std" in printed) == (reason is None)
        if reason is not None:  # somewhere in it lines are broken
            assert "".join(f"compared, not averaged: {reason}".split()) in "".join(printed.split())
        assert spread == (
            None if reason else {"top1": {"mean": 55.0, "std": 50**0.5, "values": [50.0, 60.0]}}
        )
        return reason

    assert why(*runs) is None
    assert why(runs[0], runs[0]) == "some have the same seed"
    assert why(runs[0], "open_clip:ViT-B-32/openai") == "2 is a peer"
    write_recipe(runs[1].parent, seed=1, lr=0.2)
    assert why(*runs) == "recipes of 1 and 2 differ, optim.lr is 0.1 and 0.2"
    (runs[1].parent / "recipe.json").unlink()
    assert "2 has no recipe.json beside its folder" in str(why(*runs))
    assert why(*runs, seeds=True) is None
    (runs[1].parent / "recipe.json").write_text("[]")
    assert "2 has no recipe.json" in str(why(*runs))


@pytest.mark.parametrize("suite", ["retrieval", "zero-shot", "probe"])
def test_what_is_finished_is_kept_when_a_later_model_fails(
    model_dir: Path, shards_dir: Path, folders: Path, tmp_path: Path, suite: str
) -> None:
    out, store = tmp_path / "out.json", tmp_path / "mlflow.db"
    broken = shutil.copytree(model_dir, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    config["student"]["shared"]["dim"] = 48  # found out when the weights are read, not before
    (broken / "config.json").write_text(json.dumps(config))
    flags = ["--data", shards_dir if suite == "retrieval" else folders, "--out", out]
    if suite == "retrieval":
        flags += ["--tracking-uri", f"sqlite:///{store}"]
    with pytest.raises(WeightsError, match="broken: no model can be made"):
        run(suite, "--model", model_dir, broken, model_dir, *flags)
    kept = json.loads(out.read_text())
    assert [one["model"]["path"] for one in kept["models"]] == [str(model_dir)]
    assert kept["aggregate"] is None
    assert kept["unfinished"] == [str(broken), str(model_dir)]
    assert kept["models"][0]["metrics"]
    if suite == "retrieval":
        from ssmke.tracking.store import open_client

        client = open_client(f"sqlite:///{store}")
        (logged,) = client.search_runs([client.get_experiment_by_name("ssmke").experiment_id])
        assert logged.data.metrics[f"eval/retrieval/{shards_dir.name}/test/t2i_r10"] == pytest.approx(
            kept["models"][0]["metrics"]["t2i_r10"]
        )


@pytest.mark.parametrize("suite", ["retrieval", "zero-shot", "probe"])
def test_all_names_are_looked_at_before_the_first_is_measured(
    model_dir: Path,
    shards_dir: Path,
    folders: Path,
    tmp_path: Path,
    suite: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cut = shutil.copytree(model_dir, tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    other = shutil.copytree(model_dir, tmp_path / "other")
    (other / "config.json").write_text("{}")
    data = shards_dir if suite == "retrieval" else folders
    for name, error, message in (
        (tmp_path / "typo", WeightsError, r"typo has no config\.json"),
        (cut, WeightsError, "cannot be read"),
        (other, WeightsError, "is not of format"),
        ("transformers:./nowhere", WeightsError, "there is no nowhere"),
        ("open_clip:local-dir:nowhere", WeightsError, "there is no nowhere"),
        ("open_clip:", ConfigError, "--model open_clip: names no model"),
    ):
        with pytest.raises(error, match=message):
            run(suite, "--model", model_dir, name, "--data", data)
    assert "chance" not in capsys.readouterr().out  # no table of the first


def test_the_public_layout_gives_what_shards_give(model_dir: Path, folders: Path, tmp_path: Path) -> None:
    """A Karpathy set evaluated in place against the same set imported."""
    from ssmke.data.sources.karpathy import KarpathyConfig, import_karpathy

    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    images = []
    for i, file in enumerate(sorted((folders / "train").rglob("*.png"))[::4]):
        (root / "images" / f"{i}.png").write_bytes(file.read_bytes())
        captions = [f"a {file.parent.name.replace('_', ' ')}", "two children sits on grass"][: 1 + i % 2]
        images.append(
            {"filename": f"{i}.png", "split": "test", "sentences": [{"raw": caption} for caption in captions]}
        )
    images.append({"filename": "gone.png", "split": "test", "sentences": [{"raw": "a dog"}]})
    (root / "dataset_flickr8k.json").write_text(json.dumps({"dataset": "flickr8k", "images": images}))
    import_karpathy(KarpathyConfig(root / "images", root / "dataset_flickr8k.json", tmp_path / "shards"))
    found = {}
    for data in (root, tmp_path / "shards"):
        run("retrieval", "--model", model_dir, "--data", data, "--out", tmp_path / "out.json")
        found[data.name] = json.loads((tmp_path / "out.json").read_text())
    assert found["set"]["metrics"] == found["shards"]["metrics"]
    assert found["set"]["skipped"] == {"missing file": 1}
    with pytest.raises(DataError, match=r"no images in split 'val'; its splits: test"):
        run("retrieval", "--model", model_dir, "--data", root, "--split", "val")
    with pytest.raises(DataError, match=r"neither shards .* nor a caption set in Karpathy's form"):
        run("retrieval", "--model", model_dir, "--data", folders)


def test_results_go_into_the_run_of_the_model(model_dir: Path, shards_dir: Path, tmp_path: Path) -> None:
    from ssmke.tracking import Tracker, TrackingConfig
    from ssmke.tracking.store import open_client

    runs, run_dir = tmp_path / "runs", tmp_path / "runs" / "recipe" / "one"
    tracker = Tracker.start(TrackingConfig(), run_dir=run_dir, run_name="trained", workspace=runs)
    tracker.metrics({"loss": 1.0}, step=3)
    assert tracker.finish(timeout_s=300)
    (run_dir / "recipe.json").write_text(
        json.dumps({"runs_dir": str(runs), "tracking": {"uri": None, "experiment": "ssmke", "enabled": True}})
    )
    shutil.copytree(model_dir, run_dir / "model")
    out = tmp_path / "out.json"
    run("retrieval", "--model", run_dir / "model", "--data", shards_dir, "--mlflow", "--out", out)
    client = open_client(f"sqlite:///{runs / 'mlflow.db'}")
    logged = client.get_run((run_dir / "mlflow_run_id").read_text().strip()).data.metrics
    results = json.loads(out.read_text())
    prefix = f"eval/retrieval/{shards_dir.name}/test"
    assert logged[f"{prefix}/t2i_r10"] == pytest.approx(results["metrics"]["t2i_r10"])
    assert logged[f"{prefix}/t2i_r10_low"] == pytest.approx(results["intervals"]["t2i_r10"][0])
    assert logged["loss"] == 1.0

    # Elsewhere it has no run: one is made in the store that is named.
    run("retrieval", "--model", model_dir, "--data", shards_dir,
        "--tracking-uri", f"sqlite:///{runs / 'mlflow.db'}", "--experiment", "other")  # fmt: skip
    experiment = client.get_experiment_by_name("other")
    made = client.search_runs([experiment.experiment_id])
    assert made[0].data.metrics[f"{prefix}/t2i_r10"] == pytest.approx(results["metrics"]["t2i_r10"])
    assert made[0].info.status == "FINISHED"
    with pytest.raises(ConfigError, match="MLflow keeps no runs in plain folders"):
        run("retrieval", "--model", model_dir, "--data", shards_dir, "--tracking-uri", "runs")


def test_zero_shot_equals_images_against_prompts_one_by_one(
    model_dir: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "zero.json"
    run("zero-shot", "--model", model_dir, "--data", folders, "--templates", "simple", "--out", out)
    results = json.loads(out.read_text())
    model = SSMKE.from_pretrained(model_dir)
    heads = []
    for name in COLOURS:
        prompts = [template.replace("{}", name.replace("_", " ")) for template in load_templates("simple")]
        heads.append(torch.cat([model.encode_text([prompt]) for prompt in prompts]).mean(0))
    heads_of = torch.nn.functional.normalize(torch.stack(heads), dim=-1)
    hits = []
    for label, name in enumerate(COLOURS):
        for i in range(8):
            if (name, i) != ("red_dog", 0):
                with Image.open(folders / "val" / name / f"{i}.png") as image:
                    embedding = model.encode_image([image.convert("RGB")])
                hits.append(float((embedding @ heads_of.T).argmax() == label))
    assert results["metrics"]["images"] == len(hits) == 23
    assert results["metrics"]["top1"] == pytest.approx(100 * np.mean(hits))
    assert results["intervals"]["top1"] == pytest.approx(accuracy_interval(hits).to_list())
    assert results["skipped"] == {"truncated image": 1}
    assert results["data"]["split"] == "val"
    assert results["class_names"] == ["blue cat", "green grass", "red dog"]
    assert "chance" in capsys.readouterr().out


def test_probe_tells_colours_apart_and_shuffled_labels_do_not(
    model_dir: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "probe.json"
    for features in ("embedding", "encoder"):
        run("probe", "--model", model_dir, "--data", folders, "--features", features, "--out", out)
        metrics = json.loads(out.read_text())["metrics"]
        assert metrics["knn_top1"] == 100
        assert metrics["linear_top1"] == 100
        assert (metrics["train_images"], metrics["knn_images"]) == (60, 23)
    files = sorted((folders / "train").rglob("*.png"))
    for i, place in enumerate(np.random.default_rng(1).permutation(60)):
        target = tmp_path / "mixed" / "abc"[place % 3]
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(files[i], target / f"{i}.png")
    run("probe", "--model", model_dir, "--data", tmp_path / "mixed", "--out", out)
    assert json.loads(out.read_text())["metrics"]["knn_top1"] < 80
    assert "mixed has no splits: a fifth of each class, by seed 0" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (("probe", "--neighbours", "0"), ConfigError, "--neighbours 0"),
        (("probe", "--temperature", "0"), ConfigError, r"--temperature 0\.0"),
        (("zero-shot", "--templates", "nope"), ConfigError, "--templates nope"),
        (("zero-shot", "--split", "test"), DataError, "has the splits train, val: it has no 'test'"),
        (("zero-shot", "--batch-size", "0"), ConfigError, "--batch-size 0"),
    ],
)
def test_wrong_flags_are_named(
    model_dir: Path, folders: Path, flags: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(flags[0], "--model", model_dir, "--data", folders, *flags[1:])
