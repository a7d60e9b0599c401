"""``slw-data check --digest``: a digest of every token, kept beside the store; and configurations with lists for names."""

import json
from hashlib import blake2b

import numpy as np
import pytest
from datasets import Dataset
from store_oracle import write_megatron

from slw_data import cli
from slw_data.cli import reading

TOKENS = np.arange(200_000) * 7919 % 50_000


def run(capsys, *argv):
    capsys.readouterr()
    status = cli.main([str(part) for part in argv])
    output, errors = capsys.readouterr()
    assert errors == ""
    return status, output.splitlines()


def by_hand(tokens, dtype="<u2"):
    return blake2b(np.asarray(tokens).astype(dtype).tobytes(), digest_size=16).hexdigest()


def raw(folder, tokens=TOKENS):
    path = folder / "train.bin"
    np.asarray(tokens).astype("<u2").tofile(path)
    return path


CHECK = ("--dtype", "uint16")


@pytest.mark.parametrize("block", [2**20, 4099])
def test_a_digest_is_printed_and_recorded_beside_the_store_whatever_the_blocks(capsys, tmp_path, monkeypatch, block):
    monkeypatch.setattr(reading.spans, "__kwdefaults__", {**reading.spans.__kwdefaults__, "size": block})
    path = raw(tmp_path)
    status, lines = run(capsys, "check", path, *CHECK, "--digest")
    record = tmp_path / "train.bin.digest"
    assert status == 0 and lines[0] == f"digest {by_hand(TOKENS)}, recorded in {record}"
    assert lines[1].startswith("no faults in 200,000 tokens")
    expected = {"version": 1, "dtype": "uint16", "tokens": 200_000, "documents": None, "blake2b": by_hand(TOKENS)}
    assert json.loads(record.read_text()) == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train.bin", "train.bin.digest"]
    status, lines = run(capsys, "check", path, *CHECK, "--digest")
    assert status == 0 and lines[0] == f"digest {by_hand(TOKENS)}, as recorded in {record}"


@pytest.mark.parametrize("digest", [[], ["--digest"]])
@pytest.mark.parametrize("at", [0, 77_777, 199_999])
def test_a_single_token_that_changed_since_it_was_recorded_is_a_fault(capsys, tmp_path, digest, at):
    path = raw(tmp_path)
    run(capsys, "check", path, *CHECK, "--digest")
    before = (tmp_path / "train.bin.digest").read_text()
    changed = TOKENS.copy()
    changed[at] += 1
    raw(tmp_path, changed)
    status, lines = run(capsys, "check", path, *CHECK, *digest)
    assert status == 1 and lines[-1].startswith("1 fault in")
    assert by_hand(TOKENS) in lines[0] and by_hand(changed) in lines[0] and "train.bin.digest" in lines[0]
    assert (tmp_path / "train.bin.digest").read_text() == before


def test_nothing_is_recorded_unless_it_is_asked_for_nor_of_a_store_that_cannot_be_read_whole(capsys, tmp_path):
    path = raw(tmp_path)
    run(capsys, "check", path, *CHECK)
    assert [p.name for p in tmp_path.iterdir()] == ["train.bin"]
    with path.open("ab") as file:
        file.write(b"x")
    status, lines = run(capsys, "check", path, *CHECK, "--digest")
    assert status == 1 and "spare" in lines[0] and not any(line.startswith("digest") for line in lines)
    assert [p.name for p in tmp_path.iterdir()] == ["train.bin"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"version": 1, "blake2b": 3}'])
def test_a_record_that_is_damaged_is_a_fault_and_is_kept(capsys, tmp_path, text):
    path, record = raw(tmp_path), tmp_path / "train.bin.digest"
    record.write_text(text)
    status, lines = run(capsys, "check", path, *CHECK, "--digest")
    assert status == 1 and str(record) in lines[0] and "no record" in lines[0] and record.read_text() == text


def test_documents_and_dtype_are_part_of_a_digest(capsys, tmp_path):
    write_megatron(tmp_path / "a", [[1, 2], [3]])
    status, lines = run(capsys, "check", tmp_path / "a.idx", "--digest")
    assert status == 0 and lines[0].endswith(f"recorded in {tmp_path / 'a.bin.digest'}")
    for name in ("a", "a.bin", "a.idx"):
        assert "as recorded" in run(capsys, "check", tmp_path / name, "--digest")[1][0]
    write_megatron(tmp_path / "a", [[1], [2, 3]])
    status, lines = run(capsys, "check", tmp_path / "a")
    assert status == 1 and "documents" in lines[0]
    path = raw(tmp_path)
    run(capsys, "check", path, *CHECK, "--digest")
    status, lines = run(capsys, "check", path, "--dtype", "uint32")
    assert status == 1 and any("uint16" in line and "uint32" in line and ".digest" in line for line in lines)


def test_each_column_of_a_saved_dataset_has_a_record_beside_the_folder(capsys, tmp_path):
    Dataset.from_dict({"input_ids": [[1, 2], [3]], "mask": [[0, 1], [0]]}).save_to_disk(tmp_path / "rows")
    for column in ("input_ids", "mask"):
        status, lines = run(capsys, "check", tmp_path / "rows", "--column", column, "--digest")
        assert status == 0 and lines[0].endswith(f"recorded in {tmp_path / f'rows.{column}.digest'}")
    Dataset.from_dict({"input_ids": [[1, 2], [3]], "mask": [[0, 1], [1]]}).save_to_disk(tmp_path / "other")
    (tmp_path / "rows.mask.digest").rename(tmp_path / "other.mask.digest")
    assert run(capsys, "check", tmp_path / "other", "--column", "mask")[0] == 1


def test_several_stores_have_a_record_each(capsys, tmp_path):
    paths = [tmp_path / f"{n}.npy" for n in range(3)]
    for n, path in enumerate(paths):
        np.save(path, TOKENS[n:])
    status, lines = run(capsys, "check", *paths, "--digest")
    assert status == 0 and [line.partition(",")[0] for line in lines[:3]] == [
        f"digest {by_hand(TOKENS[n:], '<i8')}" for n in range(3)
    ]


@pytest.mark.parametrize("value", ["[linear]", "{linear: 1}", "3", "true"])
def test_a_schedule_that_is_no_name_is_refused_in_one_line(capsys, tmp_path, value):
    config = tmp_path / "run.yaml"
    config.write_text(f"schedule: {value}\nwarmup_steps: 10\nbatch_size: 2\ntotal_steps: 20\n")
    with pytest.raises(SystemExit) as caught:
        cli.main(["plan", "--config", str(config)])
    assert caught.value.code == 2 and "schedule must be one of linear, root" in capsys.readouterr().err
