"""One network per file; the file name is its key and `build(num_classes, ...)` returns a linen module.

Modules take standardised NHWC float images and `train`, and call their classifier `cls`.
"""
