"""Tasks and what they are read from, their pictures, slices and metrics, and the catalogue."""
