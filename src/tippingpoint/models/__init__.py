"""Architectures and variants: the catalogue, the length arithmetic, and how a subject is built."""
