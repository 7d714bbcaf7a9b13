"""Starts servers, loads them in turn, and computes ratios."""
