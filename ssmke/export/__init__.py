"""A trained model as others take it: a folder to share, ONNX files, sentence-transformers, and its card."""
