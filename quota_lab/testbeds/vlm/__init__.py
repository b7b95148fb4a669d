"""A vision-language model of real parts, to try the quantiser and pruning on.

DINOv2-S/14 and SmolLM2-135M-Instruct, each as its makers trained it, joined by a projector and an addition to the
decoder that are trained here (`training.py`) on pictures of framed photographs and signs (`pictures.py`).
"""
