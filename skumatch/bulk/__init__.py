"""Embedding at scale: ``skumatch embed``, on one machine or on a Ray cluster."""
