"""Processes that do work: a child with limits, pools, a cluster."""
