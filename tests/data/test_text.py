import csv
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from length_values import values
from pyarrow import parquet
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tippingpoint.data import estimate_tokens, read_lengths
from tippingpoint.data.tokens import _PIECE, load_tokenizer
from tippingpoint.data.word_counts import WordCounts
from tippingpoint.errors import DataError, InputError

TEXTS = ["one", "one two three", "one two", "three two one two three"]


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    """A WordPiece tokenizer that would cut at 4 tokens and pad to 9, as published ones do."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "three", "##s", "."]
    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    built = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer()
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    built.enable_truncation(4)
    built.enable_padding(length=9)
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    built.save(str(folder / "tokenizer.json"))
    return folder


def write_jsonl(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def reasons(data) -> list[tuple[str, str]]:
    return [(Path(item.path).name, item.reason) for item in data.skipped]


def test_a_word_costs_one_token_for_7_letters_and_one_for_each_3_beyond():
    assert [estimate_tokens(word) - 2 for word in ("", "a", "letters", "lettersx", "lettersxyz", "lettersxyzq")] == [
        0,
        1,
        1,
        2,
        2,
        3,
    ]


def test_numbers_marks_and_characters_of_scripts_without_spaces_cost_their_own_tokens():
    pieces = {"2024": 2, "1,5": 3, "foo_bar()": 5, "self-attention": 4, "你好": 2, "don't": 3, " \n\t": 0}
    assert {text: estimate_tokens(text) - 2 for text in pieces} == pieces


@given(st.text(), st.text())
def test_the_estimate_of_two_documents_on_two_lines_is_the_sum(first, second):
    together = estimate_tokens(f"{first}\n{second}")
    assert together == estimate_tokens(first) + estimate_tokens(second) - 2


@given(st.text())
def test_the_estimate_is_between_the_special_tokens_and_one_token_per_character_more(document):
    assert 2 <= estimate_tokens(document) <= 2 + len(document)


@given(st.text() | st.text(alphabet="aé1_ \n\t\r\x0b\x1c\x85\u2028.-日か", max_size=300))
def test_counting_word_by_word_changes_no_estimate(document):
    assert estimate_tokens(document) == 2 + len(_PIECE.findall(document))


def test_a_document_of_many_megabytes_is_counted_piece_by_piece():
    for document in ("word " * 700_000, "word\n" * 700_000, "x" * 2_500_000 + " y", "a\n" + "b " * 1_200_000):
        assert estimate_tokens(document) == 2 + len(_PIECE.findall(document))


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory) -> str:
    """A tokenizer of BERT's kind with pieces of one letter and a token that is looked for in the text."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    built = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer()
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    built.add_special_tokens(["[SEP]", "[CLS]"])
    built.add_tokens(["<tag>"])
    path = tmp_path_factory.mktemp("wordpiece") / "tokenizer.json"
    built.save(str(path))
    return str(path)


@given(st.text() | st.text(alphabet="aÉé\u0301 \n\t\r\x0b\x0c\x1c\x85\u2028\u3000.-日[SEP]<tag>", max_size=200))
@example("[SEP] x[SEP]y <tag> <tag>z a\x0bb a\x1cb \u0301a")
def test_counting_word_by_word_is_what_a_tokenizer_of_berts_kind_counts(wordpiece, document):
    counter = load_tokenizer(wordpiece)
    assert isinstance(counter, WordCounts)
    assert counter([document, ""]) == [len(Tokenizer.from_file(wordpiece).encode(document)), 2]


@pytest.mark.parametrize("change", ["normalizer", "pre_tokenizer", "token"])
def test_other_tokenizers_are_given_whole_documents(wordpiece, tmp_path, change):
    other = Tokenizer.from_file(wordpiece)
    if change == "normalizer":
        other.normalizer = normalizers.Replace(" ", "a")
    elif change == "pre_tokenizer":
        other.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        other.add_tokens(["a b"])
    other.save(str(tmp_path / "tokenizer.json"))
    document = "x a b y a  b"
    counted = load_tokenizer(str(tmp_path / "tokenizer.json"))([document])
    assert counted == [len(other.encode(document))]


def test_words_are_forgotten_before_they_take_much_memory(monkeypatch):
    monkeypatch.setattr("tippingpoint.data.word_counts._MOST_KEPT", 10)
    asked = []
    counts = WordCounts(lambda words: asked.extend(words) or [len(word) for word in words], special=1)
    texts = [f"{number} again {'x' * 99}" for number in range(100)]
    assert [counts([text])[0] for text in texts] == [1 + len(text) - 2 for text in texts]
    assert 5 < asked.count("again") < 20
    assert asked.count("x" * 99) == 100


def test_text_files_are_one_document_each_and_called_estimated(tmp_path):
    for suffix, text in zip(("txt", "md", "rst"), TEXTS, strict=False):
        (tmp_path / f"a.{suffix}").write_text(text)
    data = read_lengths([tmp_path / "a.txt", tmp_path / "a.md", tmp_path / "a.rst"], "text")
    assert values(data) == [3, 4, 5]
    assert (data.unit, data.estimated) == ("tokens", True)
    assert data.method.startswith("estimated: ")
    assert "no tokenizer given" in data.method


