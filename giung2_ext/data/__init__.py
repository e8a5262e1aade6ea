"""Sources of labelled images and the feeds that turn them into batches."""
