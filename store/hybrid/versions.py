"""On a hybrid store: what has changed in the primary, and what an operator has switched."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from market.instrument import Series
from store.candle_store import SeriesDelta, SeriesVersion
from store.control import Control, OperatingState, SafetyState
from store.hybrid.catch_up import CatchUp
from store.hybrid.side import UNABLE, Side

log = structlog.get_logger(__name__)


class PrimaryVersions:
    """The part of :class:`store.candle_store.CandleStore` that says what has changed: in the primary.

    Revisions of the secondary are others, so it never answers in its place.
    """

    _primary: Side
    _secondary: Side
    _catch_up: CatchUp

    def change_mark(self) -> int | None:
        """The primary's; None while it is away."""
        store = self._primary.answering
        return None if store is None else store.change_mark()

    def writes_here(self) -> int:
        """The primary's."""
        store = self._primary.answering
        return 0 if store is None else store.writes_here()

    async def versions(self, series: Sequence[Series]) -> tuple[dict[Series, SeriesVersion], Control]:
        """What tells whether these series have changed in the primary, and its control state.

        :raises StoreUnavailable: it is away.
        """
        return await self._primary.use(lambda store: store.versions(series))

    async def delta(self, series: Series, *, since: int, after_ms: int, limit: int) -> SeriesDelta | None:
        """What has become of a series in the primary.

        :raises StoreUnavailable: it is away.
        """
        return await self._primary.use(
            lambda store: store.delta(series, since=since, after_ms=after_ms, limit=limit)
        )

    async def set_control(
        self, *, safety: SafetyState | None = None, operating: OperatingState | None = None, reason: str = ""
    ) -> Control:
        """Switch it in the primary, whose word counts, then in the secondary; that may be away, and follows then.

        :raises StoreBusy: as the primary says.
        :raises StoreUnavailable: the primary is away: nothing was switched. Neither is anything written then.
        """
        control = await self._primary.use(
            lambda store: store.set_control(safety=safety, operating=operating, reason=reason)
        )
        try:
            await self._secondary.use(
                lambda store: store.set_control(
                    safety=control.safety, operating=control.operating, reason=control.reason
                )
            )
        except UNABLE as error:
            log.warning(
                "the secondary store will be switched when it is back",
                secondary=self._secondary.location,
                error=str(error),
            )
            self._catch_up.wake()
        return control
