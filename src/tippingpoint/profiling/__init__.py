"""Measuring: one process for each subject, driven over a socket by a parent that sleeps."""
