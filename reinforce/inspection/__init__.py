"""Looks at a reinforced dataset without changing it: is it good, is it whole and true?

`stats` gathers what a listing, footers and a stated few values say, `table` prints it, `report` writes the page,
`dataset_card` the README. `verify` reads everything. No teacher is loaded but by `recompute`.
"""
