"""Write the inputs that fuzzing begins with: python fuzz/seeds.py. Small, and made by the project's own commands."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import sqlite3
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile
import yaml
from PIL import Image
from pyarrow import ipc, parquet

from tippingpoint.cli import main
from tippingpoint.device_profiles import load_profile, shipped_profiles, write_profile
from tippingpoint.models.catalog import ARCHITECTURES, VARIANTS
from tippingpoint.study.presets import all_presets

CORPUS = Path(__file__).parent / "corpus"
# What a stranger may do to a store, a statement a line.
_CHANGES = {
    "values": (
        "UPDATE sessions SET seconds = 9e999, measured_at = 'never' WHERE id = 1;",
        "UPDATE outcomes SET record = CAST(record AS BLOB), session = 1 << 62 WHERE id = 2;",
        "DELETE FROM environments WHERE fingerprint IN (SELECT environment FROM breakdowns);",
    ),
    "tables": (
        "ALTER TABLE sessions RENAME TO s; ALTER TABLE s RENAME TO Sessions;",
        "CREATE TRIGGER t AFTER INSERT ON Sessions BEGIN DELETE FROM outcomes; END;",
        "DROP INDEX outcomes_by_session;",
    ),
    "views": (
        "DROP TABLE breakdowns;",
        "CREATE VIEW Breakdowns AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) SELECT id, '' "
        "AS environment, '' AS label, '' AS measured_at, '' AS status, '' AS record, '' AS digest FROM n;",
    ),
    "columns": (
        "ALTER TABLE sessions DROP COLUMN place;",
        "ALTER TABLE sessions ADD COLUMN place TEXT AS (hex(zeroblob(9)));",
        "PRAGMA user_version = 3;",
    ),
}
_ROWS = [("one two three", 1.5), ("größer 長さ", 20.0), ("", 0.25), ("a" * 60, 3.0)]


def keep(target: str, name: str, data: bytes | str) -> None:
    """Write one input."""
    path = CORPUS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def grammars() -> None:
    """Subjects, quantities, study files, device profiles."""
    subjects = dict.fromkeys(str(subject) for study in all_presets() for subject in study.subjects)
    subjects |= dict.fromkeys([*ARCHITECTURES, *(f"bert@{name}" for name in VARIANTS)])
    subjects |= dict.fromkeys(["my.module:make", "hubert@local:window=50,layers=0-5+eager:layers=6-11"])
    for number, text in enumerate(subjects):
        keep("subjects", f"{number:03}", text)
    quantities = (
        "4GiB 512MB 90s 1.5h 2% 0.02 64k 1Mi 200k all budget:16k fixed:8 packed:4096 latency<=200ms 128:8192 0-3,8"
    )
    for number, text in enumerate([*quantities.split(), "peak_memory<=4GiB", "128,512"]):
        keep("quantities", f"{number:03}", text)
    plain = {
        "name": "mine",
        "modality": "text",
        "baselines": ["bert", "bert@eager"],
        "variants": ["nystromformer", "bert@local:window=64"],
        "lengths": [128, 1024],
        "budget": "90s",
        "precision": "5%",
        "affinity": [0, 1],
        "compile": False,
    }
    keep("study_files", "plain.yaml", yaml.safe_dump(plain, sort_keys=False))
    keep("study_files", "flow.yaml", json.dumps(plain | {"metrics": ["latency"], "about": "é \u2028"}))
    keep("study_files", "parts.yaml", '"blocks.*.mixer": attention\n"blocks.*.mlp.0": feed-forward/up\n')
    for name in shipped_profiles():
        path = CORPUS / "device_profiles" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_profile(load_profile(name), path)


def texts() -> None:
    """Texts, records and numbers."""
    lines = "".join(json.dumps({"text": text, "number": number}) + "\n" for text, number in _ROWS)
    paths = "".join(json.dumps({"audio": {"path": f"{n}.wav", "bytes": None}}) + "\n" for n in range(3))
    rows = "text,image\n" + "".join(f'"{text}",{n}.png\n' for n, (text, _) in enumerate(_ROWS))
    keep("texts", "short.txt", "\n".join(text for text, _ in _ROWS))
    keep("texts", "marked.txt", b"\xef\xbb\xbfwords with a mark before them\r\n")
    keep("plain_numbers", "numbers.txt", "# seconds\n1.5\n20\n0.25 # a comment\n\n1e3\n")
    keep("jsonl_files", "texts.jsonl", lines)
    keep("jsonl_files", "ids.jsonl", '{"text": [101, 2003, 102]}\n{"text": [101]}\n')
    keep("jsonl_files", "paths.jsonl", paths)
    keep("csv_files", "texts.csv", rows)
    keep("csv_files", "numbers.csv", "text,image\n12,224\n800,1024\n")
    keep("jsonl_gz_files", "texts.jsonl.gz", gzip.compress(lines.encode(), mtime=0))
    keep("jsonl_gz_files", "texts.jsonl", lines)
    keep("csv_gz_files", "texts.csv.gz", gzip.compress(rows.encode(), mtime=0))
    keep("csv_gz_files", "texts.csv", rows)


def media() -> None:
    """Recordings and images."""
    waveform = np.sin(np.arange(400) / 9).astype("float32")
    for kind in ("wav", "flac", "ogg", "mp3"):
        file = io.BytesIO()
        soundfile.write(file, waveform, 16_000, format=kind.upper())
        keep("recordings", f"short.{kind}", file.getvalue())
    for kind, options in (("png", {}), ("jpeg", {"quality": 30}), ("webp", {"lossless": True}), ("webp", {})):
        file = io.BytesIO()
        Image.new("RGB", (24, 16), (200, 30, 30)).save(file, kind, **options)
        keep("images", f"small{len(options)}.{kind}", file.getvalue())


def columns() -> None:
    """Parquet and Arrow."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(50, "float32"), 8_000, format="WAV")
    audio = pa.array([{"bytes": file.getvalue(), "path": "a.wav"}, {"bytes": None, "path": "b.wav"}, None])
    text = pa.array(["one two", "größer", None])
    tables = {
        "media": pa.table({"text": text, "audio": audio}),
        "ids": pa.table({"text": pa.array([[1, 2, 3], [4], None])}),
        "words": pa.table({"text": text.dictionary_encode(), "audio": pa.array([1.5, 2.5, None])}),
        "views": pa.table({"text": text.cast(pa.large_string()), "audio": pa.array([1, 2, 3], pa.int16())}),
    }
    for name, table in tables.items():
        for compression in ("none", "zstd"):
            out = io.BytesIO()
            parquet.write_table(table, out, compression=compression)
            keep("parquet_files", f"{name}-{compression}.parquet", out.getvalue())
        for kind, begin in (("file", ipc.new_file), ("stream", ipc.new_stream)):
            out = io.BytesIO()
            with begin(out, table.schema) as writer:
                writer.write_table(table)
            keep("arrow_files", f"{name}-{kind}.arrow", out.getvalue())


