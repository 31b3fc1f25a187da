"""What is read of files with columns and of saved data sets, besides text (which test_text.py has)."""

import gzip
import io
import json
import os
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from length_values import values
from PIL import Image
from pyarrow import ipc, parquet

from tippingpoint.data import read_lengths
from tippingpoint.data.arrow_files import read_parquet
from tippingpoint.data.records import Run
from tippingpoint.errors import DataError, InputError

MEDIA = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXTS = pa.table({"text": ["one", "one two", "one two three", "four"], "id": [1, 2, 3, 4]})


def wav(seconds: float, kind: str = "WAV") -> bytes:
    held = io.BytesIO()
    soundfile.write(held, np.zeros(round(seconds * 8000)), 8000, format=kind)
    return held.getvalue()


def png(width: int, height: int) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (width, height)).save(held, "PNG")
    return held.getvalue()


def write_stream(path: Path, table: pa.Table, rows: int = 2) -> Path:
    with ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def write_file(path: Path, table: pa.Table) -> Path:
    with ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    return path


def save_dataset(folder: Path, table: pa.Table, parts: int = 2) -> Path:
    """Write what `Dataset.save_to_disk` writes, and a cached copy beside it."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{parts:05d}.arrow" for number in range(parts)]
    share = len(table) // parts
    for number, name in enumerate(names):
        write_stream(folder / name, table.slice(number * share, share))
    write_stream(folder / "cache-4f3c.arrow", table)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return folder


def reasons(data) -> list[tuple[str, str]]:
    return [(Path(item.path).name, item.reason) for item in data.skipped]


@pytest.mark.parametrize("write", [write_stream, write_file])
def test_arrow_files_of_both_formats_are_read(tmp_path, write):
    assert values(read_lengths(write(tmp_path / "a.arrow", TEXTS), "text")) == [3, 3, 4, 5]


def test_a_saved_data_set_is_its_parts_without_what_was_cached(tmp_path):
    folder = save_dataset(tmp_path / "set", TEXTS)
    (folder / "notes.txt").write_text("these are notes")
    assert read_lengths(folder, "text").count == 4
    (folder / "data-00001-of-00002.arrow").unlink()
    data = read_lengths(folder, "text")
    assert data.count == 2
    assert reasons(data) == [("data-00001-of-00002.arrow", "listed in state.json and not there")]


def test_every_split_of_a_saved_dictionary_is_read_wherever_it_lies(tmp_path):
    save_dataset(tmp_path / "mine" / "all" / "train", TEXTS)
    save_dataset(tmp_path / "mine" / "all" / "test", TEXTS)
    (tmp_path / "mine" / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (tmp_path / "mine" / "more.txt").write_text("one")
    assert read_lengths(tmp_path, "text").count == 9


def test_a_state_that_lists_no_files_is_named_and_every_part_read(tmp_path):
    folder = save_dataset(tmp_path / "set", TEXTS)
    (folder / "state.json").write_text("[]")
    data = read_lengths(folder, "text")
    assert (data.count, reasons(data)[0][0]) == (4, "state.json")


def test_recordings_in_a_column_are_read_from_their_bytes(tmp_path):
    rows = [
        {"bytes": wav(1), "path": "a.wav"},
        {"bytes": wav(0.5, "FLAC"), "path": None},
        {"bytes": b"x", "path": "b"},
    ]
    table = pa.table({"audio": pa.array([*rows, None], MEDIA)})
    parquet.write_table(table, tmp_path / "a.parquet")
    data = read_lengths(tmp_path / "a.parquet", "speech")
    assert values(data) == [0.5, 1]
    assert reasons(data) == [("a.parquet:3", "no readable audio header"), ("a.parquet:4", "'audio' is empty")]
    assert read_lengths(save_dataset(tmp_path / "set", table), "speech") != data
    assert values(read_lengths(tmp_path / "set", "speech")) == [0.5, 1]


def test_images_in_a_column_are_read_from_their_bytes(tmp_path):
    rows = [{"bytes": png(10, 40), "path": "a"}, {"bytes": png(7, 7), "path": None}]
    parquet.write_table(pa.table({"picture": pa.array(rows, MEDIA)}), tmp_path / "a.parquet")
    assert values(read_lengths(tmp_path, "vision", column="picture")) == [7, 20]
    parquet.write_table(pa.table({"picture": [png(3, 3)]}), tmp_path / "a.parquet")
    assert values(read_lengths(tmp_path, "vision", column="picture")) == [3]


def test_a_path_in_a_column_stays_within_the_folder_of_its_file(tmp_path):
    folder = tmp_path / "set"
    (folder / "audio").mkdir(parents=True)
    (folder / "audio" / "a.wav").write_bytes(wav(2))
    (tmp_path / "out.wav").write_bytes(wav(3))
    (folder / "link.wav").symlink_to(tmp_path / "out.wav")
    os.mkfifo(folder / "pipe.wav")
    paths = [
        "audio/a.wav",
        str(folder / "audio" / "a.wav"),
        "../out.wav",
        str(tmp_path / "out.wav"),
        "link.wav",
        "pipe.wav",
        "none.wav",
        "a\0b",
    ]
    table = pa.table({"audio": pa.array([{"bytes": None, "path": path} for path in paths], MEDIA), "file": paths})
    parquet.write_table(table, folder / "a.parquet")
    for column in ("audio", "file"):
        data = read_lengths(folder, "speech", column=column)
        assert values(data) == [2, 2]
        assert [reason for _, reason in reasons(data)] == [
            *["a path that leads out of the folder of its file"] * 3,
            *["a path without a file"] * 2,
            "a path that is none",
        ]


def test_a_column_of_numbers_is_lengths_whatever_the_modality(tmp_path):
    numbers = [1.0, 2.0004, 0.0, -1.0, float("nan"), float("inf"), None]
    parquet.write_table(pa.table({"duration": numbers}), tmp_path / "a.parquet")
    data = read_lengths(tmp_path, "speech", column="duration")
    assert (values(data), data.estimated) == ([1, 2], False)
    assert data.method == "a column of numbers, to the millisecond"
    assert [reason for _, reason in reasons(data)] == [*["no positive number"] * 4, "'duration' is empty"]
    for modality in ("text", "vision"):
        assert values(read_lengths(tmp_path, modality, column="duration")) == [1, 2.0004]


def test_numbers_may_stand_in_json_lines_and_csv(tmp_path):
    lines = [{"n": None}, {"n": 3}, {"n": True}, {"n": "4"}, {"n": [5]}, {"n": 10**400}, {"n": "1_0"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = read_lengths(tmp_path / "a.jsonl", "text", column="n")
    assert (values(data), data.estimated) == ([3, 4], False)
    assert [reason for _, reason in reasons(data)] == ["'n' is empty", *["no number"] * 4]
    (tmp_path / "a.csv").write_text("n,text\n3,a b\n,c\nx,d\n5,e\n")
    data = read_lengths(tmp_path / "a.csv", "vision", column="n")
    assert (values(data), reasons(data)) == ([3, 5], [("a.csv:3", "'n' is empty"), ("a.csv:4", "no number")])


def test_lists_of_token_ids_count_their_elements(tmp_path):
    ids = [[1, 2, 3], [4], [], None]
    parquet.write_table(pa.table({"ids": ids}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"ids": each}) + "\n" for each in ids))
    for name in ("a.parquet", "a.jsonl"):
        data = read_lengths(tmp_path / name, "text", column="ids")
        assert (values(data), data.method, data.skipped_count) == ([1, 3], "lists of token ids", 2)
    with pytest.raises(InputError, match=r"column 'ids' of .* holds list<.*; name a column of recordings or images"):
        read_lengths(tmp_path / "a.parquet", "speech", column="ids")


def test_a_tokenizer_has_no_use_for_numbers(tmp_path):
    parquet.write_table(pa.table({"n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a tokenizer is for text, and column 'n' of .* holds numbers"):
        read_lengths(tmp_path, "text", column="n", tokenizer="org/model")


def test_tables_of_a_folder_without_the_column_are_left_out_and_named(tmp_path):
    parquet.write_table(TEXTS, tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("name\nx\n")
    data = read_lengths(tmp_path, "text")
    assert (data.count, reasons(data)) == (4, [("b.csv", "no usable column 'text'")])
    with pytest.raises(InputError, match=r"b\.csv has no column 'text'; name one that it has: 'name'"):
        read_lengths([tmp_path, tmp_path / "b.csv"], "text")
    (tmp_path / "c.txt").write_text("one")
    with pytest.raises(InputError, match=r"a\.parquet has no column 'nmae'; name one that it has: 'text', 'id'"):
        read_lengths(tmp_path, "text", column="nmae")


def test_with_a_column_only_files_with_columns_are_read_for_speech(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(1))
    (tmp_path / "metadata.csv").write_text("file_name,duration\na.wav,1\n")
    assert values(read_lengths(tmp_path, "speech")) == [1]
    assert values(read_lengths(tmp_path, "speech", column="duration")) == [1]
    assert values(read_lengths(tmp_path, "speech", column="file_name")) == [1]
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(DataError, match=r"no speech file in .*: looked for \.jsonl, \.csv, \.parquet, \.arrow"):
        read_lengths(tmp_path, "speech", column="duration")


def test_compressed_lines_are_read_as_far_as_they_go(tmp_path):
    whole = gzip.compress(b"".join(json.dumps({"text": f"one {n}"}).encode() + b"\n" for n in range(5000)))
    (tmp_path / "a.jsonl.gz").write_bytes(whole)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"text\none two\n"))
    assert read_lengths(tmp_path, "text").count == 5001
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    data = read_lengths(tmp_path / "a.jsonl.gz", "text")
    assert 1000 < data.count < 4900
    assert reasons(data)[-1][0] == "a.jsonl.gz"
    assert reasons(data)[-1][1].startswith("cut off or no gzip file: ")


@pytest.mark.parametrize("write", [write_stream, write_file])
def test_cut_off_arrow_files_are_read_as_far_as_they_go(tmp_path, write):
    path = write(tmp_path / "a.arrow", TEXTS)
    (tmp_path / "b.txt").write_text("one")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    data = read_lengths(tmp_path, "text")
    assert data.count == (3 if write is write_stream else 1)
    assert reasons(data)[0][1].startswith(f"unreadable Arrow{' after row 2' if write is write_stream else ''}: ")


@pytest.mark.parametrize("name", ["a.arrow", "a.parquet", "a.jsonl", "a.csv", "a.jsonl.gz", "a.csv.gz"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff\x17\x80" * 999, b"ARROW1\x00\x00" + b"\xff" * 999, b"PAR1" * 99])
def test_rubbish_is_skipped_whatever_it_is_called(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "z.txt").write_text("one")
    data = read_lengths(tmp_path, "text")
    assert data.count == 1
    assert data.skipped_count >= 1


def test_offsets_that_point_beyond_the_data_are_an_error_and_no_crash(tmp_path):
    path = write_file(tmp_path / "a.arrow", pa.table({"text": ["a" * 100] * 4}))
    raw = path.read_bytes()
    offsets = struct.pack("<5i", 0, 100, 200, 300, 400)
    assert raw.count(offsets) == 1
    path.write_bytes(raw.replace(offsets, struct.pack("<5i", 0, 100, 2_000_000_000, 300, 400)))
    with pytest.raises(DataError, match=r"a\.arrow \(unreadable Arrow: "):
        read_lengths(path, "text")


def test_a_table_without_rows_is_named(tmp_path):
    parquet.write_table(TEXTS.slice(0, 0), tmp_path / "a.parquet")
    write_stream(tmp_path / "b.arrow", TEXTS.slice(0, 0))
    with pytest.raises(DataError, match=r"2 of 2 failed: .*a\.parquet \(no records\), .*b\.arrow \(no records\)"):
        read_lengths(tmp_path, "text")


def test_a_parquet_file_is_not_held_in_memory_as_a_whole(tmp_path):
    path = tmp_path / "a.parquet"
    schema = pa.schema({"text": pa.binary()})
    with parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for group in range(20):
            rows = [bytes([group, row]) * 50_000 for row in range(20)]
            writer.write_table(pa.table({"text": rows}, schema))
    before = pa.default_memory_pool().bytes_allocated()
    held = []
    for run in read_parquet(str(path), "text", "text"):
        assert isinstance(run, Run)
        assert run.all()
        held.append(pa.default_memory_pool().bytes_allocated() - before)
    assert max(held) < path.stat().st_size / 3
