"""Panoptic networks."""
