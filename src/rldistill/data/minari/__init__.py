"""Import and export of Minari datasets."""
