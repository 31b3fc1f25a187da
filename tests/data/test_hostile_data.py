"""Data of strangers: what is broken, endless or a bomb is named, within bounded memory and time."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from processes import is_alive, needs_proc, wait_until
from tippingpoint.data import read_lengths, records
from tippingpoint.data.columns import ColumnReader
from tippingpoint.data.item_lengths import LengthReader, Lengths
from tippingpoint.data.model_inputs import ModelInputs, _image_reader
from tippingpoint.data.process import DiedError, Process
from tippingpoint.data.readers import LengthData
from tippingpoint.data.skipped import Skipped
from tippingpoint.errors import DataError, InputError

LIMIT = 1000


def reasons(data: LengthData) -> dict[str, str]:
    return {Path(item.path).name: item.reason for item in data.skipped}


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand bytes are the largest record, so that tests need not write more."""
    for name in ("records", "text", "images"):
        module = __import__(f"tippingpoint.data.{name}", fromlist=["x"])
        if hasattr(module, "LARGEST_BYTES"):
            monkeypatch.setattr(module, "LARGEST_BYTES", LIMIT)


# Lines, documents and numbers


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_line_that_is_too_long_is_named_and_the_next_one_read(tmp_path, compress):
    path = tmp_path / f"a.jsonl{'.gz' if compress is gzip.compress else ''}"
    longest = json.dumps({"text": "x" * (LIMIT - 13)}).encode() + b"\n"
    assert len(longest) == LIMIT
    lines = [
        b'{"text": "one"}\n',
        longest,
        json.dumps({"text": "x" * 7 * LIMIT}).encode() + b"\n",
        b'{"text": "two"}',
    ]
    path.write_bytes(compress(b"".join(lines)))
    data = read_lengths(path, "text")
    assert data.count == 3
    assert reasons(data) == {f"{path.name}:3": records.TOO_LARGE}


@pytest.mark.usefixtures("small_limit")
def test_a_line_without_an_end_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_MOST_PASSED_OVER", 5 * LIMIT)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n' + b"x" * 50 * LIMIT))
    data = read_lengths(tmp_path, "text")
    assert data.count == 1
    assert "a line of over" in reasons(data)["a.jsonl.gz"]


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize(
    "row", [b"x" * 5 * LIMIT, b'"' + b"x\n" * LIMIT + b'"', b",".join([b"x" * 99] * 50), b'"' + b"y" * 3 * LIMIT]
)
def test_a_row_that_is_too_long_is_named_and_others_are_read(tmp_path, row):
    (tmp_path / "a.csv").write_bytes(b"text,other\none,1\n" + row + b"\ntwo,2\n")
    data = read_lengths(tmp_path, "text")
    assert data.count >= 2
    assert any(records.TOO_LARGE in item.reason for item in data.skipped)


@pytest.mark.usefixtures("small_limit")
def test_a_document_that_is_too_large_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x " * LIMIT)
    (tmp_path / "b.txt").write_bytes(b"x " * (LIMIT // 2))
    data = read_lengths(tmp_path, "text")
    assert (data.count, reasons(data)) == (1, {"a.txt": records.TOO_LARGE})


@pytest.mark.usefixtures("small_limit")
def test_a_number_that_is_too_long_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"12\n" + b"1" * 3 * LIMIT + b"\n15\n")
    data = read_lengths(tmp_path / "a.txt", "text", plain=True)
    assert (data.count, reasons(data)) == (2, {"a.txt:2": records.TOO_LARGE})


def test_json_that_is_nested_a_million_deep_is_one_bad_record(tmp_path):
    deep = b'{"text": ' + b"[" * 1_000_000 + b"\n"
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + deep + b'{"text": "\\u0000"}\n\x00\n\xff\n')
    data = read_lengths(tmp_path, "text")
    assert data.count == 2
    assert [item.reason.partition(":")[0] for item in data.skipped] == [
        "invalid JSON",
        "invalid JSON",
        "not UTF-8 at byte 0",
    ]


# Length files


def test_a_length_file_that_is_a_pipe_or_too_large_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(DataError, match="it is no regular file"):
        read_lengths(tmp_path / "a.json")
    monkeypatch.setattr("tippingpoint.data.length_files.LARGEST_BYTES", 100)
    (tmp_path / "b.json").write_text(" " * 101)
    with pytest.raises(DataError, match="it is over"):
        read_lengths(tmp_path / "b.json")


