"""`reinforce label`: images in, labels out, in real time on a small CPU.

onnxruntime, numpy and Pillow are all it needs; nothing here imports torch, typer or pydantic, nor what does. The story
of an image: `inputs` finds its bytes, `preprocess` makes pixels of them, `session` an embedding, `scores` labels.
"""
