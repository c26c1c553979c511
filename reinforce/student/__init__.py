"""Training a student from a reinforced dataset, with no teacher in the loop.

`reader` yields `Batch`es of replayed views, tokens and stored embeddings; `models` builds, saves and loads students;
`losses` compares the two; `train` is the loop. Nothing here loads ray, a teacher or a captioner.
"""
