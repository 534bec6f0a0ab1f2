"""`ssmke search` from the command line, on a real student and real shards; the server as a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from ssmke.cli.main import main as ssmke
from ssmke.cli.search import main
from ssmke.data.dataset import ImageTextShards
from ssmke.errors import ConfigError, DataError


def run(*arguments: object) -> int:
    return main(list(map(str, arguments)))


@pytest.fixture(scope="module")
def index_dir(model_dir: Path, shards_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "index"
    assert (
        run(
            "index",
            "--model",
            model_dir,
            "--images",
            shards_dir,
            "--out",
            out,
            "--device",
            "cpu",
            "--batch-size",
            8,
        )
        == 0
    )
    return out


def test_index_says_what_it_did_and_why(
    model_dir: Path, shards_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "index",
        "--model",
        model_dir,
        "--images",
        shards_dir,
        "--split",
        "test",
        "--out",
        tmp_path / "i",
    )
    assert run(*arguments, "--device", "cpu") == 0
    told = capsys.readouterr().out
    assert "20 pictures, " in told
    assert "skipped 3: truncated image" in told
    assert "pictures: FAISS flat, exact (20 vectors of 32 are 0.0 MB: small enough" in told
    assert run(*arguments, "--device", "cpu") == 0
    assert "23 pictures were done before" in capsys.readouterr().out


def test_find_writes_page_sheet_and_json_that_agree(
    index_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html, sheet, out = tmp_path / "new" / "a.html", tmp_path / "a.png", tmp_path / "a.json"
    arguments = (
        "find",
        "--index",
        index_dir,
        "--split-demo",
        4,
        "--html",
        html,
        "--sheet",
        sheet,
        "--json",
        out,
    )
    assert run(*arguments, "--top", 26) == 0
    told = capsys.readouterr().out
    assert "among the first 26: 4 of 4" in told, "of all pictures, every right one is found"
    answers = json.loads(out.read_text())["answers"]
    assert [len(answer["hits"]) for answer in answers] == [26] * 4
    assert all(sum(hit["right"] for hit in answer["hits"]) == 1 for answer in answers)
    page = html.read_text()
    assert page.count("✓ right") == 4
    assert page.count('src="data:image/jpeg;base64,') == 4 * 26
    assert "Content-Security-Policy" in page
    assert "<script" not in page
    with Image.open(sheet) as image:
        assert image.width > 1000


def test_the_table_of_a_talk_marks_what_the_query_file_says(
    index_dir: Path, shards: ImageTextShards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = shards.key(0)
    lines = [{"query": "a dog", "right": key}, {"query": "two [b]cats[/b]"}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert (
        run(
            "find",
            "--index",
            index_dir,
            "--queries",
            tmp_path / "q.jsonl",
            "--top",
            26,
            "--json",
            tmp_path / "a",
        )
        == 0
    )
    first, second = json.loads((tmp_path / "a").read_text())["answers"]
    assert [hit["key"] for hit in first["hits"] if hit["right"]] == [key]
    assert "right" not in second["hits"][0]
    assert "right at the first place:" in capsys.readouterr().out


def test_the_table_fits_a_terminal_of_80_columns(
    index_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("find", "--index", index_dir, "--split-demo", 4) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(line for line in lines if "query" in line)
    assert [cell.strip() for cell in header.strip("┃").split("┃")] == ["id", "query", *"12345"]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"query": "a", "right": "nowhere"}', r"line 1 .*no picture with the key 'nowhere'"),
        ('\n{"query": 3}', "line 2 of"),
        ("[]", "line 1 of"),
        ('{"query": " "}', "line 1 of"),
        ('{"query": "a", "right": 3.5}', "line 1 of"),
        ("[" * 3000, "line 1 of"),
        ("", "has no queries"),
    ],
)
def test_bad_query_files_name_the_line(index_dir: Path, tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "q.jsonl").write_text(content)
    with pytest.raises(DataError, match=told):
        run("find", "--index", index_dir, "--queries", tmp_path / "q.jsonl")


def test_a_picture_finds_captions_or_pictures(
    index_dir: Path, shards: ImageTextShards, tmp_path: Path
) -> None:
    (tmp_path / "p.jpg").write_bytes(shards.read(7).image)
    arguments = ("find", "--index", index_dir, "--image", tmp_path / "p.jpg", "--json", tmp_path / "a.json")
    assert run(*arguments) == 0
    (answer,) = json.loads((tmp_path / "a.json").read_text())["answers"]
    assert answer["searched"] == "captions"
    assert run(*arguments, "--to", "images") == 0
    (answer,) = json.loads((tmp_path / "a.json").read_text())["answers"]
    assert (answer["searched"], answer["hits"][0]["key"]) == ("images", shards.key(7))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "give one of: a text"),
        (("a dog", "--split-demo", "3"), "give one of: a text"),
        (("--split-demo", "-3"), "--split-demo -3"),
        (("a dog", "--top", "0"), "--top 0"),
        (("a dog", "--sheet", "a.gif"), "--sheet a.gif"),
        (("a dog", "--device", "abacus"), "--device abacus"),
        (("--image", "nowhere.jpg"), "--image nowhere.jpg: missing file"),
    ],
)
def test_bad_flags_are_named(index_dir: Path, arguments: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        run("find", *arguments, "--index", index_dir)


def test_a_model_that_was_moved_is_asked_for(index_dir: Path, model_dir: Path, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "i"
    shutil.copytree(index_dir, moved)
    manifest = json.loads((moved / "index.json").read_text())
    (moved / "index.json").write_text(json.dumps(manifest | {"model": "/moved/model"}))
    with pytest.raises(ConfigError, match="was /moved/model, which is not there any more: give --model"):
        run("find", "a dog", "--index", moved)
    assert run("find", "a dog", "--index", moved, "--model", model_dir) == 0


def test_a_folder_that_is_no_index_ends_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ssmke(["search", "find", "a dog", "--index", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "is not an index" in told
    assert told.count("\n") == 1


def test_serve_answers_and_ends_with_ctrl_c(index_dir: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ssmke.cli.main",
        "search",
        "serve",
        "--index",
        str(index_dir),
        "--port",
        "0",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert found, line
            with urllib.request.urlopen(f"{found[0]}/api/search?q=a+dog&top=2") as answer:
                assert len(json.load(answer)["hits"]) == 2
            other = [*command[:-1], found[0].rpartition(":")[2]]
            second = subprocess.run(other, capture_output=True, text=True, env=environment, check=False)
            assert second.returncode == 2
            assert re.fullmatch(r"error: --host 127\.0\.0\.1 --port \d+: .*in use.*\n", second.stderr)
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, rest) == (0, "stopped\n")
    assert "Traceback" not in errors
