"""What Prometheus reads at /metrics; a registry of its own for each server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        self.requests = Counter("asymrec_requests", "Requests answered.", ("route", "method", "status"), **own)
        self.latency = Histogram("asymrec_request_seconds", "Time from request to answer.", ("route",), buckets=SECONDS, **own)
        self.queue = Gauge("asymrec_queue_length", "Recommendations that wait for the model.", **own)
        self.batch = Histogram(
            "asymrec_batch_size", "Requests that one call of the model answers.", buckets=(1, 2, 4, 8, 16, 32, 64), **own
        )
        self.model = Histogram("asymrec_model_seconds", "Time of one call of the model.", buckets=SECONDS, **own)
        self.refused = Counter("asymrec_refused", "Requests refused.", ("reason",), **own)
        self.cache = Counter("asymrec_user_cache", "Look-ups of users' events.", ("result",), **own)
        self.events = Counter("asymrec_events", "Events stored.", **own)
        self.commits = Histogram("asymrec_commit_seconds", "Time of one commit of events.", buckets=SECONDS, **own)
        self.items = Gauge("asymrec_catalogue_items", "Items that can be recommended.", **own)
        self.version = Gauge("asymrec_catalogue_version", "Version of the catalogue.", **own)
        self.swaps = Counter("asymrec_run_swaps", "Runs that replaced another while serving.", **own)
