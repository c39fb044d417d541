"""What leaves the house: exported engines."""
