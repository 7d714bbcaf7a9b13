"""The mock upstream: answers what it has ready, and so is never the bottleneck."""
