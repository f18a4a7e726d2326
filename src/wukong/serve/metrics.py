"""What the service counts, for Prometheus. docs/tools/serve.md explains each name."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """One registry for each service, so that two in one process do not mix."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        model = ["model"]
        self.requests = Counter(
            "wukong_requests", "HTTP requests by endpoint and status", ["endpoint", "status"], registry=registry
        )
        self.refused = Counter("wukong_refused", "Requests refused because the queue was full", registry=registry)
        self.waiting = Gauge("wukong_waiting", "Answers that wait for a place in the batch", registry=registry)
        self.writing = Gauge("wukong_writing", "Answers that are being written", registry=registry)
        self.prompt_tokens = Counter("wukong_prompt_tokens", "Tokens of prompts", model, registry=registry)
        self.answer_tokens = Counter("wukong_answer_tokens", "Tokens of answers", model, registry=registry)
        self.batch_size = Histogram(
            "wukong_batch_size", "Answers written together in one step", model, registry=registry, buckets=SIZES
        )
        self.step_seconds = Histogram(
            "wukong_step_seconds", "Time of one token for the whole batch", model, registry=registry, buckets=SECONDS
        )
        self.first_token_seconds = Histogram(
            "wukong_first_token_seconds",
            "From the request to its first token",
            model,
            registry=registry,
            buckets=SECONDS,
        )
        self.answer_seconds = Histogram(
            "wukong_answer_seconds", "From the request to its last token", model, registry=registry, buckets=SECONDS
        )

    def stepped(self, model: str, answers: int, seconds: float) -> None:
        """One token was written for so many answers."""
        self.answer_tokens.labels(model).inc(answers)
        self.batch_size.labels(model).observe(answers)
        self.step_seconds.labels(model).observe(seconds)
