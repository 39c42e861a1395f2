"""Experiments: points of a table, their records, sweeps over many of them."""
