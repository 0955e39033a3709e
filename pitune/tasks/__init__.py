"""Tasks, their slices, their metrics and the catalogue."""
