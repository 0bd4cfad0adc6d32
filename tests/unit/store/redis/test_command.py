"""Commands as they go over the wire."""

from __future__ import annotations

import hashlib

import pytest

from store.redis.command import Script, command, packed


@pytest.mark.parametrize(
    ("words", "wire"),
    [
        (("GET", "a"), b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n"),
        (
            ("SET", "ä", b"\r\n\x00", 7, 0.1),
            b"*5\r\n$3\r\nSET\r\n$2\r\n\xc3\xa4\r\n$3\r\n\r\n\x00\r\n$1\r\n7\r\n$3\r\n0.1\r\n",
        ),
        (("A B", ""), b"*2\r\n$3\r\nA B\r\n$0\r\n\r\n"),
    ],
)
def test_words_on_the_wire(words: tuple[str | bytes | int | float, ...], wire: bytes) -> None:
    assert packed(words) == wire


def test_a_float_keeps_all_its_digits() -> None:
    assert b"0.30000000000000004" in packed(("SET", 0.1 + 0.2))


def test_the_key_is_the_first_argument() -> None:
    said = command("HSET", "k", "f", 1)
    assert said.key == "k"
    assert tuple(said.said()) == ("HSET", "k", "f", 1)


def test_a_script_goes_by_its_name_or_whole() -> None:
    script = Script("double", "return ARGV[1] * 2")
    said = script.call(["a", "b"], [7])
    sha1 = hashlib.sha1(b"return ARGV[1] * 2").hexdigest()
    assert said.key == "a"
    assert tuple(said.said()) == ("EVALSHA", sha1, 2, "a", "b", 7)
    assert tuple(said.said(whole=True)) == ("EVAL", "return ARGV[1] * 2", 2, "a", "b", 7)
