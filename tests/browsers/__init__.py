"""Tests in a real Chromium: the pages, the button, the demo. `make test-browsers` runs them."""
