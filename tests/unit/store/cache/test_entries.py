"""Values by bytes: the sum is exact, the least recently used go first, nothing is served after its end."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from market.errors import BadInput
from store.cache.entries import Entries, Gone


class Watch:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_least_recently_used_goes_first() -> None:
    gone = []
    entries: Entries[str, int] = Entries(10, monotonic_ms=Watch(), gone=lambda *one: gone.append(one))
    for number, key in enumerate("abc"):
        assert entries.put(key, number, 3)
    assert entries.get("a") == 0
    entries.put("d", 3, 3)
    assert list(entries) == ["c", "a", "d"]
    assert gone == [("b", 1, 3, Gone.EVICTED)]
    assert (entries.used_bytes, entries.count(Gone.EVICTED)) == (9, 1)


def test_what_is_larger_than_the_limit_is_not_kept_and_evicts_nothing() -> None:
    entries: Entries[str, str] = Entries(10, monotonic_ms=Watch())
    entries.put("a", "old", 5)
    entries.put("b", "b", 5)
    assert not entries.put("a", "new", 11)
    assert list(entries) == ["b"]
    assert (entries.get("a"), entries.used_bytes, entries.refused) == (None, 5, 1)
    assert entries.put("a", "new", 10)
    assert list(entries) == ["a"]


def test_expired_is_not_served_and_its_bytes_come_back() -> None:
    watch = Watch()
    entries: Entries[str, int] = Entries(10, monotonic_ms=watch)
    entries.put("a", 1, 4, lifetime_ms=100)
    entries.put("b", 2, 4)
    watch.now = 99.9
    assert entries.get("a") == 1
    watch.now = 100
    assert "a" not in entries
    assert entries.used_bytes == 8
    assert entries.get("a") is None
    assert (entries.used_bytes, entries.count(Gone.EXPIRED), entries.count(Gone.EVICTED)) == (4, 1, 0)
    assert not entries.put("c", 3, 1, lifetime_ms=0)
    entries.put("c", 3, 1, lifetime_ms=5)
    watch.now = 200
    assert (entries.sweep(), list(entries), entries.pop("c")) == (1, ["b"], None)


def test_frozen_serves_and_changes_nothing() -> None:
    watch = Watch()
    gone = []
    entries: Entries[str, int] = Entries(10, monotonic_ms=watch, gone=lambda *one: gone.append(one))
    entries.put("a", 1, 4, lifetime_ms=100)
    entries.put("b", 2, 4)
    entries.frozen = True
    assert not entries.put("a", 9, 1)
    assert not entries.put("c", 3, 1)
    assert (entries.get("a"), entries.pop("b"), entries.clear(), entries.sweep()) == (1, None, 0, 0)
    watch.now = 100
    entries.limit_bytes = 1
    assert (entries.get("a"), entries.get("b")) == (None, 2)
    assert (entries.used_bytes, len(entries), gone) == (8, 2, [])
    entries.frozen = False
    entries.limit_bytes = 4
    assert (list(entries), [(key, why) for key, _, _, why in gone]) == (["b"], [("a", Gone.EXPIRED)])


@pytest.mark.parametrize(("limit", "size"), [(-1, 0), (True, 0), (1, -1)])
def test_wrong_sizes_are_refused(limit: int, size: int) -> None:
    with pytest.raises(BadInput):
        Entries[str, int](limit, monotonic_ms=Watch()).put("a", 1, size)


KEYS = st.integers(0, 6)


class Model:
    """A list of (key, value, bytes, end), the least recently used first."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, float | None]] = []
        self.limit = 20
        self.now = 0.0
        self.frozen = False

    def row(self, key: int) -> tuple[int, int, int, float | None] | None:
        return next((row for row in self.rows if row[0] == key), None)

    def over(self, row: tuple[int, int, int, float | None]) -> bool:
        return row[3] is not None and row[3] <= self.now

    def get(self, key: int) -> int | None:
        row = self.row(key)
        if row is None:
            return None
        if self.over(row):
            if not self.frozen:
                self.rows.remove(row)
            return None
        self.rows.remove(row)
        self.rows.append(row)
        return row[1]

    def put(self, key: int, value: int, size: int, lifetime: int | None) -> bool:
        if self.frozen:
            return False
        self.rows = [row for row in self.rows if row[0] != key]
        if size > self.limit or lifetime == 0:
            return False
        self.shrink(self.limit - size)
        self.rows.append((key, value, size, None if lifetime is None else self.now + lifetime))
        return True

    def shrink(self, limit: int) -> None:
        while sum(row[2] for row in self.rows) > limit:
            self.rows.pop(0)


class EntriesModel(RuleBasedStateMachine):
    """Entries do what a list does."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.watch = Model(), Watch()
        #: What was put less what was said to be gone.
        self.kept: dict[int, int] = {}
        self.entries: Entries[int, int] = Entries(20, monotonic_ms=self.watch, gone=self.gone)
        self.puts = 0

    def gone(self, key: int, value: int, size: int, why: Gone) -> None:
        assert self.kept.pop(key) == value

    @rule(key=KEYS, size=st.integers(0, 12), lifetime=st.one_of(st.none(), st.integers(0, 5)))
    def put(self, key: int, size: int, lifetime: int | None) -> None:
        self.puts += 1
        told = self.entries.put(key, self.puts, size, lifetime)
        assert told == self.model.put(key, self.puts, size, lifetime)
        if told:
            self.kept[key] = self.puts

    @rule(key=KEYS)
    def get(self, key: int) -> None:
        assert self.entries.get(key) == self.model.get(key)

    @rule(key=KEYS)
    def pop(self, key: int) -> None:
        row = None if self.model.frozen else self.model.row(key)
        assert self.entries.pop(key) == (None if row is None or self.model.over(row) else row[1])
        self.model.rows = [one for one in self.model.rows if one != row]

    @rule(key=KEYS)
    def pop_where(self, key: int) -> None:
        out = [] if self.model.frozen else [row for row in self.model.rows if row[0] < key]
        assert self.entries.pop_where(lambda one: one < key) == len(out)
        self.model.rows = [row for row in self.model.rows if row not in out]

    @rule(time=st.integers(0, 3))
    def wait(self, time: int) -> None:
        self.watch.now = self.model.now = self.model.now + time

    @rule(frozen=st.booleans())
    def freeze(self, frozen: bool) -> None:
        self.entries.frozen = self.model.frozen = frozen

    @rule()
    def sweep(self) -> None:
        out = [] if self.model.frozen else [row for row in self.model.rows if self.model.over(row)]
        assert self.entries.sweep() == len(out)
        self.model.rows = [row for row in self.model.rows if row not in out]

    @rule(limit=st.integers(0, 30))
    def limit(self, limit: int) -> None:
        self.entries.limit_bytes = self.model.limit = limit
        if not self.model.frozen:
            self.model.shrink(limit)

    @invariant()
    def same(self) -> None:
        # A limit lowered while frozen is obeyed at the next put.
        assert list(self.entries) == [row[0] for row in self.model.rows]
        assert self.entries.used_bytes == sum(row[2] for row in self.model.rows)
        assert self.kept == {row[0]: row[1] for row in self.model.rows}
        served = {row[0] for row in self.model.rows if not self.model.over(row)}
        assert {key for key in range(7) if key in self.entries} == served


EntriesModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestEntriesModel = EntriesModel.TestCase