def measured() -> None:
    """A store, records of it, and a length file."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "found.sqlite")
        pair = ["bert", "bert@local:window=4"]
        common = ["--size", "tiny", "--store", str(store), "--threads", "1"]
        assert main(["find", *pair, "--lengths", "16:64", "--budget", "8s", *common]) == 0
        assert main(["breakdown", "bert", "--lengths", "16", "--budget", "1s", *common, "--label", "parts"]) == 0
        _shorten(store)
        keep("store_files", "found", store.read_bytes())
        for name, statements in _CHANGES.items():
            keep("store_schemas", f"{name}.sql", "\n".join(statements))
        db = sqlite3.connect(store)
        for number, (text,) in enumerate(db.execute("SELECT record FROM outcomes ORDER BY length(record) LIMIT 3")):
            keep("store_records", f"{number}.json", _short(text))
            keep("store_reports", f"{number}.json", _short(text))
        db.close()
        lengths = Path(folder, "lengths.json")
        documents = sorted(str(path) for path in (CORPUS / "texts").iterdir())
        assert main(["lengths", *documents, "--output", str(lengths)]) == 0
        keep("length_files", "lengths.json", lengths.read_bytes())
    keep("length_files", "early.json", json.dumps(_early()))


def _short(record: str) -> str:
    """Return a record with few samples, so that a mutation meets something else than one of them."""
    told = json.loads(record)
    told["samples"] = told["samples"][:6]
    told["flops"] = None if told["flops"] is None else told["flops"] | {"bytes_by_call": [], "by_operator": []}
    return json.dumps(told)


def _shorten(store: Path) -> None:
    """Leave small pages, of which mutations meet more."""
    db = sqlite3.connect(store)
    db.executescript("PRAGMA journal_mode = DELETE; PRAGMA page_size = 1024; VACUUM;")
    db.close()


def _early() -> dict[str, object]:
    head = {"format": "tippingpoint lengths", "version": 1, "modality": "speech", "unit": "seconds"}
    rest = {"population": 900, "method": "audio header", "estimated": False, "skipped_reasons": {"empty file": 2}}
    return {**head, "lengths": [0.5, 1.25, 30], "counts": [1, 2, 3], **rest}


if __name__ == "__main__":
    shutil.rmtree(CORPUS, ignore_errors=True)
    grammars()
    texts()
    media()
    columns()
    measured()
