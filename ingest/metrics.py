"""What ingest tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

#: Seconds.
_LAGS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)


class WriterMetrics:
    """The writer's queue, its journal, and how long rows take to be safe."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._queue_rows = Gauge(
            "chandlery_ingest_queue_rows", "Rows received and not yet durable", registry=registry
        )
        self._queue_bytes = Gauge(
            "chandlery_ingest_queue_bytes", "Bytes of the rows that are not yet durable, about", registry=registry
        )
        self._journal_records = Gauge(
            "chandlery_ingest_journal_records", "Batches in the journal, not yet in the database", registry=registry
        )
        self._journal_bytes = Gauge("chandlery_ingest_journal_bytes", "Bytes of the journal", registry=registry)
        #: From receipt to durable.
        self.lag = Histogram(
            "chandlery_ingest_lag_seconds", "From receipt to durable", buckets=_LAGS, registry=registry
        )
        #: Labelled by where: store, journal, set_aside.
        self.rows = Counter(
            "chandlery_ingest_rows", "Rows that became durable, by where", ["where"], registry=registry
        )
        #: Messages that could not be used, and of these, the ones that were counted only.
        self.refused = Counter(
            "chandlery_ingest_refused_messages", "Messages that could not be used", registry=registry
        )
        self.refused_dropped = Counter(
            "chandlery_ingest_refused_messages_dropped",
            "Messages that could not be used and were not kept, because too many came",
            registry=registry,
        )

    def watch(
        self,
        queue_rows: Callable[[], float],
        queue_bytes: Callable[[], float],
        journal_records: Callable[[], float],
        journal_bytes: Callable[[], float],
    ) -> None:
        """Ask these for the values whenever somebody looks."""
        self._queue_rows.set_function(queue_rows)
        self._queue_bytes.set_function(queue_bytes)
        self._journal_records.set_function(journal_records)
        self._journal_bytes.set_function(journal_bytes)
