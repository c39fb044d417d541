"""What measures: protocols, metrics with intervals, and the report files."""
