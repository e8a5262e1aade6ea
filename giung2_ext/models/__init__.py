"""One network per file; the file name is its key, `build(num_classes, dtype, ...)` returns a linen module.

Modules take standardised NHWC float images and `train`, compute in `dtype`, and call their classifier
`cls`: its product and the logits are float32, as parameters and statistics always are.
"""
