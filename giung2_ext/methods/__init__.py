"""One algorithm per file; the file name is its key and `build(...)` returns a `core.method.Method`."""
