"""Values as bytes, so that another process can have them; and the envelope they travel in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple, Protocol

import msgspec

from market.errors import BadInput

#: Of the envelope; one of another version is not opened.
VERSION = 1

_DECIMAL, _TUPLE = 1, 2
_ACCEPTED = "None, bool, int (64 bits), float, str, bytes, Decimal, and lists, tuples and dicts of them"


class Codec(Protocol):
    """Turns the values of one kind into bytes and back, so that what comes back is equal."""

    def encode(self, value: Any) -> bytes:
        """The bytes; raises BadInput for a value that would not come back equal."""
        ...

    def decode(self, payload: bytes) -> Any:
        """The value; raises ValueError for bytes that are none of ours."""
        ...

    def size(self, value: Any, payload: bytes) -> int:
        """About the bytes that the value takes in memory."""
        ...


class PlainCodec:
    """Plain structures as MessagePack: they come back with the same types, decimals exact to the last zero."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ext_hook=self._extension)

    def encode(self, value: Any) -> bytes:
        try:
            return self._encoder.encode(self._packable(value))
        except (OverflowError, UnicodeEncodeError, RecursionError) as error:
            raise BadInput("value", type(value).__name__, f"{_ACCEPTED} ({error})") from error

    def decode(self, payload: bytes) -> Any:
        try:
            return self._decoder.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, InvalidOperation, RecursionError) as error:
            raise ValueError(f"no value of ours: {error}") from error

    def size(self, value: Any, payload: bytes) -> int:
        if type(value) in (list, tuple):
            return sys.getsizeof(value) + sum(self.size(one, b"") for one in value)
        if type(value) is dict:
            return sys.getsizeof(value) + sum(
                sys.getsizeof(key) + self.size(one, b"") for key, one in value.items()
            )
        return sys.getsizeof(value)

    def _packable(self, value: Any) -> Any:
        # Exact types: a subclass would come back as its base.
        of = type(value)
        if value is None or of in (str, float, int, bool, bytes):
            return value
        if of is list:
            return [self._packable(one) for one in value]
        if of is dict and all(type(key) in (str, int) for key in value):
            return {key: self._packable(one) for key, one in value.items()}
        if of is Decimal:
            return msgspec.msgpack.Ext(_DECIMAL, str(value).encode())
        if of is tuple:
            return msgspec.msgpack.Ext(_TUPLE, self._encoder.encode([self._packable(one) for one in value]))
        raise BadInput("value", of.__name__, _ACCEPTED + "; a codec for anything else")

    def _extension(self, code: int, data: memoryview) -> Any:
        if code == _DECIMAL:
            return Decimal(str(data, "utf-8"))
        if code == _TUPLE:
            return tuple(self._decoder.decode(data))
        raise msgspec.ValidationError(f"extension {code}")


class TypedCodec:
    """Values of one type that msgspec knows (dataclass, NamedTuple, Struct, ``list[...]``); decimals as text."""

    def __init__(self, of: Any) -> None:
        self._encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder(decimal_format="string").encode
        self._decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(of).decode
        self._of = of

    def encode(self, value: Any) -> bytes:
        try:
            return self._encode(value)
        except (TypeError, OverflowError, UnicodeEncodeError) as error:
            raise BadInput("value", type(value).__name__, f"{self._of} ({error})") from error

    def decode(self, payload: bytes) -> Any:
        try:
            return self._decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ValueError(f"no {self._of}: {error}") from error

    def size(self, value: Any, payload: bytes) -> int:
        # A float is 9 bytes packed and 24 with a pointer of 8 as an object.
        return sys.getsizeof(value) + 4 * len(payload)


class Envelope(NamedTuple):
    """What is kept in the shared tier: a value, and what tells whether it may still be served."""

    #: When the value was true, epoch milliseconds of the clock of whoever put it there.
    stored_at: int
    #: Its own time to live in milliseconds; None: that of its kind, as whoever reads it has it.
    ttl_ms: int | None
    payload: bytes

    def packed(self) -> bytes:
        """As MessagePack: ``[1, stored_at, ttl_ms, payload]``."""
        return msgspec.msgpack.encode((VERSION, self.stored_at, self.ttl_ms, self.payload))

    @classmethod
    def unpack(cls, data: bytes) -> Envelope | None:
        """The envelope; None if it is of another version or none of ours."""
        try:
            version, stored_at, ttl_ms, payload = _ENVELOPE.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return cls(stored_at, ttl_ms, payload) if version == VERSION else None


_ENVELOPE = msgspec.msgpack.Decoder(tuple[int, int, int | None, bytes])
