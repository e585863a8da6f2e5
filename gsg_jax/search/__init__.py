"""Search in a folder of images by a pretrained run: similar images, duplicates, outliers."""
