"""Other suites' files: one module a format; its `build` recognises what it can read and takes it apart.

`build(content)` returns Parts, or None for a file of another kind. Names stay PyTorch's here: what they
are called in our networks is the models' to say, and who puts the parts together refuses names that are
left over on either side.
"""
