"""A driver for each library: the same methods, in the library's own way."""
