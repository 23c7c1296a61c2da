"""NOTICE, end to end: from pairs of images to universal heads."""
