"""Captions of image files: every layout of metadata, what is wrong with single rows, names written in two ways."""

import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from test_data import picture, write_rows, write_shard

from ditkit.data import Folder, Webdataset, hub
from ditkit.data.captions import read_metadata
from ditkit.errors import InputError


def images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(folder / name)


def captions(folder: Path, column: str = "text") -> dict[str, str]:
    """Caption by file of those that are used; those that are left out are the rest."""
    source = Folder(path=folder, caption_column=column, check=False).open()
    titles = [source._store.title(number) for number in source._kept]
    return dict(zip(titles, source.captions, strict=True))


def refused(folder: Path, words: str, column: str = "text") -> None:
    with pytest.raises(InputError, match=words) as caught:
        captions(folder, column)
    assert "\n" not in str(caught.value)


CSV = 'file_name,text,id\r\nc/a.png,"a cat, ""Tom"",\non a mat",1\r\n\r\nb/ü.png,Zwölf,2\r\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_is_read_with_quotes_line_breaks_and_a_byte_order_mark(tmp_path, encoding):
    images(tmp_path, "c/a.png", "b/ü.png")
    (tmp_path / "metadata.csv").write_bytes(CSV.encode(encoding))
    assert captions(tmp_path) == {"b/ü.png": "Zwölf", "c/a.png": 'a cat, "Tom",\non a mat'}
    assert captions(tmp_path, "id") == {"b/ü.png": "2", "c/a.png": "1"}
    refused(tmp_path, r"no column 'title'; `data\.caption_column` is one of: text, id, txt", "title")


