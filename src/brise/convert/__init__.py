"""One model file into another: in fewer bits (quantize.py), and for other programs (export.py)."""
