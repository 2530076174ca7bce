"""Curation: which pairs of images and texts are worth training on.

    tables ──Part──▶ step ──Part──▶ step ──Part──▶ …         one Parquet file for each part, in a folder for each step
                      │ tally         ▲
                      ▼               │
                    reduce (counts of entries, keys that come twice: small, and the only thing that is global)

A step works on each part alone, so parts may be worked on by any number of processes and machines, in any order, and
be taken up again after a stop. Whatever is drawn by chance is drawn from a hash of a seed and the id of a pair, never
from a stream of random numbers; so the result does not depend on how the pairs are cut into parts.
"""
