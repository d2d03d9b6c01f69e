"""COCO-format data: reading, checking, decoding, transforms, batches, and the data set of the demo."""
