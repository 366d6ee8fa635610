"""Files that are not what they are called."""

import re

import pytest

from mem0_jax.stand_in import stand_in

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (LFS, r"^is a Git LFS pointer \(12345 bytes are elsewhere\): git lfs pull, or download it again$"),
        (LFS.replace(b"\n", b"\r\n"), r"LFS pointer \(12345 bytes"),
        (LFS.replace(b"git-lfs", b"hawser"), r"LFS pointer \(12345 bytes"),
        (LFS[:60], r"^is a Git LFS pointer: git lfs pull"),
        (b"/annex/objects/SHA256E-s99--ab.mp4\n", r"git-annex pointer \(99 bytes are elsewhere\): git annex get"),
        (b"../.git/annex/objects/Xx/00/MD5E-s9--a.mp4/MD5E-s9--a.mp4", r"git-annex pointer \(9 bytes"),
        (b"\n<!DOCTYPE html>\n<html>", "is a web page"),
        (b"\xef\xbb\xbf<html lang=en>", "is a web page"),
        (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code>', "a server's error message: the download failed"),
        (b"Entry not found", "a server's error message"),
        (b"404: Not Found", "a server's error message"),
        (b"Access to model a/b is restricted and you are not in the authorized list.", "a server's error message"),
        (b'{"error":"Repository not found"}', "a server's error message"),
        (b'{"message": "Not Found", "status": "404"}', "a server's error message"),
        (b"", "^is empty"),
    ],
)
def test_names_what_lies_there(head, said, tmp_path):
    (tmp_path / "file").write_bytes(head)
    assert re.search(said, stand_in(head))
    assert stand_in(tmp_path / "file") == stand_in(head)


def test_leaves_all_others_to_their_readers(tmp_path):
    for head in (
        b"PAR1",
        b"{}",
        b"PK\x03\x04",
        b"\0\0\0\x18ftypisom",
        b"version 2\n",
        b"#version: 0.2\na b\n",
        b"<",
        b'{"a": {"error": 1}}',
    ):
        assert stand_in(head) == ""
    assert stand_in(tmp_path) == stand_in(tmp_path / "absent") == ""
