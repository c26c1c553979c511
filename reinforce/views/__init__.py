"""Views of an image: `draw` decides what a view is, `render` makes its pixels, `ops` are the augmentations.

`draw` needs numpy only and is what a stored `view_seed` replays; `render` loads torch. Both are part of the dataset
format: what they compute for given arguments never changes. Nothing is imported here, so that `draw` stays light.
"""
