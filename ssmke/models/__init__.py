"""The student, the unimodal encoders it is cut from, its teachers, and the loading of their weights."""
