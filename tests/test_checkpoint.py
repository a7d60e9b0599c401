"""States in files: the exact state or a refusal, whatever happened to the file, and never half a file.

What is loaded is compared with the state that was saved, and its batches with the tokens that follow in the source. Disks
that are full or broken are made by replacing the system's calls, one after the other.
"""

import errno
import hashlib
import itertools
import json
import os
import resource
import threading

import numpy as np
import pytest
from refusals import refused

from slw_data import ConstantSchedule, SLWDataset, SLWLoader, StateError, load_state, save_state

DOCS = [list(range(20 * i, 20 * i + 1 + i * 5 % 20)) for i in range(60)]
CALLS = ("open", "write", "fsync", "replace", "close")


def loader_of(source=None, **options):
    source = np.arange(600) if source is None else source
    return SLWLoader(SLWDataset(source, ConstantSchedule(4), **{"batch_size": 2, **options}), prefetch=0)


def moved(count, *args, **options):
    loader = loader_of(*args, **options)
    list(itertools.islice(loader, count))
    return loader


class Held:
    """Any object with a state."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


# -- what comes back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [None, DOCS], ids=["store", "stream"])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_saved_state_comes_back_and_the_run_goes_on_there(tmp_path, source, count):
    loader, again = moved(count, source, num_lanes=2), loader_of(source, num_lanes=2)
    save_state(tmp_path / "state.json", loader)
    load_state(str(tmp_path / "state.json"), again)
    assert again.state_dict() == loader.state_dict()
    whole = [batch["input_ids"].tolist() for batch in loader_of(source, num_lanes=2)]
    assert [batch["input_ids"].tolist() for batch in again] == whole[count:]


def test_a_dataset_alone_is_saved_and_loaded_too(tmp_path):
    dataset, again = loader_of().dataset, loader_of().dataset
    list(itertools.islice(dataset, 5))
    save_state(tmp_path / "state.json", dataset)
    load_state(tmp_path / "state.json", again)
    assert next(iter(again))["input_ids"].tolist() == [[40, 41, 42, 43], [44, 45, 46, 47]]


def test_the_file_is_json_for_people_with_the_hash_of_its_state(tmp_path):
    loader = moved(3)
    save_state(tmp_path / "state.json", loader)
    text = (tmp_path / "state.json").read_text(encoding="ascii")
    found = json.loads(text)
    assert found["state"] == loader.state_dict() and '\n    "step": 3,\n' in text
    canonical = json.dumps(dict(sorted(loader.state_dict().items())))
    assert found["sha256"] == hashlib.sha256(canonical.encode()).hexdigest()
    again = loader_of()
    for other in (json.dumps(found), json.dumps(found, sort_keys=True, indent=8)):  # laid out by another program
        (tmp_path / "state.json").write_text(other)
        load_state(tmp_path / "state.json", again)
        assert again.step == 3


def test_options_go_to_the_loader_and_its_refusals_name_the_file(tmp_path):
    path, other = tmp_path / "state.json", loader_of(np.arange(700))
    save_state(path, moved(3))
    refused(lambda: load_state(path, other), str(path), "source: saved", "strict=False", error=StateError)
    refused(lambda: load_state(path, loader_of(), expected_step=4), str(path), "expected_step=4", error=StateError)
    assert other.step == 0
    with pytest.warns(UserWarning, match=r"strict=False"):
        load_state(path, other, strict=False)
    assert other.step == 3


def test_a_file_that_is_not_there_is_filenotfounderror(tmp_path):
    loader = moved(3)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        load_state(tmp_path / "none.json", loader)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save_state(tmp_path / "nowhere" / "state.json", loader)
    assert loader.step == 3


@pytest.mark.parametrize(
    "state", [{"a": (1, 2)}, {1: 2}, {"a": {3: 4}}, {"a": float("nan")}, {"a": {1}}, {"a": np.int64(1)}], ids=repr
)
def test_a_state_that_json_would_change_is_not_saved(tmp_path, state):
    save_state(tmp_path / "state.json", Held({"a": 0}))
    refused(lambda: save_state(tmp_path / "state.json", Held(state)), "state must", "JSON", error=StateError)
    again = Held(None)
    load_state(tmp_path / "state.json", again)
    assert again.state == {"a": 0} and os.listdir(tmp_path) == ["state.json"]


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "there" / "state.json")
    for value in (1, 2):
        save_state(tmp_path / "latest", Held({"a": value}))
    assert (tmp_path / "latest").is_symlink() and os.listdir(tmp_path / "there") == ["state.json"]
    assert json.loads((tmp_path / "there" / "state.json").read_text())["state"] == {"a": 2}


def test_a_device_or_a_folder_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(FileExistsError, match="no regular file") as caught:
            save_state(path, Held({"a": 1}))
        assert caught.value.filename == str(path)
    assert os.listdir(tmp_path) == ["fifo"]


# -- damage ------------------------------------------------------------------------------------------------------------


def exact_or_refused(path, content, loader, before, saved):
    """``content`` gives the saved state, or StateError and no change; says whether it was refused."""
    path.write_bytes(content)
    try:
        load_state(path, loader)
    except StateError as error:
        assert str(path) in str(error) and loader.state_dict() == before
        return True
    assert loader.state_dict() == saved
    loader.load_state_dict(before)
    return False


@pytest.fixture
def saved_file(tmp_path):
    path, loader, stopped = tmp_path / "state.json", moved(1), moved(37)
    save_state(path, stopped)
    return path, path.read_bytes(), loader, loader.state_dict(), stopped.state_dict()


def test_a_file_cut_at_any_byte_is_refused(saved_file):
    path, content, *states = saved_file
    taken = [size for size in range(len(content)) if not exact_or_refused(path, content[:size], *states)]
    assert taken == [len(content) - 1], "only the newline at the end may be missing"


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(saved_file):
    path, content, *states = saved_file
    taken = []
    for place, bit in itertools.product(range(len(content)), range(8)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        if not exact_or_refused(path, bytes(flipped), *states):
            taken.append(chr(content[place]))
    assert set(taken) <= {" ", "\n"}, "blanks may become other blanks"


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"", ["expected JSON", "found 0 bytes", "load an earlier one"]),
        (b"\x80\x04\x95pickled", ["expected JSON", "found 10 bytes"]),
        (b"[" * 100_000, ["expected JSON", "found 100000 bytes"]),
        (b"[1]", ['expected JSON that begins with {"format": "slw_data state"', "found b'[1]'"]),
        (b'{"step": 3}', ["found b'{\"step\": 3}'"]),
        (b'{"format": "slw_data state", "version": 2, "sha256": "", "state": {}}', ["expected version 1", "found 2"]),
        (b'{"format": "slw_data state", "version": true, "sha256": "", "state": {}}', ["expected version 1", "True"]),
        (b'{"format": "slw_data state", "version": 1, "sha256": "", "state": NaN}', ["expected JSON", "NaN|Out of range"]),
        (b'{"format": "slw_data state", "version": 1, "sha256": 7, "state": {}}', ["sha256 is 7", "44136fa355b3"]),
    ],
    ids=range(9),
)
def test_what_is_no_state_file_is_refused_by_name(tmp_path, content, facts):
    path, loader = tmp_path / "state.json", moved(3)
    path.write_bytes(content)
    text = refused(lambda: load_state(path, loader), f"{path} is no whole file of save_state", error=StateError)
    for fact in facts:
        assert any(one in text for one in fact.split("|")), text
    assert loader.step == 3 and len(text) < 600


# -- disks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_at_any_call_leaves_the_file_whole_and_no_other(tmp_path, monkeypatch, name, code):
    """The ``at``-th call of each kind fails in turn, until no call is left to fail."""
    path, former, latter = tmp_path / "state.json", Held({"a": 1}), Held({"a": 2})
    for at in itertools.count():
        save_state(path, former)
        with monkeypatch.context() as patched:
            calls = failing(patched, name, at, code)
            try:
                save_state(path, latter)
            except OSError as error:
                assert (error.errno, error.filename) == (code, str(path)) and type(error) is type(OSError(code, ""))
                failed = True
            else:
                failed = False
        loaded = Held(None)
        load_state(path, loaded)
        assert os.listdir(tmp_path) == ["state.json"]
        if not failed:
            break
        assert loaded.state == {"a": 1 if at == 0 else 2}, "the second call of a kind is of the folder, after the move"
    assert loaded.state == {"a": 2} and at == len(calls) == (1 if name in ("write", "replace") else 2)


def failing(patched, name, at, code):
    """Replace ``os.name`` by one whose ``at``-th call fails; returns the calls."""
    calls, original = [], getattr(os, name)

    def call(*args):
        calls.append(args)
        if len(calls) != at + 1:
            return original(*args)
        if name == "close":
            original(*args)
        raise OSError(code, os.strerror(code))

    patched.setattr(os, name, call)
    return calls


def test_a_disk_that_takes_a_part_at_a_time_gets_all_of_it(tmp_path, monkeypatch):
    original = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: original(descriptor, content[:7]))
    save_state(tmp_path / "state.json", Held({"a": 1}))
    loaded = Held(None)
    load_state(tmp_path / "state.json", loaded)
    assert loaded.state == {"a": 1}


def test_a_file_may_not_be_too_large_for_the_limit(tmp_path):
    """The system's own limit instead of a replaced call."""
    path, soft = tmp_path / "state.json", resource.getrlimit(resource.RLIMIT_FSIZE)
    save_state(path, Held({"a": 1}))
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, soft[1]))
    try:
        with pytest.raises(OSError, match=r"state\.json") as caught:
            save_state(path, Held({"a": "x" * 1000}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    loaded = Held(None)
    load_state(path, loaded)
    assert caught.value.errno == errno.EFBIG and loaded.state == {"a": 1} and os.listdir(tmp_path) == ["state.json"]


def test_the_state_reaches_the_disk_before_its_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    done = []
    for name in ("write", "fsync", "replace"):
        original = getattr(os, name)

        def call(*args, name=name, original=original):
            done.append((name, os.path.isdir(f"/proc/self/fd/{args[0]}") if name == "fsync" else None))
            return original(*args)

        monkeypatch.setattr(os, name, call)
    save_state(tmp_path / "state.json", Held({"a": 1}))
    assert done == [("write", None), ("fsync", False), ("replace", None), ("fsync", True)]


def test_many_that_save_at_once_leave_one_whole_file(tmp_path):
    def save(value):
        for _ in range(20):
            save_state(tmp_path / "state.json", Held({"a": str(value) * 500 * value}))

    threads = [threading.Thread(target=save, args=(value,)) for value in range(1, 5)]
    for thread in threads:
        thread.start()
    loaded, seen = Held(None), set()
    while any(thread.is_alive() for thread in threads):
        try:
            load_state(tmp_path / "state.json", loaded)
            seen.add(loaded.state["a"][0])
            assert loaded.state["a"] == loaded.state["a"][0] * 500 * int(loaded.state["a"][0])
        except FileNotFoundError:
            assert not seen
    assert len(seen) >= 1 and os.listdir(tmp_path) == ["state.json"]
