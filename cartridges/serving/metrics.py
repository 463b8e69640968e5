"""What the server tells of itself, in the form of Prometheus."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from cartridges.engine.engine import Engine

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters of one server; those of its engine are read when they are asked for."""

    def __init__(self, engine: "Engine") -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "cartridges_requests", "Requests answered.", ["route", "status"], registry=self.registry
        )
        self.request_s = Histogram(
            "cartridges_request_seconds",
            "Time to the end of the answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first_token_s = Histogram(
            "cartridges_first_token_seconds",
            "Time to the first token, waiting included.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.replies = Counter("cartridges_replies", "Replies by how they ended.", ["finish"], registry=self.registry)
        self.refused = Counter("cartridges_refused", "Requests refused as too many.", registry=self.registry)
        self.registry.register(EngineCollector(engine))

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self.registry)


class EngineCollector(Collector):
    """Reads the engine's own numbers."""

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        """The numbers as they are now."""
        stats = self.engine.stats()
        gauges = {
            "running": ("Replies being written.", stats.num_running),
            "waiting": ("Replies waiting for room.", stats.num_waiting),
            "kv_tokens_used": ("Tokens held in the KV cache, slots included.", stats.kv_tokens_used),
            "kv_tokens_total": ("Tokens that the KV cache can hold.", stats.kv_tokens_total),
            "loaded": ("Cartridges on the shelf.", len(stats.cartridges)),
        }
        counters = {
            "prompt_tokens": ("Tokens of prompts.", stats.num_prompt_tokens),
            "new_tokens": ("Tokens written.", stats.num_new_tokens),
            "cached_tokens": ("Tokens of prompts that were read before.", stats.num_cached_tokens),
            "preemptions": ("Replies set back for lack of room.", stats.num_preemptions),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"cartridges_{name}", text, value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"cartridges_{name}", text, value)
