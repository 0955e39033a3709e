"""What a run counts while it lasts, for Prometheus: through Ray, which every machine of a cluster tells it of.

Each process counts its own part, and Ray exports a metric under its name here with ``ray_`` before it, a counter with
``_total`` behind it: ``rate()`` makes packs, rows and bytes per second of them. ``cluster/grafana.json`` shows all.
Where this process is not connected to Ray, counting does nothing.
"""

from __future__ import annotations

import logging

from ray.util.metrics import Counter, Gauge

from pitune.store.artifacts import LOG

PACKS = Gauge("pitune_packs", "packs in the queue now, by state: waiting, running", ("state",))
FINISHED = Counter("pitune_packs_finished", "packs that have ended, by how: done, failed", ("how",))
RETRIES = Counter("pitune_pack_retries", "packs that wait again, for the gang that had them died")
PREEMPTIONS = Counter("pitune_preemptions", "machines that were taken away from a gang, which do not count as deaths")
ROWS = Counter("pitune_rows_trained", "rows that experts were trained on")
BYTES = Counter("pitune_committed_bytes", "bytes of the files of committed artifacts")


def count_commits() -> None:
    """Count from now on the bytes that this process commits, by what the store logs of each commit."""
    LOG.setLevel(logging.INFO)
    LOG.addHandler(_COMMITTED)  # once, however often this is called


class _Committed(logging.Handler):
    """Adds up what the store says of its commits."""

    def emit(self, record: logging.LogRecord) -> None:
        """Count one commit."""
        if size := getattr(record, "bytes", 0):
            BYTES.inc(size)


_COMMITTED = _Committed()
