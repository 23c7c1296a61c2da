"""Parts of a transformer with hook points, one component a file; they know no model."""
