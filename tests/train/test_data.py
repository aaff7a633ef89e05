"""Documents, ids, packed rows and batches by step."""

import gzip
import json

import grain
import numpy as np
import pytest

from jtok.errors import ArgumentError, ArgumentTypeError, DataNotFoundError
from jtok.train import (
    PackedRows,
    jsonl_documents,
    packed_batches,
    text_documents,
    tokenize_documents,
)

# ---- documents


def test_text_files_folders_and_gzip(tmp_path):
    (tmp_path / "b.txt").write_text("två%  %three", encoding="utf-8")
    (tmp_path / "sub").mkdir()
    with gzip.open(tmp_path / "sub" / "c.txt.gz", "wt", encoding="utf-8") as file:
        file.write("four")
    (tmp_path / "a.md").write_text("not asked for")
    assert list(text_documents(tmp_path, separator="%")) == ["två", "three", "four"]
    named = [tmp_path / "a.md", str(tmp_path / "b.txt")]
    assert list(text_documents(named)) == ["not asked for", "två%  %three"]


def test_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [{"body": "one", "n": 1}, {"body": " "}, {"body": "two\nlines"}]
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    assert list(jsonl_documents(path, field="body")) == ["one", "two\nlines"]
    with pytest.raises(ArgumentError, match=r"field: got 'text'.*a.jsonl:1.*'body'"):
        list(jsonl_documents(path))
    path.write_text('{"text": "one"}\n{"text": "tw')
    with pytest.raises(ArgumentError, match=r"a.jsonl:2 is not JSON"):
        list(jsonl_documents(path))


def test_files_that_are_missing_or_no_text(tmp_path):
    with pytest.raises(DataNotFoundError, match="no file or folder"):
        list(text_documents(tmp_path / "none.txt"))
    with pytest.raises(DataNotFoundError, match="holds no file"):
        list(jsonl_documents(tmp_path))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArgumentError, match=r"a.txt' is damaged"):
        list(text_documents(tmp_path))
    whole = gzip.compress(b"text " * 100)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "b.txt.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArgumentError, match=r"b.txt.gz' is damaged"):
        list(text_documents(tmp_path))


# ---- ids


class Bytes:
    """The smallest vocabulary: a byte is an id above 0."""

    def encode(self, text):
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 1


class ManyBytes(Bytes):
    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]


@pytest.mark.parametrize("vocabulary", [Bytes(), ManyBytes(), Bytes().encode])
def test_each_document_ends_with_eos(vocabulary):
    documents = (str(n) for n in range(600))
    ids = tokenize_documents(documents, vocabulary, eos_id=0)
    assert ids.dtype == np.int32
    text = bytes(np.where(ids == 0, ord(" "), ids - 1).astype(np.uint8)).decode()
    assert text.split() == [str(n) for n in range(600)]
    assert ids[-1] == 0 and (ids == 0).sum() == 600


def test_documents_that_are_not_texts():
    with pytest.raises(ArgumentTypeError, match="got one string"):
        tokenize_documents("abc", Bytes(), eos_id=0)
    with pytest.raises(ArgumentTypeError, match="got a int"):
        tokenize_documents(iter([1]), Bytes(), eos_id=0)
    with pytest.raises(ArgumentTypeError, match="vocabulary: got int"):
        tokenize_documents(["a"], 3, eos_id=0)
    with pytest.raises(ArgumentError, match="at least one document"):
        tokenize_documents([], Bytes(), eos_id=0)
    with pytest.raises(ArgumentError, match="eos_id: got -1"):
        tokenize_documents(["a"], Bytes(), eos_id=-1)


# ---- rows


@pytest.mark.parametrize("count", [2, 4, 5, 9, 10, 12])
def test_rows_predict_every_token_but_the_first_once(count):
    ids = np.arange(1, count + 1, dtype=np.int32)
    rows = PackedRows(ids, 4, eos_id=0)
    batch = rows[np.arange(len(rows))]
    targets = batch["tokens"][:, 1:][batch["mask"][:, 1:]]
    np.testing.assert_array_equal(targets, ids[1:])
    before = batch["tokens"][:, :-1][batch["mask"][:, 1:]]
    np.testing.assert_array_equal(before, ids[:-1])
    assert batch["mask"][:, 1].all(), "no row without a target"
    assert (batch["tokens"][~batch["mask"]] == 0).all()


