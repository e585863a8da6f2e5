"""What the folder of a run holds, and how it is written and read."""
