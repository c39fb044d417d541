"""Engines that turn pixels into vectors, each behind one module."""
