"""The harness of ``tests/faults`` can fail: what it calls lost, duplicated, changed or hung, by hand."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1]))  # where pytest is not started by python -m pytest
from tests.faults import zygote
from tests.faults.kills import ended
from tests.faults.ledger import Ledger, digest, spans, verdict
from tests.faults.runs import KINDS, Run, Trainer
from tests.faults.tally import Tally, table

RUN = Run("file", steps=4, rows=2, accum=1)  # lengths 4, 8, 3 and 6: tokens 0..42 in batches of 8, 16, 6 and 12


def written(folder, batches):
    """The verdict on these batches, given by number and ids."""
    with Ledger(folder, 0) as ledger:
        for number, ids in batches:
            ledger.write(number, np.array(ids), np.array(ids) + 1)
    return verdict(RUN, folder)


def rows(start, length):
    return np.arange(start, start + 2 * length).reshape(2, length)


RIGHT = [(0, rows(0, 4)), (1, rows(8, 8)), (2, rows(24, 3)), (3, rows(30, 6))]


def test_batches_that_come_again_the_same_are_right(tmp_path):
    assert written(tmp_path, [*RIGHT[:2], *RIGHT[1:3], *RIGHT]) == {"lost": 0, "duplicated": 0, "changed": 0}


def test_a_line_that_a_kill_tore_is_dropped_by_the_next_process(tmp_path):
    written(tmp_path, RIGHT)
    whole, path = (tmp_path / "ledger 0").read_bytes(), tmp_path / "ledger 0"
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert written(tmp_path, RIGHT[whole[:cut].count(b"\n") :]) == {"lost": 0, "duplicated": 0, "changed": 0}
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("batches", "counts"),
    [
        (RIGHT[:3], (12, 0, 0)),
        ([*RIGHT[:2], RIGHT[3]], (6, 0, 0)),
        ([*RIGHT[:2], (2, rows(23, 3)), RIGHT[3]], (1, 1, 1)),
        ([*RIGHT[:3], (3, rows(31, 6))], (0, 0, 1)),
        ([*RIGHT[:2], (1, rows(9, 8)), *RIGHT[2:]], (1, 1, 1)),  # the last of a key is what was trained on
        ([*RIGHT[:2], (2, rows(8, 3)), RIGHT[3]], (6, 6, 1)),
        ([(0, rows(0, 4).T), *RIGHT[1:]], (0, 0, 1)),
        ([(0, rows(0, 4).astype(np.int32)), *RIGHT[1:]], (0, 0, 1)),
    ],
)
def test_tokens_lost_and_duplicated_and_batches_changed_are_counted(tmp_path, batches, counts):
    assert written(tmp_path, batches) == dict(zip(("lost", "duplicated", "changed"), counts, strict=True))


def test_spans_are_runs_of_neighbours():
    assert spans(np.array([[3, 4, 5], [6, 9, 10]])) == [(3, 7), (9, 11)] and spans(np.array([[7]])) == [(7, 8)]
    assert digest(rows(0, 4), rows(1, 4)) != digest(rows(0, 4), rows(0, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_nobody_kills_is_written_down_whole(tmp_path, kind):
    for seed in (0, 1):
        run, folder = Run(kind, steps=20, seed=seed), tmp_path / f"run {seed}"
        folder.mkdir()
        Trainer(run, folder, prefetch=0).train()
        assert verdict(run, folder) == {"lost": 0, "duplicated": 0, "changed": 0}
        assert (folder / "finished 0").exists() and len((folder / "ledger 0").read_text().splitlines()) == 40


def test_a_killed_rank_counts_also_where_another_that_misses_it_is_seen_first(tmp_path):
    def end(seconds, status):
        time.sleep(seconds)
        if status:
            os.kill(os.getpid(), status) if status > 1 else os._exit(status)

    def ranks(*endings):
        tally = Tally("ranks")
        found = ended(tally, [zygote.fork(tmp_path / "log.txt", end, *each) for each in endings], "here")
        return found, tally.sound

    assert ranks((0, 1), (0.2, 9)) == ranks((0.2, 9), (0, 1)) == ranks((0, 9), (20, 0)) == (True, True)
    assert ranks((0, 0), (0.1, 0)) == ranks((0, 1), (0.1, 1)) == (False, True)


def test_children_that_hang_or_fail_are_told_from_those_that_return(tmp_path):
    assert zygote.call(tmp_path, 20, lambda: [1, "a"]) == [1, "a"]
    with pytest.raises(zygote.Failed, match=r"ZeroDivisionError: .* by zero"):
        zygote.call(tmp_path, 20, lambda: 1 // 0)
    with pytest.raises(zygote.Hung, match=r"still there after 0\.2 seconds"):
        zygote.call(tmp_path, 0.2, time.sleep, 60)


def test_a_process_that_outlives_its_parent_is_found_and_ended(tmp_path):
    def leave_one():
        zygote.os.fork() or time.sleep(60)

    child = zygote.fork(tmp_path / "log", leave_one)
    assert zygote.reap(child, 20) == 0
    [left] = zygote.orphans({child}, 0.2)
    assert left != child and zygote.orphans({child}, 5) == []


def test_the_table_sums_up_in_its_last_line():
    one, other = Tally("R1"), Tally("R2")
    list(one.each(range(3)))
    other.add({"lost": 2, "changed": 0}, "here")
    lines = table([one, other]).splitlines()
    assert one.sound and not other.sound
    assert lines[1].split() == ["R1", "3", "0", "0", "0", "0", "0.0"]
    assert lines[3] == "  R2: here: {'lost': 2, 'changed': 0}"
    assert lines[4].split() == ["all", "3", "2", "0", "0", "0", "0.0"]
