"""Credentials land nowhere: refused in recipes and DeepSpeed JSONs, masked in messages, absent from MLflow."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest

from ssmke.credentials import masked
from ssmke.data.remote.fetch import RemoteConfig, fetch_bytes
from ssmke.data.remote.sources import without_secrets
from ssmke.errors import ConfigError, DataError
from ssmke.recipes import named, parse_recipe
from ssmke.tracking import Tracker, TrackingConfig
from ssmke.tracking.closing import close_run
from ssmke.training import ds_config

SECRET = "S3CR3Tvalue0123456789"
NOTHING = ["--data.make", "nothing", "--data.shards"]


@pytest.mark.parametrize(
    "flags",
    [
        [
            "--data.shards",
            f"https://u:{SECRET}@h/x",
        ],  # with --data.make scenes, which is refused for other reasons
        [*NOTHING, f"https://u:{SECRET}@h/x"],
        [*NOTHING, f"https://h/x?{SECRET}"],
        [*NOTHING, f"https://h/x?X-Amz-Signature={SECRET}*0"],
        [*NOTHING, f"https://h/x#access_token={SECRET}"],
        [*NOTHING, f"abfs://c/x?sig={SECRET}"],
        [*NOTHING, f"simplecache::https://u:{SECRET}@h/x"],
        [*NOTHING, f"https:/u:{SECRET}@h/x"],
        [*NOTHING, f"https://u:{SECRET}@[h/x"],
        [*NOTHING, "d", "--data.eval-shards", f"s3://KEY:{SECRET}@b/x"],
        ["--tracking.uri", f"postgresql://u:{SECRET}@h/db"],
        ["--tracking.uri", f"https://h/?token={SECRET}"],
        ["--tracking.uri", f"foo://u:{SECRET}@h/db"],
        ["--model.image.weights", f"https://u:{SECRET}@h/w.safetensors"],
        ["--name", f"hf_{SECRET}"],
    ],
)
def test_a_recipe_with_a_credential_is_refused_without_saying_it(flags: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        parse_recipe(flags, "pretrain.py")
    assert SECRET not in str(error.value)


def test_recipes_without_credentials_are_taken() -> None:
    flags = [*NOTHING, "a=data/x*2", "https://h:80/x", "hf://datasets/u/r@main/x", "s3://b/x*0.5"]
    recipe = parse_recipe([*flags, "--tracking.uri", "postgresql://u@h/db"], "pretrain.py")
    assert json.dumps(recipe.resolved())


@pytest.mark.parametrize("document", [{"comet": {"api_key": "abc"}}, {"x": [f"https://u:{SECRET}@h"]}])
def test_a_deepspeed_json_with_a_credential_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="a credential may not stand there") as error:
        ds_config.resolve(document, "ds.json", batch_size=8, world_size=1, cuda=False)
    assert SECRET not in str(error.value)
    assert "abc" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"HF_TOKEN={SECRET} x", "HF_TOKEN=*** x"),
        (f"postgresql+psycopg2://u:p@{SECRET}@h/db", "postgresql+psycopg2://***@h/db"),
        (f"https://{SECRET}@github.com/a", "https://***@github.com/a"),
        (f"Authorization: Bearer {SECRET}", "Authorization: Bearer ***"),
        (f"hf_{SECRET}", "***"),
        (f"a=1&password={SECRET}&b", "a=1&password=***&b"),
        ("http://h:80/x@y, 20,000 tokens: fine; key: a", "http://h:80/x@y, 20,000 tokens: fine; key: a"),
        ("sqlite:////a@b/mlflow.db", "sqlite:////a@b/mlflow.db"),
    ],
)
def test_masking(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_masking_is_quick_whatever_comes() -> None:
    began = time.process_time()
    for piece in ("a:", "https://", "x_TOKEN", "?", "eyJ", "-"):
        masked(piece * 10_000)
    assert time.process_time() - began < 5  # quadratic time would be minutes


def test_messages_of_libraries_lose_queries_and_users() -> None:
    text = f"Cannot connect to https://u:p{SECRET}@h/x?{SECRET} (url='http://h/y?{SECRET}#z')"
    assert without_secrets(text) == "Cannot connect to https://h/x (url='http://h/y')"


def test_an_address_that_cannot_be_fetched_is_told_without_its_signature() -> None:
    with pytest.raises(DataError) as error:
        fetch_bytes(
            f"http://u:{SECRET}@127.0.0.1:9/x?{SECRET}", RemoteConfig(retries=0, timeout_seconds=5), 10
        )
    assert "127.0.0.1:9/x" in str(error.value)
    assert SECRET not in str(error.value)


def test_mlflow_and_the_run_folder_get_no_secret_of_the_environment(tmp_path: Path) -> None:
    names = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "WANDB_API_KEY", "https_proxy")
    environment = dict.fromkeys(names, SECRET) | {"WORLD_SIZE": "2"}
    tracker = Tracker.start(
        TrackingConfig(), run_dir=tmp_path / "runs" / "r", run_name="r", environment=environment
    )
    recipe = dataclasses.asdict(named("scenes-tiny"))
    tracker.params({"recipe": recipe, "note": f"https://u:{SECRET}@h"})
    tracker.tags({"why": f"https://h/x?sig={SECRET}"})
    assert tracker.finish(timeout_s=60)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "environment.json" and "WORLD_SIZE" in path.read_text() for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_a_foreign_run_folder_does_not_choose_where_our_credentials_go(tmp_path: Path) -> None:
    run = tmp_path / "ws" / "run"
    run.mkdir(parents=True)
    (run / "mlflow_run_id").write_text("abc\n")
    (run / "recipe.json").write_text(json.dumps({"tracking": {"uri": f"http://u:{SECRET}@127.0.0.1:9"}}))
    told = close_run(run, ended_wall_ns=1)
    assert "if that is yours, say --tracking-uri" in told
    assert SECRET not in told
    outside = tmp_path / "elsewhere" / "other.db"
    outside.parent.mkdir()
    outside.write_bytes(b"")
    (run / "recipe.json").write_text(json.dumps({"tracking": {"uri": f"sqlite:///{outside}"}}))
    assert "store is not known" in close_run(run, ended_wall_ns=1)
    assert outside.read_bytes() == b""
