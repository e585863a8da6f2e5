"""What is seen of runs and their images: pages, curves, galleries, maps."""