def test_segments_and_positions_of_documents():
    ids = np.array([5, 6, 0, 7, 0, 0, 8, 9, 3])
    row = PackedRows(ids, 8, eos_id=0, documents=True)[0]
    np.testing.assert_array_equal(row["segments"], [0, 0, 0, 1, 1, 2, 3, 3, 3])
    np.testing.assert_array_equal(row["positions"], [0, 1, 2, 0, 1, 0, 0, 1, 2])


def test_rows_of_a_memory_map(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(50, dtype=np.uint16))
    ids = np.load(tmp_path / "ids.npy", mmap_mode="r")
    row = PackedRows(ids, 8, eos_id=0)[2]
    np.testing.assert_array_equal(row["tokens"], np.arange(16, 25))
    assert row["tokens"].dtype == np.int32


def test_bad_rows():
    with pytest.raises(ArgumentError, match="length: got 0"):
        PackedRows(np.arange(9), 0, eos_id=0)
    with pytest.raises(ArgumentError, match="ids: got '1 ids'"):
        PackedRows(np.arange(1), 2, eos_id=0)
    with pytest.raises(IndexError):
        PackedRows(np.arange(9), 2, eos_id=0)[4]


# ---- batches

IDS = np.arange(1, 42, dtype=np.int32)  # ten rows of four


def batches(count, **options):
    given = {"length": 4, "batch_size": 4, "seed": 3, "eos_id": 0}
    data = packed_batches(IDS, **{**given, **options})
    return [data[t] for t in range(count)]


def firsts(parts):
    return np.concatenate([part["tokens"][:, 0] for part in parts])


def test_each_epoch_holds_every_row_once_in_another_order():
    order = firsts(batches(10)).reshape(4, 10)
    for epoch in order:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(1, 41, 4))
    assert len({tuple(epoch) for epoch in order}) == 4


def test_seed_decides_and_neighbours_differ():
    first = [tuple(firsts(batches(5, seed=seed))) for seed in range(6)]
    assert first == [tuple(firsts(batches(5, seed=seed))) for seed in range(6)]
    assert len(set(first)) == 6
    # Epoch e of seed s must not be epoch e - 1 of seed s + 1.
    epochs = {row for seed in first for row in (seed[:10], seed[10:20])}
    assert len(epochs) == 12


def test_processes_share_the_global_batch():
    whole = batches(6)
    for count in (2, 4):
        shares = [
            batches(6, process_index=i, process_count=count) for i in range(count)
        ]
        for t, batch in enumerate(whole):
            rows = [share[t]["tokens"] for share in shares]
            assert rows[0].shape == (4 // count, 5)
            together = np.stack(rows, 1).reshape(4, 5)
            np.testing.assert_array_equal(together, batch["tokens"])


def test_grain_iterator_resumes_inside_an_epoch():
    data = packed_batches(IDS, length=4, batch_size=4, seed=3, eos_id=0)
    assert isinstance(data, grain.MapDataset)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    iterator = iter(data.to_iter_dataset(options))
    for _ in range(3):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    again = iter(data.to_iter_dataset(options))
    again.set_state(state)
    for t in range(3, 7):
        np.testing.assert_array_equal(next(again)["tokens"], data[t]["tokens"])
    iterator.close()
    again.close()


def test_epochs_bound_the_data_and_order_can_stay():
    data = packed_batches(
        IDS, length=4, batch_size=4, seed=0, eos_id=0, shuffle=False, epochs=1
    )
    assert len(data) == 2
    np.testing.assert_array_equal(firsts([data[0], data[1]]), np.arange(1, 33, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0"),
        (
            {"batch_size": 3, "process_count": 2, "process_index": 0},
            "multiple of the 2",
        ),
        ({"process_count": 2, "process_index": 2}, "process_index: got 2"),
        ({"seed": -1}, "seed: got -1"),
        ({"epochs": 0}, "epochs: got 0"),
        ({"epochs": 1, "batch_size": 11}, "ids: got '41 ids, 10 rows'"),
        ({"length": 0}, "length: got 0"),
    ],
)
def test_bad_batches(options, message):
    with pytest.raises(ArgumentError, match=message):
        batches(1, **options)
