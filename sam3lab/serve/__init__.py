"""SAM 3 as a service: an engine that batches, caches and degrades, its HTTP API and its web page."""
