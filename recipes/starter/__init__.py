"""The recipe of the starter tagger, from raw data to the files that ship with the package."""
