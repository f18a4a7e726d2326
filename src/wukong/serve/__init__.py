"""Models behind an OpenAI-compatible API: one queue of requests, batched through the sampler."""
