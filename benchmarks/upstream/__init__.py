"""The fake upstream. It sends prepared answers, so that it is not the bottleneck."""
