"""Providers of answers: the built-in model, or an upstream API with its models and prices."""
