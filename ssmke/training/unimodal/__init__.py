"""Distillation of one modality: half of a pretrained image or text encoder that learns to replace the whole.

What comes out is where pretraining begins: ``--model.image.weights RUN/model`` or ``--model.text.weights RUN/model``.
"""
