"""Files: atomic writes, JSON documents, metrics, progress, files from elsewhere."""
