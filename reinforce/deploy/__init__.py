"""Students where they are used: the image tower as a file that needs neither torch nor open_clip to run."""