def test_a_tokenizer_counts_special_tokens_and_neither_cuts_nor_pads(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl", *({"text": text} for text in TEXTS))
    data = read_lengths([path], "text", tokenizer=str(tokenizer))
    assert values(data) == [3, 4, 5, 7]
    assert (data.method, data.estimated) == ("a local tokenizer", False)
    assert read_lengths([path], "text", tokenizer=str(tokenizer / "tokenizer.json")).lengths == data.lengths


def test_more_documents_than_a_batch_are_all_counted(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl", *({"text": "one " * n} for n in range(1, 601)))
    data = read_lengths([path], "text", tokenizer=str(tokenizer))
    assert values(data) == [n + 2 for n in range(1, 601)]


def test_a_folder_without_tokenizer_json_goes_to_transformers(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "a.txt").write_text("one twos three.")
    folder = tmp_path / "vocabulary"
    folder.mkdir()
    numbers = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(numbers, key=numbers.__getitem__)) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 4}')
    assert values(read_lengths([tmp_path / "a.txt"], "text", tokenizer=str(folder))) == [7]
    (folder / "vocab.txt").unlink()
    with pytest.raises(DataError, match=r"the tokenizer '.*vocabulary' has no vocabulary; give a folder with"):
        read_lengths([tmp_path / "a.txt"], "text", tokenizer=str(folder))


def test_a_hub_tokenizer_that_cannot_be_had_is_one_clear_error(tmp_path, monkeypatch):
    import transformers

    asked = []

    def refuse(source, **options):
        asked.append((source, options.get("local_files_only", False)))
        raise OSError("no\nconnection")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    (tmp_path / "a.txt").write_text("one")
    message = r"the tokenizer 'org/model' cannot be loaded \(no connection\); give a local folder"
    with pytest.raises(DataError, match=message):
        read_lengths([tmp_path / "a.txt"], "text", tokenizer="org/model")
    assert asked == [("org/model", True), ("org/model", False)]