def test_a_pipe_among_data_is_no_file_of_it(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(DataError, match="no text file"):
        read_lengths(tmp_path, "text")
    with pytest.raises(DataError, match="no text file"):
        read_lengths(tmp_path / "a.txt", "text")


def test_a_tokenizer_in_a_folder_that_is_here_is_never_looked_for_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(InputError, match="there is no tokenizer at 'here/none'"):
        read_lengths(tmp_path / "a.txt", "text", tokenizer="here/none")


# Images


def webp_of(width: int, height: int) -> bytes:
    """A WebP file whose header claims a size."""
    file = io.BytesIO()
    Image.new("RGBA", (4, 4)).save(file, "webp", save_all=True, append_images=[Image.new("RGBA", (4, 4), "red")])
    data = bytearray(file.getvalue())
    place = data.index(b"VP8X") + 12
    data[place : place + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def test_an_image_that_claims_too_many_pixels_is_named(tmp_path):
    (tmp_path / "a.webp").write_bytes(webp_of(16_384, 16_384))
    with pytest.raises(DataError, match=r"a\.webp \(no readable image header"):
        read_lengths(tmp_path, "vision")


def image_inputs(tmp_path: Path, *files: Path) -> ModelInputs:
    read, notes = _image_reader(tmp_path, {"image_size": 8})
    names = tuple(map(str, files))
    return ModelInputs(modality="vision", files=names, most=9, longest=None, notes=notes, reader=read)


def test_an_image_is_decoded_only_in_formats_that_no_other_program_is_run_for(tmp_path):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/x) (w) file\n"
    (tmp_path / "a.png").write_bytes(eps)
    Image.new("RGB", (9, 9)).save(tmp_path / "b.png", "tiff")
    Image.new("RGB", (9, 9)).save(tmp_path / "c.png")
    found = image_inputs(tmp_path, *(tmp_path / f"{name}.png" for name in "abc"))
    assert [tuple(each["pixel_values"].shape) for each in found] == [(1, 3, 8, 8)]
    assert [Path(item.path).name for item in found.skipped] == ["a.png", "b.png"]


@pytest.mark.parametrize("limit", [50, 30])
def test_an_image_that_would_take_too_much_memory_is_not_decoded(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    found = image_inputs(tmp_path, tmp_path / "a.png", tmp_path / "b.png")
    assert len(list(found)) == 1
    assert "decompression bomb" in found.skipped[0].reason


# Parquet and Arrow


def test_columns_that_would_fill_the_memory_are_unreadable(tmp_path):
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array(["a" * 10_000_000]))
    parquet.write_table(pa.table({"text": words}), tmp_path / "bomb.parquet", compression="zstd")
    with pa.OSFile(str(tmp_path / "bomb.arrow"), "wb") as file:
        schema = pa.schema([("text", words.type)])
        with pa.ipc.new_stream(file, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(pa.table({"text": words}))
    parquet.write_table(pa.table({"text": ["fine"]}), tmp_path / "fine.parquet")
    data = read_lengths(tmp_path, "text")
    assert data.count == 1
    assert set(reasons(data)) == {"bomb.parquet", "bomb.arrow"}


def test_a_file_that_claims_more_rows_than_there_are_is_unreadable(tmp_path):
    parquet.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    raw = (tmp_path / "a.parquet").read_bytes()
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    # The number of rows, 2, as the footer writes it behind the schema.
    for place in [at for at in range(footer, len(raw) - 8) if raw[at : at + 2] == b"\x16\x04"]:
        (tmp_path / "b.parquet").write_bytes(raw[: place + 1] + b"\x7e" + raw[place + 2 :])
        with suppress(DataError):
            assert read_lengths(tmp_path / "b.parquet", "text").count <= 63


def test_a_file_that_ends_the_reading_process_is_unreadable_and_the_next_one_is_read(tmp_path):
    for name in "ab":
        parquet.write_table(pa.table({"text": ["one", "two"]}), tmp_path / f"{name}.parquet")
    with ColumnReader() as columns:
        found = columns.read(str(tmp_path / "a.parquet"), "text", "text")
        run = next(found)
        assert not isinstance(run, Skipped)
        assert columns._process is not None
        os.kill(columns._process._process.pid, signal.SIGSEGV)
        (one,) = run.pick(np.array([1]))
        assert one.path.endswith("a.parquet:2")
        assert one.reason == "the process that read it was killed by signal 11 (SIGSEGV)"
        assert list(found) == [Skipped(str(tmp_path / "a.parquet"), "the process that read it died after row 2")]
        run = next(columns.read(str(tmp_path / "b.parquet"), "text", "text"))
        assert not isinstance(run, Skipped)
        assert run.all() == [b"one", b"two"]


def test_a_process_that_dies_before_it_opened_a_file_leaves_it_unreadable(tmp_path, monkeypatch):
    parquet.write_table(pa.table({"text": ["one"]}), tmp_path / "a.parquet")

    def die(self: Process, what: object) -> None:
        raise DiedError(-signal.SIGABRT)

    monkeypatch.setattr(Process, "ask", die)
    with pytest.raises(
        DataError, match=r"a\.parquet \(the process that read it was killed by signal 6 \(SIGABRT\)\)"
    ):
        read_lengths(tmp_path, "text")


# Processes that read lengths


class Crashing(LengthReader):
    """Ends its process at some items, as a library could."""

    def __call__(self, parts) -> Lengths:
        if any(b"DIE" in value for part in parts for value in part.values):
            os.abort()
        return super().__call__(parts)


class Dying(LengthReader):
    """Ends its process at every item."""

    def __call__(self, parts) -> Lengths:
        os.abort()


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Enough records for several batches; two of them end whoever reads them."""
    texts = ["word " * 1500] * 2000
    texts[700] = texts[1999] = "DIE"
    (tmp_path / "many.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return tmp_path / "many.jsonl"


def test_an_item_that_ends_its_process_is_named_and_all_others_are_read(many, monkeypatch):
    monkeypatch.setattr("tippingpoint.data.readers.LengthReader", Crashing)
    data = read_lengths(many, "text", jobs=2)
    assert data.count == 1998
    why = "the process that read it was killed by signal 6 (SIGABRT)"
    assert reasons(data) == {"many.jsonl:701": why, "many.jsonl:2000": why}


def test_bad_items_stop_nothing_until_there_are_so_many_of_them(many, monkeypatch):
    # To find one takes the ends of many more processes than that.
    monkeypatch.setattr("tippingpoint.data.readers.LengthReader", Crashing)
    monkeypatch.setattr("tippingpoint.data.pool._MOST_DEATHS", 2)
    assert read_lengths(many, "text", jobs=2).skipped_count == 2
    monkeypatch.setattr("tippingpoint.data.pool._MOST_DEATHS", 1)
    with pytest.raises(DataError, match=r"was killed by signal 6 \(SIGABRT\) at '.*many\.jsonl' or soon after"):
        read_lengths(many, "text", jobs=2)


class Hanging(LengthReader):
    """Hangs at some items, as a library could."""

    def __call__(self, parts) -> Lengths:
        if any(b"DIE" in value for part in parts for value in part.values):
            signal.pause()
        return super().__call__(parts)


def test_an_item_that_hangs_its_process_is_named_and_all_others_are_read(many, monkeypatch):
    many.write_text(many.read_text().replace("DIE", "LIVE", 1))
    monkeypatch.setattr("tippingpoint.data.readers.LengthReader", Hanging)
    monkeypatch.setattr("tippingpoint.data.process.ANSWER_S", 5.0)
    data = read_lengths(many, "text", jobs=2)
    assert data.count == 1999
    assert reasons(data) == {"many.jsonl:2000": "the process that read it took longer than 5 s and was stopped"}


def test_a_file_that_hangs_the_reading_process_is_unreadable(tmp_path, monkeypatch):
    parquet.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    with ColumnReader() as columns:
        found = columns.read(str(tmp_path / "a.parquet"), "text", "text")
        run = next(found)
        assert not isinstance(run, Skipped)
        assert columns._process is not None
        os.kill(columns._process._process.pid, signal.SIGSTOP)
        monkeypatch.setattr("tippingpoint.data.process.ANSWER_S", 0.2)
        (one,) = run.pick(np.array([1]))
        assert one.reason == "the process that read it took longer than 0.2 s and was stopped"
        assert columns._process is None


def test_a_process_that_dies_as_it_starts_leaves_the_file_unreadable_and_nothing_else(tmp_path, monkeypatch):
    parquet.write_table(pa.table({"text": ["one"]}), tmp_path / "a.parquet")

    def die(self: Process, what: object) -> None:
        raise DiedError(-signal.SIGABRT)

    monkeypatch.setattr(Process, "send", die)
    with pytest.raises(DataError, match=r"a\.parquet \(the process that read it was killed by signal 6"):
        read_lengths(tmp_path, "text")


@needs_proc
def test_a_reading_process_that_hangs_ends_with_the_one_that_asked_it(tmp_path):
    script = (
        "import os, sys, time\n"
        "from tippingpoint.data.process import Process\n"
        "process = Process(time.sleep)\n"
        "process.ask(0)\n"
        "process.send(1000)\n"
        "print(process._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert wait_until(lambda: not is_alive(int(done.stdout)))


def test_where_every_item_ends_its_process_it_is_not_the_items(many, monkeypatch):
    monkeypatch.setattr("tippingpoint.data.readers.LengthReader", Dying)
    monkeypatch.setattr("tippingpoint.data.pool._MOST_DEATHS", 3)
    with pytest.raises(DataError, match=r"was killed by signal 6 \(SIGABRT\) at '.*many\.jsonl' or soon after"):
        read_lengths(many, "text", jobs=2)
