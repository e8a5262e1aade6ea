"""One dataset per file; the file name is its key and `build(root)` returns a `data.source.Source`."""