def test_a_tokenizer_path_that_does_not_exist_is_not_looked_for_on_the_hub(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(InputError, match=r"there is no tokenizer at '\./none'; give a folder"):
        read_lengths([tmp_path / "a.txt"], "text", tokenizer="./none")


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(DataError, match=r"the tokenizer '.*a\.txt' cannot be loaded: .* expected a tokenizer"):
        read_lengths([tmp_path / "a.txt"], "text", tokenizer=str(tmp_path / "a.txt"))


def test_a_tokenizer_that_fails_on_a_document_is_named(tmp_path):
    path = tmp_path / "word.json"
    Tokenizer(models.WordLevel({"one": 0}, unk_token="[UNK]")).save(str(path))
    with pytest.raises(DataError, match=r"the tokenizer '.*word\.json' failed on a document: .*UNK"):
        load_tokenizer(str(path))(["two"])


def test_a_document_without_a_token_is_skipped(tmp_path):
    path = tmp_path / "bare.json"
    bare = Tokenizer(models.WordLevel({"one": 0, "[UNK]": 1}, unk_token="[UNK]"))
    bare.normalizer = normalizers.BertNormalizer()
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    bare.save(str(path))
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("\x00\x01")
    data = read_lengths([tmp_path], "text", tokenizer=str(path))
    assert (values(data), reasons(data)) == ([1], [("b.txt", "the tokenizer makes no token of it")])


def test_text_that_is_not_utf8_or_empty_is_skipped_and_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    (tmp_path / "c.txt").write_bytes(b" \n")
    (tmp_path / "d.md").touch()
    data = read_lengths([tmp_path], "text")
    assert values(data) == [3]
    assert reasons(data) == [
        ("b.txt", "not UTF-8 at byte 3"),
        ("c.txt", "empty document"),
        ("d.md", "empty document"),
    ]


def test_json_lines_that_cannot_be_used_are_named_by_line(tmp_path):
    lines = [
        b'{"text": "one two"}',
        b"",
        b'{"text": "one"',
        b'{"text": "\xff"}',
        b"[1]",
        b'{"text": null}',
        b'{"text": " "}',
        b'{"text": 5}',
        b'{"body": "one"}',
        rb'{"text": "\ud800"}',
        b"[" * 200_000,
        b'{"text": "three"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    data = read_lengths([tmp_path], "text")
    assert values(data) == [3, 4]
    found = dict(reasons(data))
    assert found.pop("a.jsonl:3").startswith("invalid JSON: ")
    assert found.pop("a.jsonl:11").startswith("invalid JSON: ")
    assert found == {
        "a.jsonl:4": "not UTF-8 at byte 10",
        "a.jsonl:5": "a JSON list, not an object",
        "a.jsonl:6": "'text' is empty",
        "a.jsonl:7": "'text' is empty",
        "a.jsonl:8": "'text' holds int, not text",
        "a.jsonl:9": "no field 'text'",
        "a.jsonl:10": "'text' is not UTF-8",
    }


@pytest.mark.parametrize("records", [1, 1500])
def test_a_field_that_no_json_record_has_is_an_error_naming_the_fields(tmp_path, records):
    path = write_jsonl(tmp_path / "a.jsonl", *[{"body": "one", "id": 1}] * records)
    with pytest.raises(InputError, match=r"a\.jsonl has no column 'text'; name one that it has: 'body', 'id'"):
        read_lengths([path], "text")
    assert read_lengths([path], "text", column="body").count == records


def test_csv_rows_are_read_by_column_with_quotes_and_line_breaks(tmp_path):
    path = write_csv(tmp_path / "a.csv", [["id", "text"], ["1", "one,\ntwo"], ["2", ""], ["3"], ["4", "three"]])
    data = read_lengths([path], "text")
    assert values(data) == [3, 5]
    assert reasons(data) == [("a.csv:4", "'text' is empty"), ("a.csv:5", "'text' is empty")]


def test_csv_documents_longer_than_the_csv_module_allows_are_read(tmp_path):
    path = write_csv(tmp_path / "a.csv", [["text"], ["one " * 100_000]])
    limit = csv.field_size_limit()
    assert values(read_lengths([path], "text")) == [100002]
    assert csv.field_size_limit() == limit


def test_csv_rows_that_are_not_utf8_or_badly_quoted_cost_themselves_alone(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'text\ncaf\xe9\none\n"one"two\nthree\n"never closed\nand on\n')
    data = read_lengths([tmp_path], "text")
    assert values(data) == [3, 3]
    found = dict(reasons(data))
    assert found.pop("a.csv:2") == "'text' is not UTF-8"
    assert sorted(found) == ["a.csv:4", "a.csv:7"]
    assert all(reason.startswith("invalid CSV: ") for reason in found.values())


def test_csv_without_the_column_names_the_columns_it_has(tmp_path):
    path = write_csv(tmp_path / "a.csv", [["id", "body"], ["1", "one"]])
    with pytest.raises(InputError, match=r"a\.csv has no column 'text'; name one that it has: 'id', 'body'"):
        read_lengths([path], "text")


def test_tables_without_rows_are_skipped_and_named(tmp_path):
    (tmp_path / "a.csv").touch()
    (tmp_path / "b.csv").write_text("text\n")
    (tmp_path / "c.jsonl").write_text("\n\n")
    (tmp_path / "d.txt").write_text("one")
    data = read_lengths([tmp_path], "text")
    assert values(data) == [3]
    assert reasons(data) == [("a.csv", "no records"), ("b.csv", "no records"), ("c.jsonl", "no records")]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_rows_are_streamed_whatever_kind_of_text_the_column_is(tmp_path, kind):
    rows = [*TEXTS, None, ""] * 500
    plain = pa.array(rows, pa.binary() if kind == pa.binary() else pa.string())
    table = pa.table({"id": pa.array(range(len(rows))), "text": plain.cast(kind)})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    data = read_lengths([tmp_path / "a.parquet"], "text")
    assert data.counts == (500,) * 4
    assert data.lengths == (3, 4, 5, 7)
    assert len(data.skipped) == 1000
    assert reasons(data)[:2] == [("a.parquet:5", "'text' is empty"), ("a.parquet:6", "'text' is empty")]


def test_parquet_column_names_may_hold_a_dot(tmp_path):
    parquet.write_table(pa.table({"my.text": TEXTS}), tmp_path / "a.parquet")
    assert values(read_lengths([tmp_path / "a.parquet"], "text", column="my.text")) == [3, 4, 5, 7]


def test_a_parquet_row_that_is_not_utf8_costs_itself_alone(tmp_path):
    parquet.write_table(pa.table({"text": pa.array([b"one", b"\xff", b"two"])}), tmp_path / "a.parquet")
    data = read_lengths([tmp_path], "text")
    assert (values(data), reasons(data)) == ([3, 3], [("a.parquet:2", "not UTF-8 at byte 0")])


def test_parquet_without_the_column_or_with_times_in_it_is_an_error(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"id": [1], "body": ["one"]}), path)
    with pytest.raises(InputError, match=r"a\.parquet has no column 'text'; name one that it has: 'id', 'body'"):
        read_lengths([path], "text")
    parquet.write_table(pa.table({"when": pa.array([1], pa.timestamp("s"))}), path)
    with pytest.raises(InputError, match=r"column 'when' of .*a\.parquet holds timestamp.*; name a column of text"):
        read_lengths([path], "text", column="when")


def test_an_unreadable_parquet_file_is_skipped(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing else")
    (tmp_path / "b.txt").write_text("one")
    data = read_lengths([tmp_path], "text")
    assert values(data) == [3]
    assert reasons(data)[0][0] == "a.parquet"
    assert reasons(data)[0][1].startswith("unreadable Parquet: ")


def test_a_column_needs_a_file_with_columns(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(InputError, match=r"the column 'body' needs a file with columns \(\.jsonl, \.csv"):
        read_lengths([tmp_path], "text", column="body")
