"""Datasets in and out of the published layout of DataCompDR: tars that hold images, captions, views and embeddings.

`layout` is that layout as pure functions, `notes` the one member we add to it. `datacompdr` imports, `pack` exports.
Nothing is imported here: a student reads packed tars without any of what makes them.
"""
