"""Looks at a reinforced dataset without changing it: figures for a table or JSON, and a contact sheet for the eye.

`stats` gathers (footers of all shards, values of a stated few), `figures` is what it found, `table` prints it, `report`
writes the page. No teacher is loaded.
"""