def test_far_more_rows_than_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ditkit.data.captions.FEW_ROWS", 15)
    lines = [json.dumps({"file_name": f"{n}.png", "text": "a"}) for n in range(40)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    files = [f"{n}.png" for n in range(4)]
    assert len(read_metadata(tmp_path / "metadata.jsonl", files, "text")) == 40
    with pytest.raises(
        InputError, match=r"has more than 30 rows, and the folder 3 files; write one row for each"
    ):
        read_metadata(tmp_path / "metadata.jsonl", files[:3], "text")


def test_parquet_is_read_like_the_other_two(tmp_path):
    import pyarrow
    import pyarrow.parquet

    images(tmp_path, "a.png", "b.png", "c.png")
    columns = {"file_name": ["b.png", "a.png", None], "text": ["bee", " ay ", "see"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "metadata.parquet")
    assert captions(tmp_path) == {"a.png": "ay", "b.png": "bee"}
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 and no more")
    refused(tmp_path, r"metadata\.parquet cannot be read \(.*\); write it again")


def test_several_metadata_files_are_refused_only_where_captions_are_read(tmp_path):
    images(tmp_path, "a.png", "b.png")
    write_rows(tmp_path, {"file_name": "a.png", "text": "ay"})
    (tmp_path / "metadata.csv").write_text("nothing of the kind")
    refused(tmp_path, r"holds both metadata\.jsonl and metadata\.csv; keep the one")
    source = Folder(path=tmp_path).open()
    assert (source.captions, len(source), source.broken) == (None, 2, ())


def test_a_bad_row_is_counted_with_line_and_reason_and_its_image_left_out(tmp_path, caplog):
    names = [f"{number}.png" for number in range(20)]
    images(tmp_path, *names)
    good = [json.dumps({"file_name": name, "text": f"text of {name}"}).encode() for name in names[:12]]
    bad = [
        b"{",
        b'["12.png", "x"]',
        b'{"text": "of nobody"}',
        json.dumps({"file_name": "13.png", "text": ["x"]}).encode(),
        json.dumps({"file_name": "14.png", "text": 5}).encode(),
        b'{"file_name": "15.png", "text": "caf\xe9"}',
        b'{"file_name": "16.png", "text": "\\ud800"}',
        b'{"file_name": "./0.png", "text": "once more"}',
        b'{"file_name": "17.png", "text": null}',
        b'{"file_name": "18.png", "text": " "}',
        b'{"file_name": "19.png"}',
        b'{"file_name": "gone.png", "text": "x"}',
    ]
    (tmp_path / "metadata.jsonl").write_bytes(b"\n".join(good + bad))
    assert captions(tmp_path) == {name: f"text of {name}" for name in names[1:12]}
    for words in (
        "9 of 24 rows cannot be used: line 13 (not a JSON object with a file_name), line 14 (",
        "3 of 24 rows have no caption: line 21, line 22, line 23",
        "1 of 24 rows are about files that are not in the folder: gone.png",
        "left out 9 of 20 images, whose caption is missing, empty or not UTF-8: 0.png, 12.png, 13.png",
    ):
        assert words in caplog.text


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("c.png,a cat, on a mat", r"3 cells of 2; a text with commas stands in quotes"),
        ("c.png", "1 cells of 2"),
        (",words", "no file_name"),
        ('c.png,"a cat" on a mat', "',' expected after"),
        ("c.png,caf\udce9", "not UTF-8"),
    ],
)
def test_a_bad_row_of_a_csv(tmp_path, caplog, row, reason):
    images(tmp_path, "a.png", "b.png", "c.png")
    text = f"file_name,text\na.png,ay\n{row}\nb.png,bee\n"
    (tmp_path / "metadata.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert captions(tmp_path) == {"a.png": "ay", "b.png": "bee"}
    assert f"1 of 3 rows cannot be used: line 3 ({reason}" in caplog.text


def test_a_metadata_file_that_is_wrong_as_a_whole_is_refused(tmp_path):
    images(tmp_path, "a.png", "b.png", "c.png")
    table = tmp_path / "metadata.csv"
    for content, words in {
        b"file_name;text\na.png;ay\n": r"names no column file_name \('file_name;text'\).*commas between columns",
        "file_name,text\na.png,ay\n".encode("utf-16"): "names no column file_name",
        b"": "names no column file_name",
        b"file_name,text\n": "no column 'text'",
        b"file_name,text\na.png,x,y\nb.png,x,y\nc.png,x\n": r"2 of 3 rows cannot be used, line 2 \(3 cells of 2",
        b"file_name,text\nimages/a.png,ay\nimages/b.png,bee\n": r"names 2 files, none of which is in the folder",
    }.items():
        table.write_bytes(content)
        refused(tmp_path, words)


NFC, NFD = (unicodedata.normalize(form, "zwölf.png") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("on_disk", "written"), [(NFC, NFD), (NFD, NFC), (NFC, NFC), (NFD, NFD)])
def test_names_match_however_their_accents_slashes_and_prefixes_are_written(tmp_path, on_disk, written):
    images(tmp_path, f"a/{on_disk}", "b/2.png")
    write_rows(
        tmp_path, {"file_name": f".\\a\\{written}", "text": "12"}, {"file_name": "./b//2.png", "text": "2"}
    )
    assert captions(tmp_path) == {f"a/{on_disk}": "12", "b/2.png": "2"}
    (tmp_path / "a" / Path(written).with_suffix(".txt")).write_text("beside")
    assert captions(tmp_path, "txt") == {f"a/{on_disk}": "beside"}


def test_one_bad_caption_of_a_shard_is_counted(tmp_path, caplog):
    members = {}
    for name, sample in {
        "a": '{"words": "ay"}',
        "b": '{"words": ["x"]}',
        "c": "{",
        "d": '{"words": "dee"}',
    }.items():
        members |= {f"{name}.png": picture(1), f"{name}.json": sample}
    members |= {"e.png": picture(1), "e.json": '{"words": "ee"}'}
    write_shard(tmp_path / "s.tar", members)
    source = Webdataset(path=tmp_path / "s.tar", caption_column="words").open()
    assert source.captions == ["ay", "dee", "ee"]
    assert source.broken == ("b.png of s.tar", "c.png of s.tar")
    assert (
        "'words' is not one text in 2 of 5 places: b.png of s.tar (['x']), c.png of s.tar: its" in caplog.text
    )


def test_a_caption_that_is_no_text_in_a_table_is_counted(monkeypatch, caplog):
    monkeypatch.setattr(hub, "read_column", lambda table, column: ["a", 5, " b", None])
    assert hub.read_texts(None, "words", "here") == ["a", None, "b", None]
    assert "here: 'words' is not one text in 1 of 3 places: row 1 (5)" in caplog.text
