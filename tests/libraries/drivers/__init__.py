"""A driver for each library: the same verbs, each in its own words."""
