"""The offline default: generated scenes, and tiny models that were really trained on such scenes.

`shapes` -> `scenes` -> `painting` and `captions` -> `shards` writes the data, `sentences` texts without images.
`models/` holds two open_clip teachers and a transformers captioner (4 MB in all), which load as any other model does;
`train_models` makes them again and `measure` says how good they are.
"""

from pathlib import Path

MODELS = Path(__file__).parent / "models"
"""Folder of `demo-a`, `demo-b` and `demo-captioner`."""
