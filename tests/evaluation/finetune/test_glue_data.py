"""GLUE's files, as their authors and as Hugging Face release them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssmke.errors import DataError
from ssmke.evaluation.finetune.glue_data import TASKS, read_glue


def write(root: Path, task: str, **files: str) -> None:
    (root / task).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / task / f"{name}.tsv").write_bytes(text.encode("utf-8"))


def test_quotes_and_odd_line_separators_do_not_swallow_lines(tmp_path: Path) -> None:
    lines = ['"he said\t0', "it\u2028was\x85fine\t1", 'a "b" c"\t1', "' quoted\r\t0"]
    text = "sentence\tlabel\n" + "\n".join(lines) + "\n"
    write(tmp_path, "SST-2", train=text, dev=text)
    read = read_glue(tmp_path, TASKS["SST-2"])
    assert read.train == [
        ('"he said', None, 0),
        ("it\u2028was\x85fine", None, 1),
        ('a "b" c"', None, 1),
        ("' quoted\r", None, 0),
    ]
    assert read.dev == {"dev": read.train}
    assert not read.skipped


def test_cola_has_no_header(tmp_path: Path) -> None:
    rows = "gj04\t1\t\tOur friends won't buy this.\r\nclc95\t0\t*\tBooks \"sent was.\n"
    write(tmp_path, "CoLA", train=rows, dev=rows)
    assert read_glue(tmp_path, TASKS["CoLA"]).train == [
        ("Our friends won't buy this.", None, 1),
        ('Books "sent was.', None, 0),
    ]


def test_mnli_finds_columns_by_name_and_reads_both_dev_sets(tmp_path: Path) -> None:
    train = "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tA man\tA boy\tneutral\tcontradiction\n"
    dev = (
        "index\tsentence1\tsentence2\tlabel1\tlabel2\tgold_label\n"
        + "0\ta\tb\tneutral\tneutral\tentailment\n"
    )
    write(tmp_path, "MNLI", train=train, dev_matched=dev, dev_mismatched=dev.replace("entailment", "neutral"))
    read = read_glue(tmp_path, TASKS["MNLI"])
    assert read.train == [("A man", "A boy", 2)]
    assert read.dev == {"dev_matched": [("a", "b", 0)], "dev_mismatched": [("a", "b", 1)]}


def test_mrpc_has_a_byte_order_mark_and_stsb_scores(tmp_path: Path) -> None:
    mrpc = '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said "no\t"No," he said\n'
    write(tmp_path, "MRPC", train=mrpc, dev=mrpc)
    assert read_glue(tmp_path, TASKS["MRPC"]).train == [('He said "no', '"No," he said', 1)]
    stsb = "index\tsentence1\tsentence2\tscore\n0\ta\tb\t3.800\n"
    write(tmp_path, "STS-B", train=stsb, dev=stsb)
    assert read_glue(tmp_path, TASKS["STS-B"]).train == [("a", "b", 3.8)]


@pytest.mark.parametrize(
    ("task", "columns"), [("QNLI", "question\tsentence"), ("RTE", "sentence1\tsentence2")]
)
def test_entailment_tasks(tmp_path: Path, task: str, columns: str) -> None:
    text = f"index\t{columns}\tlabel\n0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n"
    write(tmp_path, task, train=text, dev=text)
    assert [label for _, _, label in read_glue(tmp_path, TASKS[task]).train] == [0, 1]


def test_a_few_broken_lines_are_counted_many_are_refused(tmp_path: Path) -> None:
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    good = [f"{i}\t1\t2\thow {i}\twhy {i}\t{i % 2}\n" for i in range(200)]
    write(tmp_path, "QQP", train=header + "".join([*good, "7\t1\t2\tcut off\n"]), dev=header + "".join(good))
    read = read_glue(tmp_path, TASKS["QQP"])
    assert len(read.train) == 200
    assert read.skipped == {"train.tsv": 1}
    write(tmp_path, "QQP", train=header + "".join([*good, *["7\t1\n"] * 10]))
    with pytest.raises(DataError, match=r"train\.tsv: 10 of 210 lines"):
        read_glue(tmp_path, TASKS["QQP"])


def test_parquet_gives_what_tsv_gives(tmp_path: Path) -> None:
    rows = [('he "said', 0), ("it\u2028was", 1)]
    write(tmp_path / "tsv", "SST-2", **dict.fromkeys(
        ("train", "dev"), "sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)
    ))  # fmt: skip
    (tmp_path / "hf" / "sst2").mkdir(parents=True)
    table = pa.table({"sentence": [r[0] for r in rows], "label": [r[1] for r in rows], "idx": [0, 1]})
    for split in ("train", "validation"):
        pq.write_table(table, tmp_path / "hf" / "sst2" / f"{split}-00000-of-00001.parquet")
    one, other = (read_glue(tmp_path / kind, TASKS["SST-2"]) for kind in ("tsv", "hf"))
    assert one == other


def test_parquet_of_mnli_has_two_validation_files(tmp_path: Path) -> None:
    (tmp_path / "mnli").mkdir()
    for label, split in enumerate(("train", "validation_matched", "validation_mismatched")):
        table = pa.table({"premise": ["p"], "hypothesis": ["h"], "label": [label]})
        pq.write_table(table, tmp_path / "mnli" / f"{split}-00000-of-00001.parquet")
    read = read_glue(tmp_path, TASKS["MNLI"])
    assert read.dev == {"dev_matched": [("p", "h", 1)], "dev_mismatched": [("p", "h", 2)]}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no RTE/"):
        read_glue(tmp_path, TASKS["RTE"])
    write(tmp_path, "RTE", train="index\tsentence1\tlabel\n0\ta\tentailment\n")
    with pytest.raises(DataError, match="no column 'sentence2'"):
        read_glue(tmp_path, TASKS["RTE"])
    write(tmp_path, "RTE", train="index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n")
    with pytest.raises(DataError, match=r"dev\.tsv is missing"):
        read_glue(tmp_path, TASKS["RTE"])
    (tmp_path / "RTE" / "dev.tsv").write_bytes(
        b"index\tsentence1\tsentence2\tlabel\n0\t\xff\xfe\tb\tentailment\n"
    )
    with pytest.raises(DataError, match="cannot be read"):
        read_glue(tmp_path, TASKS["RTE"])
