"""What the tests of public reports share: batches as plain lists, and the lists that they should be.

Each of these tests is named after a report, ``B001`` and so on, that users of some other library have made.
"""

import itertools
import json


def ids(batches):
    """The token ids of batches, as nested lists."""
    return [batch["input_ids"].tolist() for batch in batches]


def flat(batches):
    """The token ids of batches, in the order of delivery."""
    return [token for batch in batches for token in batch["input_ids"].flatten().tolist()]


def widths(batches):
    return [batch["input_ids"].shape[1] for batch in batches]


def joined(documents):
    return [token for document in documents for token in document]


def numbered(sizes, first=0):
    """Documents of these sizes, whose tokens count up over all of them."""
    counter = itertools.count(first)
    return [list(itertools.islice(counter, size)) for size in sizes]


def cut(tokens, shapes):
    """The batches of ``(rows, length)`` that lie in a list of tokens, one after the other."""
    batches, at = [], 0
    for rows, length in shapes:
        batches.append([list(tokens[at + i * length : at + (i + 1) * length]) for i in range(rows)])
        assert len(batches[-1][-1]) == length, "the scenario has too few tokens"
        at += rows * length
    return batches


def take(loader, count):
    return list(itertools.islice(loader, count))


def through_json(state):
    """The state as a new process would read it."""
    return json.loads(json.dumps(state))


class Turning:
    """Documents that begin with another one in each pass, once they are told which pass it is."""

    def __init__(self, documents):
        self.documents, self.epoch = documents, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        yield from self.of_pass(self.epoch)

    def of_pass(self, epoch):
        return self.documents[epoch:] + self.documents[:epoch]


class SizedTurning(Turning):
    """The same, with an index."""

    def __len__(self):
        return len(self.documents)

    def __getitem__(self, index):
        return self.of_pass(self.epoch)[index]
