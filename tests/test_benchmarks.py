"""The benchmarks run, in a small form, and print their tables. What they measure is nothing that a test may assert."""

import importlib
import json
import os
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

from benchmarks import documents, growth, measure
from benchmarks.corpus import write_corpus
from benchmarks.peers import LIMIT, PEERS, READY, Peer

suite = importlib.import_module("benchmarks.__main__")

HERE = {"limit", "ours", "ready", "nanogpt", "group_texts", "group_texts_streaming"}  # what needs nothing else
NAMES = [name for name, peer in PEERS.items() if peer.module in HERE]
ROOT = Path(__file__).parent.parent


def output(*command):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_throughput_prints_every_shape_and_every_way():
    text = output("benchmarks.throughput", "--tokens", "2000000", "--seconds", "0.01", "--rounds", "1")
    rates, against = text.split("Times the limit")
    for table in (rates, against):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len(lines) == 2 + 7 and all(line.count("|") == 13 for line in lines)
        cells = [cell for line in lines[2:] for cell in line.split("|")[2:-1]]
        assert len(cells) == 77 and all(float(cell) > 0 for cell in cells)
    assert {f"{rows} x {length}" for rows, length in ((2048, 8), (16, 1024), (16, 8))} <= set(re.findall(r"\d+ x \d+", rates))


def test_startup_prints_what_it_took():
    text = output("benchmarks.startup", "--imports", "1")
    assert re.search(r"import slw_data after import torch \| +[\d.]+ ms", text) and "10^12 tokens" in text
    assert re.search(r"step 1,000,000, and its batch \| +[\d.]+ ms", text)


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("counted"), 40_000, counted=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_peer_delivers_the_shape_that_is_asked_for_and_resumes_with_the_batch_that_comes_next(name, counted):
    peer = PEERS[name]
    peer.imported.prepare(counted, 16)
    batches = list(islice(peer.batches(counted, 4, 16), 31))
    assert all(batch.shape == (4, 16) and batch.dtype == torch.int64 for batch in batches)
    if peer.delivers and peer.resumes:
        assert len(torch.cat(batches).unique()) == 31 * 4 * 16
        getattr(peer.imported, "snapshot", lambda *_: None)(counted, 4, 16, 30)
        assert torch.equal(next(peer.batches(counted, 4, 16, step=30)), batches[30])


def test_what_is_never_delivered_is_counted(counted):
    lost = {name: measure.never_delivered(PEERS[name], counted, 16, 64) for name in NAMES if PEERS[name].delivers}
    assert 0.3 < lost.pop("nanoGPT, get_batch") < 0.45
    assert 0 < lost.pop("slw_data, shuffled") < 0.002, "endless: lanes come to their next epoch a row sooner or later"
    assert len(lost) == len(NAMES) - 3 and all(0 <= share < 0.001 for share in lost.values())

    class FirstHalf:
        imported = PEERS[LIMIT].imported

        def batches(self, corpus, rows, length):
            return (batch[:, : length // 2].repeat(1, 2) for batch in PEERS[LIMIT].batches(corpus, rows, length))

    assert measure.never_delivered(FirstHalf(), counted, 16, 64) == 0.5


def test_the_suite_prints_a_row_for_every_peer_the_missing_and_the_failing_too(monkeypatch, capsys):
    chosen = {name: PEERS[name] for name in (LIMIT, "slw_data, in order", READY)}
    chosen |= {"absent": Peer("litdata", "no-such-distribution"), "broken": Peer("no_such_module")}

    def run(task, **arguments):
        try:
            return json.loads(json.dumps(measure.TASKS[task](**arguments)))
        except ImportError as error:
            return {"failed": str(error)}

    monkeypatch.setattr(suite, "run", run)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for module in (suite, measure):
        monkeypatch.setattr(module, "PEERS", chosen)
    small = "--rounds 1 --seconds 0.003 --rows 2 --lengths 8,64 --tokens 50000 --counted 20000 --resume 5 --steps 1 --no-growth"
    suite.main(small.split())
    text = capsys.readouterr().out
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [len(lines) for lines in tables] == [2 + 5, 2 + 4, 2 + 2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for lines in tables for line in lines[2:]]
    assert [row[0] for row in rows[:5]] == list(chosen) and "broken: failed: No module named" in text
    assert rows[3][1] == rows[7][1] == "not installed" and rows[4][1] == rows[8][1] == "failed"
    assert all(len(rows[i]) == 11 and "-" not in rows[i][1:3] + rows[i][5:] for i in (0, 1))
    assert all(re.search(r"\d", cell) for i in (5, 6, 9, 10) for cell in rows[i][1:])


def test_a_task_that_fails_or_hangs_in_its_process_says_why():
    job = {"peer": "nobody", "folder": "", "rows": 1, "lengths": [8], "seconds": 1, "resume": 1, "steps": 1}
    assert suite.run("measure", **job) == {"failed": "KeyError: 'nobody'"}
    assert suite.run("prepare", timeout=0.01) == {"failed": "more than 0 s"}


def test_growth_prints_four_tables_and_where_they_are_not_flat_and_what_ranks_cost(capsys):
    growth.report(seconds=0.002, rounds=1, batches=4, most=2)
    text = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in text.splitlines() if "in order, us" in line] == [
        "tokens in the store",
        "step",
        "files of 2^20 tokens",
        "lanes",
    ]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    ways = [line.split("|")[1].strip() for line in lines[-34:]]
    assert ways[0] == "stream, in order, 8" and ways[23] == "pack, shuffled, divided, 1,024"
    assert ways[24] == "stream, divided stream, 1 lane, 8" and ways[-1] == "pack, divided stream, 1,024"
    assert len(lines) == 4 * 4 + 2 + 34 and len(re.findall(r"^in order: .*; shuffled: ", text, re.MULTILINE)) == 4
    assert growth.verdict(["1", "2"], [1.0, 1.2]) == "flat, within 20%"
    assert growth.verdict(["1", "2", "3"], [1.0, 2.0, 1.1]) == "not flat, 2.0 times at 2"


def test_documents_prints_every_mode_over_a_store_and_over_streams(capsys):
    documents.report(count=30_000, seconds=0.002, rounds=1, most=1)
    lines = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert lines.count("documents, merely iterated") == 1 and "window, shuffled" in lines
    kinds = ("lists", "NumPy documents", "Parquet", "Parquet, tokenizer")
    assert [line for line in lines if line.endswith("two workers")] == [f"{kind}: stream, two workers" for kind in kinds]


@pytest.mark.parametrize("option", ["--rounds=0", "--seconds=-1", "--seconds=nan", "--rows=0", "--lengths=8,0", "--steps=0"])
def test_options_that_count_or_last_are_above_zero(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        suite.parse([option])
    assert re.search(r"argument --\w+: must be above 0, got (0|-1|nan)\n", capsys.readouterr().err)


@pytest.mark.parametrize("module", ["throughput", "startup", "growth", "documents"])
def test_each_benchmark_refuses_to_measure_nothing(module):
    option = "--imports" if module == "startup" else "--rounds"
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", option, "0"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and f"{option}: must be above 0, got 0" in done.stderr
