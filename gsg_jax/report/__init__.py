"""Reports of runs and their images: pages, curves, galleries, maps."""
