"""The ways in which a set of images lies on disk, each read as `data.source.Records`."""
