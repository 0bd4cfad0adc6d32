"""Values as bytes and back: equal, with the same types, whichever tier they come from."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.errors import BadInput
from store.cache.codec import Envelope, PlainCodec, TypedCodec

PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False),
        st.text(max_size=5),
        st.binary(max_size=5),
        st.decimals(allow_nan=False),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(0, 9)), inner, max_size=4),
    ),
    max_leaves=12,
)


@given(PLAIN)
def test_plain_values_come_back_alike(value: Any) -> None:
    codec = PlainCodec()
    payload = codec.encode(value)
    # Equal in types and in the digits of decimals too.
    assert repr(codec.decode(payload)) == repr(value)
    assert codec.size(value, payload) > 0


class Amount(NamedTuple):
    quantity: Decimal


@dataclass(frozen=True)
class Held:
    symbol: str
    amounts: tuple[Amount, ...]


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, Amount(Decimal(1)), {None: 1}, {True: 1}, 2**64, ["\ud800"], {"a": [Held("a", ())]}]
)
def test_what_would_not_come_back_alike_is_refused(value: Any) -> None:
    with pytest.raises(BadInput, match=r"^value: .*"):
        PlainCodec().encode(value)


def test_what_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(BadInput):
        PlainCodec().encode(value)


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\xa1\xff", b"\xd4\x09a", b"\xd4\x01x", b"\xd4\x02\xc1"])
def test_foreign_bytes_are_no_value(payload: bytes) -> None:
    with pytest.raises(ValueError, match="no value of ours"):
        PlainCodec().decode(payload)


def test_typed_values_come_back_as_their_type() -> None:
    codec = TypedCodec(list[Held])
    value = [Held("BTC/USDT", (Amount(Decimal("1.50")), Amount(Decimal("1E-18"))))]
    payload = codec.encode(value)
    assert repr(codec.decode(payload)) == repr(value)
    assert codec.size(value, payload) > len(payload)
    with pytest.raises(ValueError, match="Held"):
        codec.decode(b"\x91\x01")
    with pytest.raises(BadInput):
        codec.encode(object())


@given(st.integers(0, 2**62), st.one_of(st.none(), st.integers(1, 10**8)), st.binary(max_size=20))
def test_envelopes_come_back(stored_at: int, ttl_ms: int | None, payload: bytes) -> None:
    envelope = Envelope(stored_at, ttl_ms, payload)
    assert Envelope.unpack(envelope.packed()) == envelope
    assert Envelope.unpack(envelope.packed()[:-1]) is None


@given(st.binary(max_size=5))
def test_foreign_bytes_are_no_envelope_and_no_error(data: bytes) -> None:
    # The shortest of ours has six.
    assert Envelope.unpack(data) is None
