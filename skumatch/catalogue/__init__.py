"""Duplicate postings in a catalogue: which pictures and titles are of one product."""
